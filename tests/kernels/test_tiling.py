"""Sizes of tiles, and rounding."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from openfastervit.kernels.tiling import CONFIGS, FULL_PRECISION, check_config, check_counts, default_config, rounded


@given(
    st.integers(1, 10**7), st.integers(1, 10**4), st.integers(1, 10**4), st.sampled_from([torch.float16, torch.float32])
)
def test_default_is_a_config_that_runs(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    config = default_config(m, n, k, dtype=dtype)
    assert config in (*CONFIGS, FULL_PRECISION)
    check_config(config)


def test_large_products_have_large_tiles_and_small_ones_many() -> None:
    large = default_config(100_000, 1536, 512)
    assert large.block_m * large.block_n == 128 * 128
    small = default_config(49, 1536, 512)
    assert triton.cdiv(49, small.block_m) * triton.cdiv(1536, small.block_n) >= 132
    # 80 channels in two steps of 64 would be more padding than three of 32 are.
    assert default_config(100_000, 64, 80).block_k == 32


def test_counts_beyond_32_bits_are_refused() -> None:
    check_counts("x", 2**31 - 1)
    with pytest.raises(ValueError, match="x is too large"):
        check_counts("x", 2**31)


@triton.jit
def _round(x_ptr, y_ptr, COUNT: tl.constexpr):  # noqa: N803
    i = tl.arange(0, COUNT)
    tl.store(y_ptr + i, rounded(tl.load(x_ptr + i), y_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rounds_as_torch_does(dtype: torch.dtype) -> None:
    """Random bits, so that every exponent is among them; ties, infinities and what is no number too."""
    x = torch.randint(-(2**31), 2**31, (4096,)).to(torch.int32).view(torch.float32)
    x[:1024] = torch.randn(1024)
    x[1024:2048] = torch.randn(1024).view(torch.int32).bitwise_and_(-(2**15)).view(torch.float32)  # ties in bfloat16
    x[2048:2053] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    y = torch.empty(4096, dtype=dtype)
    _round[(1,)](x, y, COUNT=4096)
    assert torch.equal(y.isnan(), x.isnan())
    normal = ~x.isnan() & ((x.abs() >= torch.finfo(dtype).tiny) | (x == 0))
    assert torch.equal(y[normal], x.to(dtype)[normal])
