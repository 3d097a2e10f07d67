"""Checkpoints that ``fastervit predict`` cannot use: each refused by name, in one line, running nothing."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from openfastervit import save_checkpoint
from openfastervit.models import fastervit
from tests.cli.conftest import Run
from tests.pocket import CLASSES, INPUT, METADATA, OPTIONS, pocket, write_checkpoint


@pytest.fixture
def refused(fails, photos: Path):
    """Predict with a checkpoint that must be refused, its name told."""

    def run(path: Path, *args: str, says: list[str]) -> str:
        return fails("predict", photos, "--checkpoint", path, *args, says=[path.name, *says])

    return run


@pytest.fixture
def _fastervit_0_in_the_pocket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fastervit.VARIANTS, "fastervit_0", {k: v for k, v in OPTIONS.items() if k != "num_classes"})


class Payload:
    """What unpickling would turn into a call."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def released(path: Path, **changes: Any) -> Path:
    """A file in the released layout, with some tensors changed, or left out where None."""
    weights = torch.load(save_checkpoint(pocket(), path, layout="released"))["state_dict"]
    weights = {key: value for key, value in {**weights, **changes}.items() if value is not None}
    torch.save({"state_dict": weights}, path)
    return path


def test_missing(refused, tmp_path: Path):
    refused(tmp_path / "nowhere.safetensors", says=["no checkpoint at", "check the path"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated(refused, tmp_path: Path, suffix: str, kept: float):
    path = save_checkpoint(pocket(), tmp_path / f"half.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, says=["damaged or truncated", "fetch it again"])


@pytest.mark.parametrize("content", [b"", b"PK", b"I am no checkpoint.", b"<html><body>404</body></html>"])
def test_foreign_bytes(refused, tmp_path: Path, content: bytes):
    (tmp_path / "foreign.pth").write_bytes(content)
    refused(tmp_path / "foreign.pth", says=["checkpoint"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_another_networks_weights(refused, tmp_path: Path, suffix: str):
    weights = {"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.bias": torch.zeros(10)}
    path = tmp_path / f"resnet.{suffix}"
    if suffix == "pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    refused(path, "--model", "fastervit_0", says=["not a FasterViT checkpoint", "conv1.weight"])


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious(refused, tmp_path: Path, zipped: bool):
    target = tmp_path / "owned"
    path = tmp_path / "malicious.pth"
    if zipped:
        torch.save({"state_dict": {"stem.conv1.weight": Payload(target)}}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Payload(target)}))
    refused(path, "--model", "fastervit_0", says=["refused", "run code", "safetensors"])
    assert not target.exists()


def test_the_malicious_files_would_have_worked(tmp_path: Path):
    """Otherwise the test above could not fail."""
    torch.save({"state_dict": Payload(tmp_path / "owned")}, tmp_path / "malicious.pth")
    torch.load(tmp_path / "malicious.pth", weights_only=False)
    assert (tmp_path / "owned").exists()


@pytest.mark.usefixtures("_fastervit_0_in_the_pocket")
def test_a_missing_key(refused, tmp_path: Path):
    path = released(tmp_path / "lacking.pth", **{"levels.2.blocks.0.attn.qkv.weight": None})
    refused(path, "--model", "fastervit_0", says=["lacks levels.2.blocks.0.attn.qkv.weight"])


@pytest.mark.usefixtures("_fastervit_0_in_the_pocket")
def test_an_unknown_key(refused, tmp_path: Path):
    path = released(tmp_path / "more.pth", **{"levels.2.extra.weight": torch.zeros(3)})
    refused(path, "--model", "fastervit_0", says=["unknown", "levels.2.extra.weight"])


@pytest.mark.usefixtures("_fastervit_0_in_the_pocket")
def test_a_wrong_shape(refused, tmp_path: Path):
    path = released(tmp_path / "odd.pth", **{"levels.3.blocks.0.mlp.fc1.bias": torch.zeros(5)})
    refused(path, "--model", "fastervit_0", says=["levels.3.blocks.0.mlp.fc1.bias", "[5]", "[256]"])


@pytest.mark.usefixtures("_fastervit_0_in_the_pocket")
def test_a_released_file_needs_the_networks_name(fastervit: Run, refused, photos: Path, tmp_path: Path):
    path = released(tmp_path / "released.pth")
    refused(path, says=["which network", "--model fastervit_0"])
    named = fastervit("predict", photos, "--checkpoint", path, "--model", "faster_vit_0_224")
    assert named.code == 0
    assert named.err == ""


def test_a_name_that_does_not_fit(refused, tmp_path: Path):
    path = released(tmp_path / "pocket.pth")
    refused(path, "--model", "fastervit_0", says=["does not fit this network", "lacks levels.0.blocks.1.conv1.weight"])


def test_wrong_class_count(refused, tmp_path: Path):
    fewer = write_checkpoint(tmp_path / "fewer.safetensors", classes=CLASSES[:2])
    refused(fewer, says=["names 2 classes", "classifier has 3"])
    more = write_checkpoint(tmp_path / "more.safetensors", overrides={**OPTIONS, "num_classes": 5})
    refused(more, says=["head.fc.", "needs [5", "num_classes=3"])


def test_wrong_channel_count(refused, tmp_path: Path):
    told = {**INPUT, "size": [4, 64, 64], "mean": [0.5] * 4, "std": [0.5] * 4}
    four = write_checkpoint(
        tmp_path / "four.safetensors", pocket(in_chans=4), overrides={**OPTIONS, "in_chans": 4}, input=told
    )
    refused(four, says=["takes 4 channels", "images have 3, or 1"])
    contradiction = write_checkpoint(tmp_path / "contradiction.safetensors", overrides={**OPTIONS, "in_chans": 1})
    refused(contradiction, says=["stem.conv1.weight", "[8, 3, 3, 3]", "[8, 1, 3, 3]"])


def test_unknown_option(refused, tmp_path: Path):
    path = write_checkpoint(tmp_path / "option.safetensors", overrides={**OPTIONS, "window_size": (7, 7, 2, 2)})
    refused(path, says=["unknown option 'window_size'", "did you mean window_sizes?"])


def test_damaged_metadata(refused, tmp_path: Path):
    path = tmp_path / "metadata.safetensors"
    weights = {key: value.contiguous() for key, value in pocket().state_dict().items()}
    safetensors.torch.save_file(weights, path, metadata={"openfastervit": str(METADATA)})  # Python's notation, not JSON
    refused(path, says=["damaged metadata"])
