"""What all stages of attention have in common: a map in, a map out, for any height and width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def window_pair(window_size: int | Sequence[int], name: str = "window_size") -> tuple[int, int]:
    """``(h, w)`` from a side or a pair. Raises ``ValueError`` where that is not one or two positive integers."""
    pair = tuple(window_size) if isinstance(window_size, Sequence) else (window_size, window_size)
    if len(pair) != 2 or any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in pair):
        raise ValueError(f"{name}={window_size!r} is neither a positive side nor a pair (height, width)")
    return pair


def is_whole(number: object) -> bool:
    """Whether that is an ``int``, and no truth value."""
    return isinstance(number, int) and not isinstance(number, bool)


def check_whole(name: str, number: int, least: int) -> None:
    """Raise ``ValueError`` unless an option is a whole number of at least ``least``."""
    if not is_whole(number) or number < least:
        raise ValueError(f"{name}={number!r} must be a whole number, at least {least}")


class TokenMixer(nn.Module):
    """A stage of attention. Subclasses set ``blocks``, a ``ModuleList``, and define ``forward``.

    Args:
        dim: Channels ``C`` of the map.
        num_heads: Heads; must divide ``dim``.
        depth: Blocks, each one attention and one MLP.
        window_size: Side of a window, or ``(height, width)``; None where the attention has no windows.

    Raises:
        ValueError: If an option is out of range: the message names it.
    """

    window_size: tuple[int, int] | None

    def __init__(self, dim: int, num_heads: int, *, depth: int, window_size: int | Sequence[int] | None) -> None:
        super().__init__()
        check_whole("dim", dim, 1)
        if not is_whole(num_heads) or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads!r} does not divide dim={dim}; choose a divisor of dim")
        if not is_whole(depth) or depth < 1:
            raise ValueError(f"depth={depth!r} is less than one block, or no whole number")
        self.dim = dim
        self.window_size = None if window_size is None else window_pair(window_size)
        self.grad_checkpointing = False

    @torch.jit.ignore
    def set_window_size(self, window_size: int | Sequence[int]) -> None:
        """Use another window, square or not, with the same parameters.

        Raises:
            ValueError: If the attention has no windows.
        """
        if self.window_size is None:
            raise ValueError(f"window_size={window_size!r}: {type(self).__name__} has no windows")
        self.window_size = window_pair(window_size)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.dim or x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(f"expected a map (B, {self.dim}, H, W), got {list(x.shape)}")


def drop_path_rates(drop_path: float | Sequence[float], depth: int) -> list[float]:
    """One stochastic depth rate a block. Raises ``ValueError`` where there are fewer or more rates than blocks."""
    rates = list(drop_path) if isinstance(drop_path, Sequence) else [float(drop_path)] * depth
    if len(rates) != depth:
        raise ValueError(f"drop_path has {len(rates)} rates for depth={depth} blocks; give one a block")
    return rates


def geometry_dtype(x: Tensor) -> torch.dtype:
    """The precision of coordinates for tokens ``x``: bfloat16 has too few digits for them, whatever the tokens have."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
