"""The fused convolution in Triton's interpreter, against float64."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openfastervit.kernels.convolution import CONFIGS, Config, Norm, convolution, convolution_reference, pack_weight
from tests.kernels.errors import TYPES, check, distance

SMALL = Config(16, 16, 16, 4, 1)
LARGE = Config(128, 256, 64, 8, 1)  # few programs: what the interpreter is quick with


def expected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    norm: Norm | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The definition once more, in float64: the sum over the kernel's cells, each a product of shifted maps."""
    x, weight = x.double(), weight.double()
    if norm is not None:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + norm[2]).sqrt()
        x = x * norm[0].double()[:, None, None] + norm[1].double()[:, None, None]
    x = F.pad(x, (padding,) * 4)
    side = weight.shape[2]
    rows, columns = ((size - side) // stride + 1 for size in x.shape[2:])
    y = torch.zeros(len(x), len(weight), rows, columns, dtype=torch.float64)
    for i, j in itertools.product(range(side), range(side)):
        part = x[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        y += torch.einsum("bchw,oc->bohw", part, weight[:, :, i, j])
    if bias is not None:
        y = y + bias.double()[:, None, None]
    if activation == "gelu":
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
    if activation == "relu":
        y = y * (y > 0)
    return y if residual is None else y + residual.double()


def inputs(
    batch: int, channels: int, size: tuple[int, int], out: int, side: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out, channels, side, side) / (channels * side**2) ** 0.5
    return x, weight.to(dtype), torch.randn(out).to(dtype)


def a_norm(channels: int, dtype: torch.dtype = torch.float32) -> Norm:
    return torch.randn(channels).to(dtype), torch.randn(channels).to(dtype), 1e-6


def compare(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, config: Config | None = None, **options: Any
) -> None:
    found = convolution(x, weight, bias, config=config, **options)
    assert found.is_contiguous(memory_format=torch.channels_last)
    check(found, expected(x, weight, bias, **options), convolution_reference(x, weight, bias, **options))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("channels", "out"), [(64, 64), (80, 80), (96, 192), (128, 64), (196, 196), (196, 392)])
def test_widths_of_the_family(channels: int, out: int, dtype: torch.dtype) -> None:
    x, weight, bias = inputs(2, channels, (5, 7), out, dtype=dtype)
    compare(x, weight, bias, LARGE, activation="gelu")
    compare(x, weight, bias, LARGE, residual=torch.randn(2, out, 5, 7).to(dtype))
    compare(x, weight, None, LARGE, stride=2, norm=a_norm(channels, dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (17, 9)])
def test_the_stem(size: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight, bias = inputs(2, 3, size, 64, dtype=dtype)
    compare(x, weight, bias, stride=2, activation="relu")


@pytest.mark.parametrize(
    ("has_norm", "activation", "has_bias"),
    list(itertools.product((True, False), ("none", "relu", "gelu"), (True, False))),
)
def test_everything_with_everything(has_norm: bool, activation: str, has_bias: bool) -> None:
    for channels, residual in itertools.product((3, 20), (None, torch.randn(3, 18, 3, 2))):
        x, weight, bias = inputs(3, channels, (5, 4), 18)
        norm = a_norm(channels) if has_norm else None
        options = {"stride": 2, "norm": norm, "activation": activation, "residual": residual}
        compare(x, weight, bias if has_bias else None, SMALL, **options)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config(config: Config) -> None:
    x, weight, bias = inputs(2, 33, (5, 7), 140)
    compare(x, weight, bias, config, norm=a_norm(33), activation="gelu")


@given(
    st.integers(1, 3),
    st.integers(1, 24),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 24),
    st.sampled_from((1, 2, 3, 5)),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from(TYPES),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_sizes_that_no_tile_divides(
    batch: int,
    channels: int,
    size: tuple[int, int],
    out: int,
    side: int,
    stride: int,
    padding: int,
    dtype: torch.dtype,
    has_norm: bool,
) -> None:
    x, weight, bias = inputs(batch, channels, size, out, side, dtype)
    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "norm": a_norm(channels, dtype) if has_norm else None,
    }
    if min(size) + 2 * padding < side:
        with pytest.raises(ValueError, match="smaller than the kernel"):
            convolution(x, weight, bias, **options)
        return
    compare(x, weight, bias, SMALL, **options)


def test_maps_that_are_not_channels_last() -> None:
    x, weight, bias = inputs(2, 20, (6, 5), 12)
    residual = torch.randn(2, 12, 6, 5)
    exact = expected(x, weight, bias, residual=residual)
    for other in (
        x.contiguous(),
        torch.randn(2, 40, 6, 5)[:, ::2].copy_(x),
        torch.randn(2, 20, 8, 5)[:, :, 1:7].copy_(x),
    ):
        found = convolution(other, weight, bias, residual=residual, config=SMALL)
        assert distance(found, exact) < 1e-5
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_packed_weight() -> None:
    x, weight, bias = inputs(2, 20, (6, 5), 12)
    exact = expected(x, weight, bias)
    packed = pack_weight(weight)
    assert packed.shape == (12, 3, 3, 20)
    assert packed.is_contiguous()
    assert distance(convolution(x, packed, bias, packed=True), exact) < 1e-5
    assert distance(convolution_reference(x, packed, bias, packed=True), exact) < 1e-5
    lying_so = weight.contiguous(memory_format=torch.channels_last)
    assert pack_weight(lying_so).data_ptr() == lying_so.data_ptr()
    with pytest.raises(ValueError, match="weight must be"):
        pack_weight(weight[0])


def test_padding_is_zero_behind_the_norm() -> None:
    """A map of one pixel: of nine cells eight are padding, whatever the norm's shift is."""
    x, weight, _ = inputs(1, 20, (1, 1), 12)
    factor, shift = torch.zeros(20), torch.full((20,), 7.0)
    found = convolution(x, weight, norm=(factor, shift, 1e-6))
    assert torch.allclose(found.flatten(), 7 * weight[:, :, 1, 1].sum(1), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bias_and_norm_of_float32(dtype: torch.dtype) -> None:
    x, weight, _ = inputs(2, 20, (4, 5), 24, dtype=dtype)
    bias, norm = torch.randn(24), a_norm(20)
    found = convolution(x, weight, bias, norm=norm)
    assert found.dtype == dtype
    assert distance(found, expected(x, weight, bias, norm=norm)) < torch.finfo(dtype).eps


def test_variance_of_pixels_far_from_zero() -> None:
    x, weight, _ = inputs(2, 40, (4, 5), 16)
    x = x + 3000
    norm = a_norm(40)
    exact, plain = expected(x, weight, norm=norm), convolution_reference(x, weight, norm=norm)
    assert distance(convolution(x, weight, norm=norm), exact) < 2 * distance(plain, exact) + 1e-6


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    empty = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        made.append(empty(*arguments, **options).fill_(torch.nan))
        return made[-1]

    x, weight, bias = inputs(3, 20, (5, 7), 19)
    monkeypatch.setattr(torch, "empty", poisoned)
    found = convolution(x, weight, bias, norm=a_norm(20), config=SMALL)
    assert len(made) == 2  # the result, and mean and deviation of each pixel
    assert all(tensor.isfinite().all() for tensor in made)
    assert found.isfinite().all()


def test_no_images() -> None:
    assert convolution(torch.empty(0, 4, 6, 6), torch.randn(5, 4, 3, 3)).shape == (0, 5, 6, 6)


X, WEIGHT = torch.randn(2, 4, 6, 6), torch.randn(5, 4, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X.double()}, "x is torch.float64.*convolution_reference"),
        ({"x": X[0]}, r"x must be \(B, C, H, W\)"),
        ({"weight": torch.randn(5, 3, 3, 3)}, r"weight must be \(O, 4, k, k\)"),
        ({"weight": torch.randn(5, 4, 3, 1)}, "as many rows as columns"),
        ({"packed": True}, r"weight must be \(O, k, k, 4\)"),
        ({"weight": WEIGHT.half()}, "weight is torch.float16"),
        ({"weight": WEIGHT.to("meta")}, "weight is on meta, x on cpu"),
        ({"weight": WEIGHT.clone().requires_grad_()}, "weight requires a gradient"),
        ({"bias": torch.randn(4)}, r"bias must be \[5\], not \[4\]"),
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1"),
        ({"activation": "silu"}, "activation='silu' is none of none, relu, gelu"),
        ({"norm": (torch.ones(5), torch.ones(4), 1e-6)}, r"norm\[0\] must be \[4\]"),
        ({"norm": (torch.ones(4), torch.ones(4).half(), 1e-6)}, r"norm\[1\] is torch.float16"),
        ({"residual": torch.randn(2, 5, 6, 5)}, r"residual must be \[2, 5, 6, 6\]"),
        ({"config": Config(16, 16, 20, 4, 1)}, "config has block_k=20"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convolution(**({"x": X, "weight": WEIGHT} | options))


def test_without_a_chip_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="x is on cpu: kernels run on GPUs"):
        convolution(X, WEIGHT)


def test_reference_is_of_any_type_and_differentiable() -> None:
    x, weight, bias = (tensor.double().requires_grad_() for tensor in inputs(2, 4, (5, 6), 7))
    options: dict[str, Any] = {"stride": 2, "norm": a_norm(4, torch.float64), "activation": "gelu"}
    found = convolution_reference(x, weight, bias, **options)
    assert distance(found, expected(x, weight, bias, **options)) < 1e-12
    found.sum().backward()
    assert weight.grad is not None
