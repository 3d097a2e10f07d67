"""Our backbones in the networks of transformers."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from openfastervit.models import transformers_compat
from openfastervit.models.features import Backbone, create_backbone
from openfastervit.models.transformers_compat import (
    BackboneConfig,
    TransformersBackbone,
    build_around,
    make_config,
    sum_over_layers,
)
from tests.networks import images, wake
from tests.pocket import TRAINED

DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": 10,
}
HYBRID: dict[str, Any] = {
    **DETR,
    "encoder_hidden_dim": 32,
    "decoder_in_channels": [32, 32, 32],
    "freeze_backbone_batch_norms": False,
}
MASK2FORMER: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 5,
}
DEFORMABLE = {**DETR, "encoder_layers": 1}
KINDS: dict[str, tuple[Any, Any, dict[str, Any], tuple[int, ...]]] = {
    "upernet": (hf.UperNetForSemanticSegmentation, hf.UperNetConfig, {"hidden_size": 16}, (4, 8, 16, 32)),
    "mask2former": (hf.Mask2FormerForUniversalSegmentation, hf.Mask2FormerConfig, MASK2FORMER, (4, 8, 16, 32)),
    "rt-detr": (hf.RTDetrForObjectDetection, hf.RTDetrConfig, HYBRID, (8, 16, 32)),
    "d-fine": (hf.DFineForObjectDetection, hf.DFineConfig, HYBRID, (8, 16, 32)),
    "deformable-detr": (hf.DeformableDetrForObjectDetection, hf.DeformableDetrConfig, DEFORMABLE, (8, 16, 32)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, channels: list[int]) -> Callable[[BackboneConfig], Any]:
    """What makes a tiny network of a kind from its backbone's configuration."""
    network, config, options, _ = KINDS[kind]
    more = {"encoder_in_channels": channels} if kind in ("rt-detr", "d-fine") else {}
    return lambda backbone: network(make_config(config, options, backbone_config=backbone, num_labels=3, **more))


@every_kind
@pytest.mark.parametrize("name", ["fastervit_0", "resnet18"])
def test_the_backbone_given_is_the_one_inside(kind: str, name: str) -> None:
    """Not a weight or statistic is changed, nothing is frozen, and the network computes with it."""
    backbone = create_backbone(name, options=TRAINED if name == "fastervit_0" else {}, strides=KINDS[kind][3])
    wake(backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    flags = {key: parameter.requires_grad for key, parameter in backbone.named_parameters()}
    norms = [type(module) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    network, path = build_around(backbone, made(kind, backbone.channels))
    assert network.get_submodule(path) is backbone
    assert backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert {key: parameter.requires_grad for key, parameter in backbone.named_parameters()} == flags
    assert all(flags.values())
    assert [type(module) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)] == norms
    assert all(key.startswith(f"{path}.model.") for key in network.state_dict() if key.startswith(f"{path}."))

    calls: list[Any] = []
    handle = backbone.register_forward_hook(lambda module, inputs, maps: calls.append(maps))
    network.eval()(images(64, 96))
    handle.remove()
    (maps,) = calls
    strides = KINDS[kind][3]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(backbone.channels, strides, strict=True)
    ]


@every_kind
def test_transformers_draws_nothing_anew(kind: str) -> None:
    """A backbone that transformers makes from our configuration keeps the first weights that we give it."""
    strides = KINDS[kind][3]
    torch.manual_seed(3)
    expected = create_backbone("fastervit_0", options=TRAINED, strides=strides)
    torch.manual_seed(3)
    config = BackboneConfig(backbone="fastervit_0", options=TRAINED, strides=list(strides))
    network = made(kind, expected.channels)(config)
    (found,) = [module for module in network.modules() if isinstance(module, Backbone)]
    parameters = dict(found.named_parameters())
    assert len(parameters) > 50
    # Deformable DETR freezes batch norm, which then are no parameters.
    left_out = dict(expected.named_parameters()).keys() - parameters.keys()
    assert not left_out or (kind == "deformable-detr" and all("norm" in key or "bn" in key for key in left_out))
    assert all(torch.equal(value, dict(expected.named_parameters())[key]) for key, value in parameters.items())


def test_maps_are_the_network_s_own() -> None:
    torch.manual_seed(0)
    expected = create_backbone("fastervit_0", options=TRAINED, strides=(8, 32)).eval()
    torch.manual_seed(0)
    found = hf.AutoBackbone.from_config(BackboneConfig(backbone="fastervit_0", options=TRAINED, strides=[8, 32])).eval()
    assert isinstance(found, TransformersBackbone)
    assert isinstance(found._backbone, Backbone)
    assert found.channels == expected.channels
    assert found.out_indices == [1, 3]
    assert found.out_features == ["stages.1", "stages.3"]
    x = images(65, 97)
    with torch.no_grad():
        output = found(x, output_hidden_states=True)
        for one, other, hidden in zip(output.feature_maps, expected(x), output.hidden_states, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, hidden)
        assert torch.equal(found(x, return_dict=False)[0][1], output.feature_maps[1])
    with pytest.raises(ValueError, match="output_attentions"):
        found(x, output_attentions=True)


def test_options_of_the_configuration() -> None:
    config = BackboneConfig(
        backbone="fastervit_0", options=TRAINED, num_channels=4, freeze_batch_norm_2d=True, strides=[16]
    )
    backbone = TransformersBackbone(config).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert backbone(images(64, 64, channels=4)).feature_maps[0].shape == (2, 32, 4, 4)
    dilated = TransformersBackbone(BackboneConfig(backbone="resnet18", strides=[4, 8], output_stride=8)).eval()
    assert [m.shape[-1] for m in dilated(images(64, 64)).feature_maps] == [16, 8]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backbone": None}, ValueError, "backbone=None"),
        ({"options": {"dims": 8}}, TypeError, "dims"),
        ({"strides": [4, 64]}, ValueError, "stride 64"),
        ({"out_indices": [0, 1]}, ValueError, r"out_indices=\[0, 1\]"),
    ],
)
def test_bad_configurations(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TransformersBackbone(BackboneConfig(**{"backbone": "fastervit_0", "options": TRAINED, **options}))


def test_registered_once_and_again() -> None:
    transformers_compat._register()
    transformers_compat._register()
    assert isinstance(hf.AutoConfig.for_model("openfastervit_backbone"), BackboneConfig)
    assert hf.Mask2FormerConfig.backbones_supported.count("openfastervit_backbone") == 1
    plain = hf.TimmBackboneConfig(backbone="fastervit_0", out_indices=[0, 1, 2, 3])
    assert type(hf.AutoBackbone.from_config(plain)) is hf.TimmBackbone


@pytest.mark.parametrize("around", [True, False])
def test_round_trip_of_a_network_with_options(around: bool, tmp_path: Any) -> None:
    """save_pretrained and from_pretrained, of a network that was also resized."""
    if around:
        backbone = create_backbone("fastervit_0", options=TRAINED, img_size=(64, 96), windows="fit")
        wake(backbone)
        network, _ = build_around(backbone, made("upernet", backbone.channels))
    else:
        network = made("upernet", [])(BackboneConfig(backbone="fastervit_0", options=TRAINED))
        wake(network.backbone)
    network.eval().save_pretrained(tmp_path)
    again = hf.UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    x = images(64, 96)
    with torch.no_grad():
        expected, found = network(x).logits, again(x).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected)


def test_a_network_that_no_name_makes_is_not_made_up(tmp_path: Any) -> None:
    """timm's networks do not tell their options: their place is kept, and computing with it is refused."""
    backbone = create_backbone("resnet18")
    network, _ = build_around(backbone, made("upernet", backbone.channels))
    again = hf.UperNetForSemanticSegmentation(hf.UperNetConfig.from_dict(network.config.to_dict())).eval()
    assert again.backbone.channels == backbone.channels
    with pytest.raises(ValueError, match="build_around"):
        again(images(64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hiden_size": 3}, "did you mean hidden_size"),
        ({"zzz": 3}, "there is auxiliary_channels"),
        ({"num_labels": 3}, "num_labels"),
        ({"return_dict": False}, "unknown option 'return_dict'"),
        ({"hidden_size": "many"}, "hidden_size"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_config(hf.UperNetConfig, options, num_labels=2)
    assert "\n" not in str(caught.value)


def test_losses_of_layers_are_summed() -> None:
    names = ["loss_a", "loss_b", "loss_a_aux_0", "loss_a_dn_12", "loss_b_3", "loss_a_aux_1"]
    found = sum_over_layers({name: torch.tensor(2.0**i) for i, name in enumerate(names)})
    assert {name: float(loss) for name, loss in found.items()} == {"loss_a": 1 + 4 + 8 + 32, "loss_b": 2 + 16}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "openfastervit.models.transformers_compat")
    with pytest.raises(ValueError, match=r"pip install 'openfastervit\[segmentation\]'"):
        importlib.import_module("openfastervit.models.transformers_compat")
