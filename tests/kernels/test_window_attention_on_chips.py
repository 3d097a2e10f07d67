"""Window attention compiled for Ampere and Hopper: what the interpreter forgives, a compiler does not."""

import pytest
import torch

from openfastervit.kernels.window_attention_kernels import Layout, launch, launch_backward
from tests.kernels.compiling import compiled

SHAPES = {
    "fastervit_0": (7, 4, 2, 8, 32),
    "fastervit_1": (7, 4, 2, 8, 40),
    "fastervit_4": (7, 4, 2, 16, 49),
    "fastervit_3": (7, 4, 2, 8, 64),
    "one window": (7, 1, 0, 16, 32),
    "carriers": (4, 1, 0, 8, 32),
    "144": (12, 1, 0, 16, 49),
}
"""Window, windows, carrier size, heads, width of a head."""


def launches(shape: list[int], dtype: str) -> None:
    """Forward and backward, as training launches them."""
    side, windows, c, heads, width = shape
    counts = (2, 2) if windows == 4 else (1, 1)
    layout = Layout(heads, width, (side, side), counts, c)
    kind = getattr(torch, dtype)

    def of(channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = torch.zeros(2, counts[0] * side, counts[1] * side, channels, dtype=kind)
        return tokens, torch.zeros(2, counts[0] * c, counts[1] * c, channels, dtype=kind) if c else None

    inputs, results, grads = of(3 * heads * width), of(heads * width), of(heads * width)
    gradients = of(3 * heads * width)
    table = torch.zeros(heads, 2 * side - 1, 2 * side - 1)
    logsum = torch.zeros(2 * windows, heads, layout.tokens)
    launch(*inputs, table, *results, layout, 0.1, logsum=logsum)
    launch_backward(grads, inputs, results, gradients, table, logsum, layout, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "dtype", "capability"),
    [
        ("fastervit_0", "bfloat16", 90),
        ("fastervit_4", "float16", 90),
        ("fastervit_3", "bfloat16", 80),
        ("144", "bfloat16", 90),
        ("carriers", "float32", 90),
    ],
)
def test_compiles(name: str, dtype: str, capability: int) -> None:
    found = compiled(f"{__name__}:launches", capability, SHAPES[name], dtype)
    kernels = {kernel.kernel for kernel in found}
    expected = {"_forward", "_backward_of_one_block"}
    if name == "144":
        expected = {"_forward", "_backward_of_keys", "_backward_of_queries", "_backward_of_bias"}
    assert kernels == expected
    for kernel in found:
        assert kernel.spilled <= 64, kernel
        assert kernel.products if dtype != "float32" else not kernel.products, kernel
