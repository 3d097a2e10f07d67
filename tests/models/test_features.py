"""Backbones: the maps of networks of ours and timm's, and how optimisers see what stands on them."""

from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureListNet
from timm.optim import create_optimizer_v2
from torch import nn

import openfastervit
from openfastervit.models.features import Backbone, DenseNetwork, create_backbone
from tests.networks import GLOBAL, HAT, TINY, images, tiny
from tests.pocket import write_checkpoint

OPTIONS = {key: value for key, value in TINY.items() if key != "num_classes"}
SHAPES = [(480, 640), (800, 1333), (1333, 800), (95, 33)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", [HAT, GLOBAL])
def test_maps_of_any_shape_are_timms_feature_extractors(name: str, size: tuple[int, int]) -> None:
    network = tiny(name).eval()
    backbone = Backbone(network).eval()
    extractor = timm.create_model(name, features_only=True, **OPTIONS).eval()
    assert isinstance(extractor, FeatureListNet)
    extractor.load_state_dict(
        {key.replace("stages.", "stages_", 1): value for key, value in backbone.model.state_dict().items()}
    )
    x = images(*size, batch=1)
    with torch.no_grad():
        found, expected = backbone(x), extractor(x)
    assert backbone.strides == [4, 8, 16, 32]
    assert backbone.channels == [map.shape[1] for map in found]
    for map, same, stride in zip(found, expected, backbone.strides, strict=True):
        assert map.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        torch.testing.assert_close(map, same)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_timms_networks_give_maps_of_the_same_strides(name: str) -> None:
    backbone = create_backbone(name, img_size=(64, 96)).eval()
    with torch.no_grad():
        maps = backbone(images(64, 96, batch=1))
    assert [tuple(map.shape[2:]) for map in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert backbone.channels == [map.shape[1] for map in maps]


def test_some_strides_only() -> None:
    backbone = create_backbone(HAT, options=OPTIONS, strides=(8, 16, 32))
    assert backbone.strides == [8, 16, 32]
    assert len(backbone(images(64, 64, batch=1))) == 3


def test_a_classifiers_weights_are_taken(tmp_path: Any) -> None:
    file = write_checkpoint(tmp_path / "c.safetensors")
    told = openfastervit.models.read_metadata(file)["overrides"]
    options = {key: value for key, value in told.items() if key not in ("num_classes", "in_chans", "global_pool")}
    backbone = create_backbone(HAT, weights=str(file), options=options)
    stored = openfastervit.models.read_checkpoint(file)
    for name, value in backbone.model.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"name": "fastervit_9"}, "fastervit_9"),
        ({"name": HAT, "strides": (2, 4)}, "stride 2"),
        ({"name": "resnet18", "weights": "w.pth"}, "timm"),
        ({"name": HAT, "img_size": (16, 16)}, "at least 32"),
        ({"name": "vit_tiny_patch16_224"}, "no map of stride 4"),
    ],
)
def test_what_cannot_be_had_is_named(call: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_backbone(**call)
    with pytest.raises(ValueError, match="no maps"):
        Backbone(nn.Linear(2, 2))


class Headed(DenseNetwork):
    """The least that stands on a backbone."""

    backbone_name = "neck.body"

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Module()
        self.neck.body = create_backbone(HAT, options=OPTIONS)
        self.neck.lateral = nn.Conv2d(16, 4, 1)
        self.head = nn.Linear(4, 2)


def test_rates_fall_towards_the_stem_and_heads_have_the_full_one() -> None:
    network = Headed()
    optimizer = create_optimizer_v2(network, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale = {
        id(parameter): group.get("lr_scale", 1.0) for group in optimizer.param_groups for parameter in group["params"]
    }
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    named = dict(network.named_parameters())
    assert scale.keys() == {id(parameter) for parameter in named.values()}
    top = {scale[id(named[name])] for name in ("head.weight", "neck.lateral.weight")}
    assert top == {1.0}
    depths = network.feature_backbone.layers()
    for name, depth in depths.items():
        assert scale[id(named[f"neck.body.{name}"])] == pytest.approx(0.5 ** (max(depths.values()) + 1 - depth))
    stem = scale[id(named["neck.body.model.stem.conv1.weight"])]
    assert stem == min(scale.values())
    bias = next(name for name in named if ".bias.mlp." in name and name.endswith("weight"))
    assert decay[id(named[bias])] == 0.0
    assert decay[id(named["head.weight"])] == 0.1


def test_what_is_not_the_backbone_is_the_head() -> None:
    network = Headed()
    of_heads = {id(parameter) for parameter in network.head_parts().parameters()}
    of_backbone = {id(parameter) for parameter in network.feature_backbone.parameters()}
    assert of_heads | of_backbone == {id(parameter) for parameter in network.parameters()}
    assert not of_heads & of_backbone


def test_recomputed_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    backbone = create_backbone(HAT, options={**OPTIONS, "drop_path_rate": 0.0}).train()
    x = images(64, 96)
    gradients = []
    for recompute in (False, True):
        backbone.set_grad_checkpointing(recompute)
        backbone.zero_grad()
        sum(map.square().mean() for map in backbone(x)).backward()
        gradients.append([parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
