"""How far kernels may be from the truth."""

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative, by norm."""
    assert found.shape == exact.shape
    assert exact.dtype == torch.float64
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check(found: Tensor, exact: Tensor, plain: Tensor) -> None:
    """A kernel's result is as near to float64 as plain torch in the same type is: it rounds no more often."""
    assert found.dtype == plain.dtype
    assert not found.isnan().any()
    if found.dtype == torch.float32:
        assert distance(found, exact) < 1e-5
    assert distance(found, exact) <= 2 * distance(plain, exact) + torch.finfo(found.dtype).eps / 10
