"""The pages on detection and segmentation: their commands and Python are run, in the order of the page."""

import shlex
from pathlib import Path

import pytest

import openfastervit_cli
from openfastervit.tasks.detection.networks import HEADS
from tests.cli.conftest import names
from tests.conftest import REPOSITORY
from tests.docs.reader import blocks, commands, settle, shortened

DOCUMENTS = [REPOSITORY / "docs" / f"{name}.md" for name in ("detection", "segmentation")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_and_python(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settle(tmp_path)
    seen = commands(document)
    for command in seen:
        if command.startswith("pip install"):
            continue
        words = shlex.split(shortened(command))
        assert words[0] == "fastervit"
        assert openfastervit_cli.main(words[1:]) == 0, command
    assert any(" train " in command for command in seen)
    (code,) = blocks(document, "python")
    exec(compile(code, document.name, "exec"), {})
    photographs = (tmp_path / "coco" / "val2017", tmp_path / "scenes" / "images" / "val")
    assert names(tmp_path / "pictures") in [names(folder) for folder in photographs]


def test_the_table_of_heads_is_whole() -> None:
    text = DOCUMENTS[0].read_text(encoding="utf-8")
    for head in HEADS:
        assert f"`{head}`" in text
