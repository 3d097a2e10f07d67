"""What the launchers launch compiles for chips, to their machine code, where there is none: with tensor cores, with
copies under way while it multiplies, and with few values that find no register.
"""

import functools
import platform

import pytest
import torch
from torch import Tensor

from tests.kernels.compiling import SHARED_MEMORY, Compiled, compile_for, compiled

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="Triton's compiler for CUDA is on Linux"
)

CASES = [("bfloat16", 80), ("bfloat16", 90), ("float32", 90)]


def launch_linear(name: str) -> None:
    """The products of an attention block of fastervit_0, for one image, and of fastervit_4, for 128."""
    from openfastervit.kernels.linear import linear

    make = functools.partial(torch.empty, dtype=getattr(torch, name))
    for rows, dim in ((49, 512), (128 * 212, 784)):
        x, wide = make(rows, dim), make(rows, 4 * dim)
        linear(x, make(3 * dim, dim), make(3 * dim), norm_eps=1e-5)
        linear(x, make(dim, dim), make(dim), residual=x.clone(), table=make(49, dim), table_rows=(16, 1, 48))
        linear(x, make(4 * dim, dim), make(4 * dim), norm_eps=1e-5, activation="gelu")
        linear(wide, make(dim, 4 * dim), make(dim), residual=x, out=x)


def launch_convolution(name: str) -> None:
    """The convolutions of fastervit_0 and fastervit_4."""
    from openfastervit.kernels.convolution import convolution

    make = functools.partial(torch.empty, dtype=getattr(torch, name))

    def image(*shape: int) -> Tensor:
        return make(shape, memory_format=torch.channels_last)

    convolution(image(16, 3, 224, 224), make(64, 3, 3, 3), make(64), stride=2, activation="relu")
    for dim in (64, 196):
        x = image(16, dim, 56, 56)
        convolution(x, make(dim, dim, 3, 3), make(dim), activation="gelu")
        convolution(x, make(dim, dim, 3, 3), make(dim), residual=x)
        convolution(x, make(2 * dim, dim, 3, 3), stride=2, norm=(make(dim), make(dim), 1e-6))


def compile_moments() -> list[Compiled]:
    from openfastervit.kernels.convolution import _pixel_moments

    signature = {"x_ptr": "*bf16", "moments_ptr": "*fp32", "pixels": "i32", "eps": "fp32"}
    constants = {"C": 64, "ROWS": 64, "TILE": 64}
    return [compile_for(_pixel_moments, signature, constants, 90, aligned=("x_ptr", "moments_ptr"))]


def check(kernels: list[Compiled], dtype: str, capability: int) -> None:
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY[capability]
        assert kernel.registers * kernel.warps * 32 <= 65_536
        assert kernel.spilled <= 128, kernel
    products = [kernel for kernel in kernels if kernel.kernel != "_pixel_moments"]
    if dtype == "float32":
        assert not any(kernel.products for kernel in products)  # they would round to TF32
    else:
        assert all(kernel.products for kernel in products)
        assert any(kernel.products == "wgmma" for kernel in products) == (capability >= 90)


@pytest.mark.parametrize(("dtype", "capability"), CASES)
def test_linear(dtype: str, capability: int) -> None:
    kernels = compiled("tests.kernels.test_compiling:launch_linear", capability, dtype)
    assert {kernel.kernel for kernel in kernels} == {"_linear"}
    assert all(kernel.asynchronous for kernel in kernels)
    check(kernels, dtype, capability)


@pytest.mark.parametrize(("dtype", "capability"), CASES)
def test_convolution(dtype: str, capability: int) -> None:
    kernels = compiled("tests.kernels.test_compiling:launch_convolution", capability, dtype)
    assert {kernel.kernel for kernel in kernels} == {"_convolution", "_pixel_moments"}
    # Pixels of an image with three channels lie at odd places, which asynchronous copies cannot read.
    assert sum(kernel.kernel == "_convolution" and not kernel.asynchronous for kernel in kernels) <= 1
    check(kernels, dtype, capability)


def test_one_kernel_by_its_signature() -> None:
    (kernel,) = compiled("tests.kernels.test_compiling:compile_moments", 90)
    assert kernel.kernel == "_pixel_moments"
    assert 0 < kernel.registers <= 255


def test_what_does_not_compile_is_told() -> None:
    with pytest.raises(AssertionError, match=r"(?s)launch_nothing.*has no attribute"):
        compiled("tests.kernels.test_compiling:launch_nothing", 90)
