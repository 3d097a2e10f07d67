"""Networks with other designs of attention: built, saved, resized, traced as those with the released one."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import openfastervit
from openfastervit.layers import GlobalAttention, HierarchicalAttention, TokenMixer
from openfastervit.models.checkpoints import CheckpointError, released_state_dict
from openfastervit.models.designs import DESIGNS
from openfastervit.models.fastervit import AttentionStage, FasterViT
from tests.networks import HAT, TINY, images, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    **{design: {"attention": design} for design in DESIGNS},
    **{f"{design}-twice": {"attention": (design, design)} for design in DESIGNS},
    "two-levels": {"carrier_levels": 2, "carrier_pooling": "aligned"},
    "aligned": {"carrier_pooling": "aligned"},
    "masked": {"mask_padding": True},
    "without": {"without": ["carrier_attention", "window_bias", "window_position"], "layer_scale": 0.1},
}


def mixers(model: nn.Module) -> list[TokenMixer]:
    assert isinstance(model, FasterViT)
    return [stage.attention for stage in model.stages if isinstance(stage, AttentionStage)]


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_and_any_size(name: str, tmp_path: Path) -> None:
    """A file tells which network it is of; it answers alike, at another size, too."""
    model = tiny(**VARIANTS[name]).eval()
    path = openfastervit.save_checkpoint(model, tmp_path / "weights.safetensors")
    again = tiny(seed=3, **VARIANTS[name]).eval()
    openfastervit.load_checkpoint(again, path)
    for size in ((224, 224), (130, 260), (32, 32)):
        x = images(*size)
        with torch.no_grad():
            y = model(x)
            assert torch.equal(again(x), y)
        assert y.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_graphs(name: str) -> None:
    """Scripted, exported and compiled they compute the same."""
    model = tiny(**VARIANTS[name]).eval()
    x = images(200, 240)
    torch.compiler.reset()
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_everything(name: str) -> None:
    """At a size where carriers of carriers are in use."""
    model = tiny(**VARIANTS[name], img_size=512).train()
    model(images(512, 512, batch=2)).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    patterns = [pattern for pattern, _ in model.group_matcher()["blocks"]]
    for key, _ in model.stages.named_parameters(prefix="stages"):
        assert any(re.search(pattern, key) for pattern in patterns), key


def test_designs_are_where_they_were_asked_for() -> None:
    for attention, kinds in (
        ("global", [GlobalAttention, HierarchicalAttention]),
        (("hat", "global"), [HierarchicalAttention, GlobalAttention]),
    ):
        assert [type(mixer) for mixer in mixers(tiny(attention=attention))] == kinds
    stage2, stage3 = mixers(tiny(attention="window"))
    assert isinstance(stage2, HierarchicalAttention)
    assert isinstance(stage3, HierarchicalAttention)
    assert stage2.carrier_init is None


def test_the_rest_of_the_network_is_the_same() -> None:
    """Stem, convolutions, widths, depths, MLPs: the same parameters for all, attention aside."""
    shapes = {}
    for design in DESIGNS:
        model = tiny(attention=design)
        state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        mlps = [
            key for key, shape in state.items() if re.search(r"stages\.2\..*fc1\.weight", key) and shape == (256, 64)
        ]
        outside = {key: shape for key, shape in state.items() if "stages.2.attention" not in key}
        shapes[design] = outside
        assert outside == shapes["hat"]
        assert len(mlps) == (4 if design == "hat" else 2), "carriers have MLPs of their own"


@pytest.mark.parametrize("attention", ["swin", "", ("hat",), ("hat", "swin"), ("hat", "hat", "hat")])
def test_unknown_designs(attention: Any) -> None:
    with pytest.raises(
        ValueError, match=r"attention=.* give one of hat, window, shifted-window, twins, edgevit, global"
    ):
        tiny(attention=attention)


def test_the_released_layout_has_no_name_for_others() -> None:
    for options in (
        {"attention": "twins"},
        {"attention": "edgevit"},
        {"carrier_levels": 2},
        {"attention": ("hat", "twins")},
    ):
        with pytest.raises(CheckpointError, match="the released layout has no name for stages"):
            released_state_dict(tiny(**options))
    for options in ({"carrier_pooling": "aligned"}, {"mask_padding": True}):
        with pytest.raises(CheckpointError, match="the released layout cannot tell of"):
            released_state_dict(tiny(**options))
    # Attention in windows that is asked for carriers and their pooling, but has none.
    assert released_state_dict(tiny(carrier_pooling="aligned", img_size=64))


@pytest.mark.parametrize("options", [{"carrier_pooling": "aligned"}, {"mask_padding": True}])
def test_weights_of_a_network_that_computes_something_else(options: dict[str, Any], tmp_path: Path) -> None:
    """They fit, and a warning says what is not as it was."""
    path = openfastervit.save_checkpoint(tiny(**options), tmp_path / "weights.safetensors")
    (name, value) = next(iter(options.items()))
    with pytest.warns(UserWarning, match=f"saved from a network with {name}={value!r}"):
        openfastervit.create_model(HAT, checkpoint=path, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        openfastervit.create_model(HAT, checkpoint=path, **TINY, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"carrier_levels": 7}, "carrier_levels=7 is neither 1 nor 2"),
        ({"carrier_levels": True}, "carrier_levels=True is neither 1 nor 2"),
        ({"carrier_pooling": "mean"}, "carrier_pooling='mean'"),
        ({"mask_padding": "no"}, "mask_padding='no'"),
        ({"without": ["carriers"]}, "'carriers' is no part"),
        ({"carrier_levels": 2, "without": ["carrier_attention"]}, "no use for carriers of their own"),
    ],
)
@pytest.mark.parametrize("attention", ["hat", ("twins", "global")])
def test_bad_options_whatever_the_design(attention: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(attention=attention, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "twins", "carrier_levels": 2},
        {"attention": "window", "carrier_pooling": "aligned"},
        {"attention": ("twins", "global"), "mask_padding": True},
        {"attention": ("edgevit", "shifted-window"), "without": ["window_bias"]},
        {"hierarchical": (False,) * 4, "carrier_levels": 2},
    ],
)
def test_options_that_no_stage_takes(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no stage takes it"):
        tiny(**options)


def test_released_weights_do_not_fit_others(tmp_path: Path) -> None:
    path = openfastervit.save_checkpoint(tiny(), tmp_path / "weights.pth.tar", layout="released")
    with pytest.raises(CheckpointError, match=r"lacks stages\.2\.attention"):
        openfastervit.load_checkpoint(tiny(attention="edgevit"), path)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("windows", ["pad", "fit"])
def test_set_input_size(design: str, windows: Any) -> None:
    """Designs without windows are left alone; the others get windows that fit, and still answer at any size."""
    model = tiny(attention=(design, design)).eval()
    model.set_input_size((256, 320), windows)
    with torch.no_grad():
        assert model(images(256, 320)).isfinite().all()
    for mixer in mixers(model):
        if mixer.window_size is not None and windows == "fit":
            assert mixer.window_size != (7, 7)


def test_what_a_released_network_has_is_the_default() -> None:
    """The options, given as they are for the released networks, change nothing."""
    plain = tiny().eval()
    told = tiny(attention="hat", carrier_levels=1, carrier_pooling="released", mask_padding=False, without=()).eval()
    x = images(230, 170)
    with torch.no_grad():
        assert torch.equal(plain(x), told(x))
