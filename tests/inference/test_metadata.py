"""What a file says of its network is believed where it is plain, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch

import openfastervit
from openfastervit import CheckpointError
from openfastervit.inference.checkpoint import load_classifier
from tests.networks import HAT, images, tiny


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"overrides": {"pretrained": True}}, "'pretrained'"),
        ({"overrides": {"checkpoint": "/etc/passwd"}}, "'checkpoint'"),
        ({"overrides": {"features_only": True}}, "'features_only'"),
        ({"overrides": {"device": "meta"}}, "'device'"),
        ({"overrides": {"global_pool": "foo"}}, "global_pool='foo'"),
        ({"overrides": {"stem_dim": -1}}, "stem_dim=-1"),
        ({"overrides": {"dim": 10**7}}, "the network needs|lacks"),  # must not take the memory it asks for
        ({"overrides": {"dim": 10**12}}, "cannot be built"),
        ({"overrides": {"num_classes": 10**10}}, "the network needs|lacks"),
        ({"input": {"crop_pct": "a"}}, "crop_pct is 'a'"),
        ({"input": {"crop_pct": 0}}, "crop_pct is 0"),
        ({"input": {"interpolation": "zzz"}}, "interpolation is 'zzz'"),
        ({"input": {"crop_mode": "zzz"}}, "crop_mode is 'zzz'"),
        ({"input": {"std": [0, 0, 0]}}, r"std is \[0, 0, 0\]"),
        ({"input": {"mean": "abc"}}, "mean is 'abc'"),
        ({"input": {"size": [3, -64, 64]}}, r"size is \[3, -64, 64\]"),
    ],
)
def test_hostile_metadata(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = openfastervit.save_checkpoint(tiny(HAT), tmp_path / "model.safetensors", metadata={"model": HAT, **metadata})
    with pytest.raises(CheckpointError, match=named) as caught:
        load_classifier(path)
    assert path.name in str(caught.value)


def test_a_saved_network_is_used_as_it_was(tmp_path: Path) -> None:
    """Another head, another pooling, other windows, another size: prediction has them all."""
    model = tiny(HAT)
    model.reset_classifier(4, "max")
    model.set_input_size((160, 256), windows="fit")
    found = load_classifier(openfastervit.save_checkpoint(model, tmp_path / "model.safetensors"))
    assert found.preparation["input_size"] == (3, 160, 256)
    x = images(160, 256)
    with torch.no_grad():
        assert torch.equal(found.model(x), model.eval()(x))
    other = tiny(HAT, img_size=96)
    found = load_classifier(openfastervit.save_checkpoint(other, tmp_path / "other.safetensors"))
    assert found.preparation["input_size"] == (3, 96, 96)
