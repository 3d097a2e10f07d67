"""How fast the network is beside the same network with full attention, as images grow.

Both networks have the same convolutions, channels, blocks and heads. With full attention the window is the whole map
and there are no carriers. At each size the two take turns, so that what else the machine does slows both alike.

Position embeddings and biases follow from the size alone. Both networks are timed folded, as one would deploy them:
computing positions anew costs full attention far more than the attention itself, and would flatter hierarchical
attention.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openfastervit.demo.network import SIDE, attention_of, build, describe
from openfastervit.inference.fold import fold
from openfastervit.models import FasterViT

SIDES = (SIDE, 2 * SIDE, 3 * SIDE, 4 * SIDE, 6 * SIDE)
"""Sides of the images, in pixels: multiples that need no padding."""
BATCH = 4
REPEATS = 7
SECONDS = 0.05
"""What a repeat lasts at least: short ones are made of several calls."""


@dataclass(frozen=True)
class Timing:
    """Images a second of both networks at one size, repeat by repeat, in turns."""

    side: int
    """Height and width of the images, in pixels."""
    tokens: int
    """Tokens of the hierarchical stage's map: full attention compares each with each."""
    carriers: int
    hierarchical: tuple[float, ...]
    full: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Hierarchical over full, repeat by repeat."""
        return tuple(a / b for a, b in zip(self.hierarchical, self.full, strict=True))

    @property
    def ratio(self) -> float:
        """The median of ``ratios``."""
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"slower"`` where three quarters of the repeats agree on it, else ``"as fast"``."""
        low, high = quartiles(self.ratios)
        return "faster" if low > 1 else "slower" if high < 1 else "as fast"


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """The lower and the upper quartile; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def full_attention() -> FasterViT:
    """The demo's network without carriers; ``fit_windows`` makes its windows as large as its maps."""
    return build(hierarchical=[False] * 4).eval()


def fit_windows(model: FasterViT, side: int) -> None:
    """Make each stage's window its whole map, for images of that side."""
    for stage, attention in attention_of(model).items():
        attention.set_window_size(side // (4 * 2**stage))


@torch.no_grad()
def compare(
    model: FasterViT,
    *,
    sides: tuple[int, ...] = SIDES,
    repeats: int = REPEATS,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[], None] = lambda: None,
) -> Iterator[Timing]:
    """Time ``model``, in evaluation mode, and its twin with full attention.

    Args:
        model: The demo's network.
        sides: Sides of the images, multiples of 32.
        repeats: Of each size.
        stop: Asked before each repeat; True ends the comparison after the last whole size.
        tell: Called after each repeat.
    """
    twin = full_attention()
    for side in sides:
        images = torch.randn(BATCH, 1, side, side)
        fit_windows(twin, side)
        stage = next(stage for stage in describe(model, images) if stage.carriers)
        pair = [fold(network, side) for network in (model, twin)]
        calls = [_calls(network, images) for network in pair]
        rates: tuple[list[float], list[float]] = [], []
        for repeat in range(repeats):
            if stop():
                return
            for which in (0, 1) if repeat % 2 else (1, 0):
                seconds = _time(pair[which], images, calls[which])
                rates[which].append(BATCH * calls[which] / seconds)
            tell()
        yield Timing(side, stage.size[0] * stage.size[1], stage.carriers, tuple(rates[0]), tuple(rates[1]))


def _time(model: nn.Module, images: Tensor, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        model(images)
    return time.perf_counter() - started


def _calls(model: nn.Module, images: Tensor) -> int:
    """Calls that a repeat is made of, after a first one to warm up."""
    _time(model, images, 1)
    return max(1, round(SECONDS / _time(model, images, 1)))


def in_words(timings: list[Timing]) -> str:
    """What the numbers say, for a reader who wonders whether hierarchical attention pays."""
    if not timings:
        return "Nothing was measured."

    def times(timing: Timing) -> str:
        factor = max(timing.ratio, 1 / timing.ratio)
        return f"{factor:.2f} times as fast" if factor < 10 else f"{factor:.0f} times as fast"

    first = timings[0]
    here = {
        "faster": f"hierarchical attention is {times(first)} as full attention",
        "slower": f"full attention is {times(first)} as hierarchical attention",
        "as fast": "the two are as fast as each other, within the spread of the repeats",
    }[first.verdict]
    text = f"At the demo's own {first.side} pixels {here}: its map has only {first.tokens} tokens."
    paying = [timing for timing in timings if timing.verdict == "faster"]
    lasting = [timing for i, timing in enumerate(timings) if all(t.verdict == "faster" for t in timings[i:])]
    largest = timings[-1]
    if lasting and lasting[0] is not first:
        text += f" Hierarchical attention pays from {lasting[0].side} pixels on,"
        text += f" and at {largest.side} pixels, with {largest.tokens:,} tokens, it is {times(largest)}."
    elif lasting and largest is not first:
        text += f" The lead holds at every size measured; at {largest.side} pixels it is {times(largest)}."
    elif paying:
        sides = ", ".join(str(timing.side) for timing in paying)
        text += f" Hierarchical attention was faster at {sides} pixels, but not at all larger sizes."
    elif largest is not first:
        text += " At none of the larger sizes measured was hierarchical attention faster."
    return text
