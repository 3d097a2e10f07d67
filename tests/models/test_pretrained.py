"""Released weights: from the hub, from its cache, from a file; without a network; damaged."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch

import openfastervit
from openfastervit.models import pretrained
from openfastervit.models.checkpoints import CheckpointError
from tests.models.test_checkpoints import SAFE, TORCH, same
from tests.networks import HAT, images, tiny


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A stand-in for the hub's client: files on disk, by name."""
    files: dict[str, Path] = {}

    def fetch(repo: str, filename: str, **_options: object) -> str:
        assert repo == "ahatamiz/FasterViT"
        if filename not in files:
            raise ConnectionError("no network")
        return str(files[filename])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_args, **_options: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_args, **_options: None)
    monkeypatch.setattr(pretrained, "_noticed", False)
    return files


SMALL: dict[str, Any] = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}


@pytest.mark.parametrize("create", ["ours", "timm"])
def test_pretrained(create: str, hub: dict[str, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    make = openfastervit.create_model if create == "ours" else timm.create_model
    model = tiny(HAT, num_classes=1000).eval()
    hub["fastervit_0_224_1k.pth.tar"] = openfastervit.save_checkpoint(model, tmp_path / TORCH, layout="released")
    loaded = make(HAT, pretrained=True, **SMALL).eval()
    assert same(model, loaded)
    assert "state_dict" not in loaded.pretrained_cfg
    classes = make(f"{HAT}.in1k", pretrained=True, num_classes=5, in_chans=1, **SMALL).eval()
    assert torch.equal(classes.stem.conv2.weight, model.stem.conv2.weight)
    x = images(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            make(HAT, pretrained=True, features_only=True, **SMALL).eval()(x),
            model.forward_intermediates(x, intermediates_only=True),
        )
    notices = [w for w in recwarn if "non-commercial" in str(w.message)]
    assert len(notices) == 1, "the licence of the weights is told once"


def test_pretrained_from_a_file_of_timm_s_overlay(tmp_path: Path) -> None:
    model = tiny(HAT, num_classes=1000)
    path = openfastervit.save_checkpoint(model, tmp_path / TORCH, layout="released")
    loaded = timm.create_model(HAT, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **SMALL)
    assert same(model, loaded)


def test_pretrained_without_a_network(hub: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="non-commercial"), pytest.raises(CheckpointError, match="checkpoint=PATH"):
        openfastervit.create_model(HAT, pretrained=True, **SMALL)


def test_pretrained_without_a_network_fails_at_once(tmp_path: Path) -> None:
    """With the hub's real client and a server that is not there: one attempt, one line that says what to do."""
    code = "import openfastervit; openfastervit.create_model('fastervit_0', pretrained=True)"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Retry" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "CheckpointError: cannot download fastervit_0_224_1k.pth.tar" in last
    assert "checkpoint=PATH" in last


def test_pretrained_is_checked(hub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(HAT, num_classes=1000)
    path = openfastervit.save_checkpoint(model, tmp_path / TORCH, layout="released")
    hub["fastervit_0_224_1k.pth.tar"] = path
    monkeypatch.setitem(pretrained.SHA256, "fastervit_0_224_1k.pth.tar", "0" * 64)
    with pytest.warns(UserWarning, match="non-commercial"), pytest.raises(CheckpointError, match="sha256"):
        openfastervit.create_model(HAT, pretrained=True, **SMALL)
    monkeypatch.setitem(pretrained.SHA256, "fastervit_0_224_1k.pth.tar", hashlib.sha256(path.read_bytes()).hexdigest())
    assert same(model, openfastervit.create_model(HAT, pretrained=True, **SMALL))


def test_both_sources_of_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of them"):
        openfastervit.create_model(HAT, pretrained=True, checkpoint=tmp_path / SAFE)
