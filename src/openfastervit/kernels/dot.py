"""Products of blocks, on chips and in Triton's interpreter."""

import triton
import triton.language as tl

from openfastervit.kernels.availability import interpreted

_INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b):
    """``a @ b``, summed in float32; of float32 blocks without rounding them first (no TF32).

    The interpreter cannot multiply bfloat16. There blocks become float32 before: their products are exact in it, as
    they are on a chip.
    """
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
