"""Folding gives the network's own logits: every variant's structure, any size, window, pooling and precision."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import openfastervit
from openfastervit import FasterViT
from openfastervit.inference.fold import fold
from openfastervit.inference.folded_attention import FoldedAttention, foldable
from openfastervit.layers import HierarchicalAttention
from tests.inference.lively import difference, lively
from tests.networks import KINDS, NAMES, SCALED, images, wake

WIDE = {"dim": 49, "num_heads": (1, 1, 4, 8)}
"""Heads of 49 channels, as fastervit_4 has."""
LARGE_WINDOWS = ("fastervit_4_w24_384", "fastervit_4_w32_512", "fastervit_4_w48_768")
"""Like fastervit_4_w14_224 but for windows of up to 2304 tokens, which take long."""
SIZES = ((224, 224), (100, 160), (33, 257), (64, 96), (32, 32))
"""Whole windows, padded ones, oblong, one window in stage 2, one cell in stage 3."""


@torch.no_grad()
def worst(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    return difference(folded(x), model(x))


def test_lively_networks_hear_their_carriers() -> None:
    """What the other tests rest on: 1 % of one layer shows a million times above their bound for float64."""
    x = images(224, 224)
    for layer in (
        "stages.2.attention.carrier_init.conv.weight",
        "stages.2.attention.blocks.0.carrier.attn.proj.weight",
    ):
        model = lively()
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(layer).mul_(1.01)
        assert worst(model, changed, x) > 1e-6, layer


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE_WINDOWS else name for name in NAMES]
)
def test_every_variant(name: str) -> None:
    _check(lively(name), SIZES)


@pytest.mark.parametrize("name", KINDS)
def test_odd_heads(name: str) -> None:
    _check(lively(name, **WIDE), SIZES[:3])


def _check(model: FasterViT, sizes: tuple[tuple[int, int], ...]) -> None:
    exact = copy.deepcopy(model).double()
    for size in sizes:
        x = images(*size)
        for target in (size, None):
            assert worst(model, fold(model, target), x) < 1e-5, (size, target)
            assert worst(exact, fold(exact, target), x.double()) < 1e-12, (size, target)


AS_THEY_ARE: list[dict[str, Any]] = [
    {"carrier_levels": 2, "window_sizes": (7, 7, 3, 3)},
    {"mask_padding": True},
    {"without": ("carrier_attention", "window_bias")},
    *({"attention": design} for design in ("shifted-window", "twins", "edgevit", "global")),
]
"""Attention of stage 2 that is not folded."""


@torch.no_grad()
@pytest.mark.parametrize("options", AS_THEY_ARE, ids=str)
def test_other_attention_is_kept(options: dict[str, Any]) -> None:
    model = lively(**options, depths=(1, 1, 2, 1))
    kept = model.stages[2].attention
    for target in ((100, 160), None):
        folded = fold(model, target)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in (folded.stem, *folded.stages[:2].modules()))
        frozen = folded.stages[2][1]
        assert type(frozen) is type(kept)
        assert not frozen.training
        own = {tensor.data_ptr() for tensor in folded.parameters()}
        assert own.isdisjoint(tensor.data_ptr() for tensor in model.parameters())
        x = images(100, 160)
        low = difference(fold(model, target).to(torch.bfloat16)(x.bfloat16()), model(x))
        assert low < 3 * difference(copy.deepcopy(model).bfloat16()(x.bfloat16()), model(x))
    _check(model, SIZES[1:3])


def test_what_is_folded_of_hierarchical_attention() -> None:
    """All that the released networks have, either pooling, and what options would change but for carriers."""
    folded = fold(lively(carrier_pooling="aligned", carrier_levels=2, img_size=64), 224)  # no carriers at that size
    assert all(isinstance(stage[1], FoldedAttention) for stage in folded.stages[2:])
    folded = fold(lively(carrier_pooling="aligned", hierarchical=(False, False, True, True)), 448)
    assert all(isinstance(stage[1], FoldedAttention) for stage in folded.stages[2:])
    attention = HierarchicalAttention(8, 2)
    assert foldable(attention)

    class Other(HierarchicalAttention):
        """May compute something else."""

    assert not foldable(Other(8, 2))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("size", [(112, 160), None])
def test_low_precision(name: str, dtype: torch.dtype, bound: float, size: tuple[int, int] | None) -> None:
    """Folding and then rounding loses as much as rounding alone, give or take."""
    model = lively(name, **WIDE)
    x = images(112, 160)
    plain = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        expected, rounded = model(x), plain(x.to(dtype))
        for folded in (fold(model, size).to(dtype), fold(plain, size)):
            found = folded(x.to(dtype))
            assert found.dtype == dtype
            assert difference(found, expected) < bound
            assert difference(found, expected) < 3 * difference(rounded, expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    carrier = draw(st.integers(1, 3), label="carrier_size")
    sides = st.integers(carrier, 6)
    windows = tuple(draw(st.tuples(sides, sides), label=f"window {i}") for i in range(2))
    hierarchical = draw(st.sampled_from([(True, False), (True, True), (False, False)]), label="hierarchical")
    height, width = draw(st.tuples(st.integers(32, 150), st.integers(32, 150)), label="size")
    channels = draw(st.sampled_from([1, 3, 4]), label="in_chans")
    model = lively(
        draw(st.sampled_from(KINDS), label="variant"),
        seed=draw(st.integers(0, 9)),
        dim=draw(st.sampled_from([4, 9, 12]), label="dim"),
        stem_dim=4,
        depths=(1, 1, 2, 1),
        num_heads=(1, 1, draw(st.sampled_from([1, 4])), 2),
        window_sizes=((7, 7), (7, 7), *windows),
        carrier_size=carrier,
        hierarchical=(False, False, *hierarchical),
        carrier_pooling=draw(st.sampled_from(["released", "aligned"] if any(hierarchical) else ["released"])),
        layer_scale=draw(st.sampled_from([None, 0.5]), label="layer_scale"),
        propagate_carriers=draw(st.booleans(), label="propagate"),
        num_classes=draw(st.sampled_from([0, 1, 5]), label="classes"),
        in_chans=channels,
        global_pool=draw(st.sampled_from(["avg", "max", "avgmax", "catavgmax", "fast", "fastmax"]), label="pool"),
    ).double()
    x = images(height, width, channels=channels, dtype=torch.float64)
    multiple = draw(st.sampled_from([1, 8, 16]), label="head_multiple")
    for target in ((height, width), None):
        assert worst(model, fold(model, target, head_multiple=multiple), x) < 1e-12


@pytest.mark.parametrize("size", [(224, 224), (100, 131), None])
@pytest.mark.parametrize("name", KINDS)
def test_maps_are_the_networks(name: str, size: tuple[int, int] | None) -> None:
    model = lively(name).double()
    x = images(*(size or (96, 240)), dtype=torch.float64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)
        for found, map_ in zip(fold(model, size).forward_maps(x), expected, strict=True):
            assert found.shape == map_.shape
            assert difference(found, map_) < 1e-12


@pytest.mark.parametrize("size", [(96, 128), None])
def test_the_original_is_left_alone(size: tuple[int, int] | None) -> None:
    model = lively(SCALED).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model, size)
    assert model.training
    assert not folded.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with torch.no_grad():
        for tensor in (*folded.parameters(), *folded.buffers()):
            tensor.zero_()  # shares no memory
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_calls_change_nothing() -> None:
    folded = fold(lively(), None)
    before = {key: value.clone() for key, value in (*folded.named_parameters(), *folded.named_buffers())}
    with torch.no_grad():
        first = folded(images(96, 128))
        folded(images(160, 64))
        assert torch.equal(folded(images(96, 128)), first)
    assert all(torch.equal(before[key], value) for key, value in (*folded.named_parameters(), *folded.named_buffers()))


@pytest.mark.parametrize(("name", "size"), [*((name, (112, 144)) for name in KINDS), (SCALED, None)])
def test_copies_and_exports(name: str, size: tuple[int, int] | None) -> None:
    folded = fold(lively(name), size)
    x = images(112, 144)
    with torch.no_grad():
        expected = folded(x)
        assert torch.equal(copy.deepcopy(folded)(x), expected)
        twin = fold(lively(name), size)
        twin.load_state_dict(folded.state_dict())
        assert torch.equal(twin(x), expected)
        program = torch.export.export(folded, (x,), dynamic_shapes=({0: Dim("batch")},))
        for batch in (1, 3):
            y = images(112, 144, batch=batch)
            torch.testing.assert_close(program.module()(y), folded(y), rtol=1e-5, atol=1e-5)


def test_convolutions_lie_channels_last() -> None:
    for module in fold(lively(), 224).modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_another_size_is_refused() -> None:
    folded = fold(lively(), (96, 128))
    with pytest.raises(ValueError, match="images are 128 x 96, the network was folded for 96 x 128"):
        folded(images(128, 96))
    with pytest.raises(ValueError, match="4 channels, the network takes 3"):
        folded(images(96, 128, channels=4))


def test_what_cannot_be_folded() -> None:
    with pytest.raises(TypeError, match="only a FasterViT can be folded, this is a Conv2d"):
        fold(nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head_multiple=0"):
        fold(lively(), head_multiple=0)
    with pytest.raises(ValueError, match="16 x 224; height and width must be at least 32"):
        fold(lively(), (16, 224))
    with pytest.raises(ValueError, match="neither a side nor"):
        fold(lively(), (1, 2, 3))


def _full(name: str) -> FasterViT:
    """At full size; its own initialisation draws a billion numbers twice, and takes minutes."""
    torch.manual_seed(0)
    model = openfastervit.create_model(name, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0)
    wake(model)
    return model


@pytest.mark.timeout(1200)  # the largest take minutes on a single core
@pytest.mark.parametrize(
    "name", ["fastervit_0", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "fastervit_0")]
)
def test_at_full_width(name: str) -> None:
    model = _full(name)
    side = model.img_size[0]
    assert worst(model, fold(model, side), images(side, side, batch=1)) < 1e-5
