"""What docs/explaining.md says, typed by a reader."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import openfastervit_cli
from tests.conftest import REPOSITORY
from tests.docs.reader import blocks, commands
from tests.pocket import picture, write_checkpoint

DOCUMENT = REPOSITORY / "docs" / "explaining.md"


def test_the_commands_do_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("model.safetensors"))
    Path("photos").mkdir()
    for number in range(2):
        picture(number).save(f"photos/{number}.jpg")
    seen = commands(DOCUMENT)
    assert len(seen) == 3
    for command in seen:
        name, *args = shlex.split(command)
        assert name == "fastervit"
        assert openfastervit_cli.main(args) == 0
    drawn = ["cat.png", "explanation.png", "explanations/0.jpg.png", "explanations/1.jpg.png"]
    assert sorted(str(path) for path in Path().rglob("*.png")) == drawn
    for path in drawn:
        with Image.open(path) as one:
            one.verify()


def test_shapes_are_as_said():
    """Each line of the block that ends in a shape gives a tensor of it."""
    (block,) = blocks(DOCUMENT, "python")
    known: dict = {}
    checked = 0
    for line in block.splitlines():
        exec(line, known)
        said = re.match(r"(.+?)  # (\([\d, ]+\))", line)
        if said:
            value = eval(said[1], known)
            assert isinstance(value, torch.Tensor)
            assert str(tuple(value.shape)) == said[2]
            checked += 1
    assert checked == 7
