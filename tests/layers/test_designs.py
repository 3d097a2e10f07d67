"""The rivals against others' implementations and loops, and what all designs have in common."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import swin_transformer, twins
from torch import Tensor, nn

from openfastervit.layers import (
    EdgeViTAttention,
    GlobalAttention,
    HierarchicalAttention,
    ShiftedWindowAttention,
    TokenMixer,
    TransformerLayer,
    TwinsAttention,
)
from tests.networks import wake

DESIGNS: dict[str, Callable[..., TokenMixer]] = {
    "hat": HierarchicalAttention,
    "shifted-window": ShiftedWindowAttention,
    "twins": TwinsAttention,
    "edgevit": EdgeViTAttention,
    "global": GlobalAttention,
}


def make(design: Callable[..., TokenMixer], *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    module = design(*args, **options).double().eval()
    wake(module)
    return module


@torch.no_grad()
def copy_layer(ours: TransformerLayer, theirs: Any) -> None:
    """Weights of ours into a block of timm, whose names are the same but for the attention's bias."""
    state = ours.state_dict()
    theirs.load_state_dict({k: v for k, v in state.items() if not k.startswith("bias.")}, strict=False)
    if ours.bias is not None:
        ours.bias.mlp.fc2.weight.zero_()  # the same for all pairs: softmax does not see it


@pytest.mark.parametrize("size", [(8, 12), (16, 4), (4, 4)])
def test_shifted_windows_are_timms(size: tuple[int, int]) -> None:
    """Swin's blocks, on maps of whole windows, with weights of ours; a table of zeros for a bias that is constant."""
    ours = make(ShiftedWindowAttention, 16, 2, window_size=4, depth=2)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    y = x.permute(0, 2, 3, 1)
    with torch.no_grad():
        for i, block in enumerate(ours.blocks):
            theirs = swin_transformer.SwinTransformerBlock(
                16, size, num_heads=2, window_size=4, shift_size=2 if i else 0, always_partition=False
            )
            theirs = theirs.double().eval()
            copy_layer(block.window, theirs)
            theirs.attn.relative_position_bias_table.zero_()
            y = theirs(y)
        torch.testing.assert_close(ours(x), y.permute(0, 3, 1, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 12), (4, 4)])
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_twins_are_timms(size: tuple[int, int], reduction: int) -> None:
    """LSA, the positional convolution and GSA of Twins-SVT, with weights of ours."""
    ours = make(TwinsAttention, 16, 2, window_size=4, reduction=reduction, depth=2)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    local, sparse = ours.blocks
    position = twins.PosConv(16, 16).double()
    position.load_state_dict({f"proj.0.{key}": value for key, value in ours.position.state_dict().items()})
    first = twins.Block(16, 2, ws=4).double().eval()
    copy_layer(local.window, first)
    second = twins.Block(16, 2, ws=1, sr_ratio=reduction).double().eval()
    names = {
        "reduce.": "attn.sr.",
        "reduce_norm.": "attn.norm.",
        "q.": "attn.q.",
        "kv.": "attn.kv.",
        "proj.": "attn.proj.",
    }
    state = {}
    for key, value in sparse.state_dict().items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), "")
        state[names.get(prefix, "") + key.removeprefix(prefix)] = value
    second.load_state_dict(state)
    with torch.no_grad():
        y = x.flatten(2).transpose(1, 2)
        y = position(first(y, size), size)
        y = second(y, size)
        torch.testing.assert_close(ours(x), y.transpose(1, 2).unflatten(2, size), rtol=1e-6, atol=1e-6)


def test_edgevit_is_its_definition() -> None:
    """One bottleneck, token by token: neighbours, delegates, and what delegates hand to their cells."""
    r, k, dim, heads = 2, 3, 8, 2
    ours = make(EdgeViTAttention, dim, heads, sampling=r, kernel_size=k, depth=2)
    x = torch.randn(1, dim, 5, 6, dtype=torch.float64)
    local, sparse = ours.blocks

    def at(grid: Tensor, i: int, j: int) -> Tensor:
        inside = 0 <= i < grid.shape[0] and 0 <= j < grid.shape[1]
        return grid[i, j] if inside else torch.zeros_like(grid[0, 0])

    def neighbours(grid: Tensor, conv: Any) -> Tensor:
        reach = conv.kernel_size[0] // 2
        out = torch.zeros_like(grid)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                out[i, j] = conv.bias
                for a in range(-reach, reach + 1):
                    for b in range(-reach, reach + 1):
                        out[i, j] += conv.weight[:, 0, a + reach, b + reach] * at(grid, i + a, j + b)
        return out

    def pointwise(grid: Tensor, conv: Any) -> Tensor:
        return grid @ conv.weight[:, :, 0, 0].T + conv.bias

    with torch.no_grad():
        grid = x[0].permute(1, 2, 0)
        grid = grid + neighbours(grid, local.position)
        mixer = local.mixer
        y = pointwise(
            nn.functional.layer_norm(grid, (dim,), local.norm1.weight, local.norm1.bias, local.norm1.eps), mixer.conv1
        )
        grid = grid + pointwise(neighbours(y, mixer.depthwise), mixer.conv2)
        grid = grid + local.mlp(local.norm2(grid))
        y = nn.functional.layer_norm(grid, (dim,), sparse.norm1.weight, sparse.norm1.bias, sparse.norm1.eps)
        places = [(i, j) for i in range(0, 5, r) for j in range(0, 6, r)]
        heard = sparse.mixer.attn(torch.stack([y[place] for place in places])[None])[0]
        handed = torch.zeros_like(grid)
        for (i, j), token in zip(places, heard, strict=True):
            for a in range(r):
                for b in range(r):
                    if i + a < 5 and j + b < 6:
                        kernel = sparse.mixer.propagate
                        handed[i + a, j + b] = token * kernel.weight[:, 0, a, b] + kernel.bias
        grid = grid + pointwise(handed, sparse.mixer.proj)
        grid = grid + sparse.mlp(sparse.norm2(grid))
        torch.testing.assert_close(ours(x)[0].permute(1, 2, 0), grid, rtol=1e-10, atol=1e-11)


def test_full_attention_is_one_window() -> None:
    """And hierarchical attention with a window as large as the map."""
    ours = make(GlobalAttention, 16, 2, depth=2)
    one = make(HierarchicalAttention, 16, 2, window_size=(5, 6), depth=2, hierarchical=False)
    one.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), one(x))


@pytest.mark.parametrize("name", DESIGNS)
@given(height=st.integers(1, 17), width=st.integers(1, 17), depth=st.integers(1, 3))
@settings(max_examples=6)
def test_any_map(name: str, height: int, width: int, depth: int) -> None:
    """A map of the same size comes out, each image by itself, and gradients reach every parameter in use."""
    module = make(DESIGNS[name], 8, 2, depth=depth)
    x = torch.randn(3, 8, height, width, dtype=torch.float64)
    y = module(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    torch.testing.assert_close(module(x[1:2]), y[1:2], rtol=1e-9, atol=1e-9)
    y.sum().backward()


@pytest.mark.parametrize("name", DESIGNS)
def test_drop_path_and_recomputation(name: str) -> None:
    """Gradients with recomputation are those without, drop path included."""
    gradients = []
    for recompute in (False, True):
        module = make(DESIGNS[name], 8, 2, depth=2, drop_path=0.5, layer_scale=0.5).train()
        module.grad_checkpointing = recompute
        torch.manual_seed(1)
        module(torch.randn(4, 8, 9, 10, dtype=torch.float64)).square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide dim=8"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_heads": 2.0}, r"num_heads=2\.0"),
        ({"depth": 0}, "depth=0 is less than one block"),
        ({"depth": 1.5}, r"depth=1\.5 is less than one block, or no whole number"),
        ({"drop_path": [0.1]}, "1 rates for depth=2"),
        ({"drop_path": 1.0}, "1.0"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 8.0}, r"dim=8\.0"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DESIGNS[name](**{"dim": 8, "num_heads": 2, "depth": 2, **options})


@pytest.mark.parametrize(
    ("design", "options", "words"),
    [
        ("twins", {"reduction": 0}, "reduction=0"),
        ("twins", {"window_size": 0}, "window_size=0"),
        ("edgevit", {"sampling": 0}, "sampling=0"),
        ("twins", {"reduction": 1.5}, r"reduction=1\.5"),
        ("edgevit", {"kernel_size": 4}, "kernel_size=4 must be odd"),
        ("hat", {"carrier_size": 2.5}, r"carrier_size=2\.5"),
        ("hat", {"hierarchical": False, "carrier_pooling": "mean"}, "carrier_pooling='mean'"),
        ("shifted-window", {"window_size": (7, 7, 7)}, r"window_size=\(7, 7, 7\)"),
        ("hat", {"carrier_size": 8}, "carrier_size=8 is larger than the window 7 x 7"),
        ("hat", {"carrier_levels": 3}, "carrier_levels=3 is neither 1 nor 2"),
        ("hat", {"carrier_pooling": "mean"}, "carrier_pooling='mean'"),
        ("hat", {"without": ["carriers"]}, "'carriers' is no part"),
        ("hat", {"without": "carriers"}, "'carriers' is no part"),
    ],
)
def test_bad_options_of_one(design: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DESIGNS[design](8, 2, **options)


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 4, 8, 8), (1, 8, 0, 4)])
def test_what_is_no_map(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a map \(B, 8, H, W\)"):
        DESIGNS[name](8, 2)(torch.zeros(shape))


@pytest.mark.parametrize("name", ["edgevit", "global"])
def test_no_windows_to_set(name: str) -> None:
    with pytest.raises(ValueError, match="has no windows"):
        DESIGNS[name](8, 2).set_window_size(5)
