"""The guide to exporting tells the options, formats and bounds that there are; its command runs."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from openfastervit.inference.engines.engine import MAX_DIFFERENCE
from openfastervit.inference.export import MAX_DISTANCE, PRECISIONS, SUFFIXES
from openfastervit.inference.graphs import OPEN_SIDES, OPSET
from openfastervit_cli import main
from openfastervit_cli.export import export
from tests.conftest import REPOSITORY
from tests.docs.reader import commands, write_photos
from tests.pocket import write_checkpoint

DOCUMENT = REPOSITORY / "docs" / "exporting.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_options() -> None:
    known = {name.replace("_", "-") for name in inspect.signature(export).parameters}
    assert set(re.findall(r"--([a-z][a-z-]+)", TEXT)) <= known


def test_tables() -> None:
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", TEXT))
    for to, precisions in PRECISIONS.items():
        file, held, _ = rows[to].split(" | ", 2)
        assert file.startswith(f"`{SUFFIXES[to]}`")
        assert re.findall(r"`(\w+)`", held) == list(precisions)
    held_by_any = {precision for precisions in PRECISIONS.values() for precision in precisions}
    for precision in held_by_any:
        bound = {**MAX_DIFFERENCE, "int8": MAX_DISTANCE}[precision]
        assert float(rows[precision].split(" ")[0]) == bound
    assert f"Opset {OPSET}." in TEXT
    assert f"from\n  {OPEN_SIDES[0]} up" in TEXT


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    write_checkpoint(tmp_path / "best.safetensors")
    for command in commands(DOCUMENT):
        assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "network.onnx").is_file()
