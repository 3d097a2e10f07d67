"""Colours for classes."""

import functools

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

DARK: Colour = (16, 16, 16)
LIGHT: Colour = (255, 255, 255)


@functools.lru_cache(maxsize=8)
def palette(count: int) -> tuple[Colour, ...]:
    """Colours that differ as much as they can: each is the one least like all before it, to the eye.

    The first of them are the same for any count; there are no blacks, whites and greys. After some 1700 they repeat.

    Raises:
        ValueError: If ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"count={count} must be 0 or more")
    levels = np.linspace(0, 255, 15).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _lab(candidates)
    chroma = np.hypot(seen[:, 1], seen[:, 2])
    fit = (seen[:, 0] > 35) & (seen[:, 0] < 90) & (chroma > 40) & (chroma < 95)
    candidates, seen = candidates[fit], seen[fit]
    chosen = [int(np.argmin(np.abs(candidates - (230, 25, 55)).sum(axis=1)))]  # a red, to begin with
    distances = np.full(len(candidates), np.inf)
    while len(chosen) < min(count, len(candidates)):
        distances = np.minimum(distances, np.square(seen - seen[chosen[-1]]).sum(axis=1))
        chosen.append(int(distances.argmax()))
    colours = [(int(r), int(g), int(b)) for r, g, b in candidates[chosen]]
    return tuple(colours[place % len(colours)] for place in range(count))


def _lab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of sRGB ``(N, 3)``: distances in it are about those that people see."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def ink(colour: Colour) -> Colour:
    """Black or white, whichever is read better on a colour."""
    return DARK if _lab(np.array([colour], dtype=np.float64))[0, 0] > 55 else LIGHT
