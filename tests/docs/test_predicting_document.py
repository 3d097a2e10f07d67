"""What docs/predicting.md says, typed by a reader."""

import shlex
from pathlib import Path

import pytest

import openfastervit_cli
from tests.conftest import REPOSITORY
from tests.docs.reader import blocks, commands
from tests.pocket import picture, write_checkpoint

DOCUMENT = REPOSITORY / "docs" / "predicting.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``model.safetensors`` and a few photographs lie."""
    folder = tmp_path_factory.mktemp("reader")
    write_checkpoint(folder / "model.safetensors")
    (folder / "photos").mkdir()
    for number in range(3):
        picture(number).save(folder / "photos" / f"{number}.jpg")
    return folder


def test_the_commands_do_what_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    seen = commands(DOCUMENT)
    assert len(seen) == 6
    for command in seen:
        name, *args = shlex.split(command)
        assert name == "fastervit"
        assert openfastervit_cli.main(args) == 0
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "photos", "scores.csv", "scores.csv.json", "scores.parquet", "scores.parquet.json")
    }


def test_the_python_does_what_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(folder)
    (block,) = blocks(DOCUMENT, "python")
    exec(compile(block, str(DOCUMENT), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]
    assert all("ant" in line for line in lines)
