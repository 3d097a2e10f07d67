"""Masks as COCO writes them: polygons, and run lengths as lists or as strings. Needs pycocotools to decode them."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FARTHEST = 100_000
"""Pixels that a polygon's coordinates may be from the origin: pycocotools walks along every edge, step by step."""


def require_pycocotools(what: str) -> None:
    """Raise ``ValueError`` unless pycocotools is installed, naming what needs it and how to get it."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError(f"{what} needs pycocotools; install with: pip install 'openfastervit[detection]'")


def rings(segmentation: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Those of an annotation's polygons that enclose something: x and y of 3 points or more."""
    return [ring for ring in segmentation if isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0]


def mask_problem(segmentation: Any, height: int, width: int) -> tuple[str, str] | None:
    """What makes a ``segmentation`` unusable for an image of that size: the kind of problem and its details.

    pycocotools trusts what it reads: wrong run lengths make it read beyond its memory, distant points run for hours.
    """
    if not segmentation:
        return "no mask", "its segmentation is empty"
    if isinstance(segmentation, dict):
        return rle_problem(segmentation, height, width)
    if not isinstance(segmentation, list):
        return "a mask of an unknown kind", f"its segmentation is a {type(segmentation).__name__}"
    kept = rings(segmentation)
    if not kept:
        return "polygons of fewer than 3 points", f"its segmentation is {str(segmentation)[:60]}"
    try:
        finite = all(math.isfinite(sum(ring)) for ring in kept)
        far = finite and max(max(map(max, kept)), -min(map(min, kept))) > FARTHEST
    except (TypeError, OverflowError):  # text, lists; whole numbers beyond any float
        finite, far = False, False
    if not finite:
        return "a mask of numbers that are not finite", "its polygons have NaN, infinity or no numbers"
    if far:
        return "a mask far outside its image", f"its polygons reach beyond {FARTHEST} pixels"
    return None


def rle_problem(rle: dict[str, Any], height: int, width: int) -> tuple[str, str] | None:
    """The same for run lengths: ``{"size": [height, width], "counts": a list or a string}``."""
    size = rle.get("size")
    if size != [height, width]:
        return "a mask of another size than the image", f"its mask is of size {size}, the image [{height}, {width}]"
    try:
        lengths = run_lengths(rle.get("counts"))
    except ValueError as error:
        return "a damaged mask", str(error)
    if (lengths < 0).any() or int(lengths.sum()) != height * width:
        return "a damaged mask", f"its runs make {int(lengths.sum())} pixels of {height * width}"
    return None


def run_lengths(counts: Any) -> NDArray[np.int64]:
    """Run lengths ``(R,)``, the first of them outside, from a list of them or from COCO's string.

    In a string each is written in digits of 5 bits, the lowest first, of which all but the last have a sixth bit; from
    the fourth on as the difference from the one before the last.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(counts, list):
        lengths = np.array(counts)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or np.abs(lengths, dtype=np.float64).max() > 2**40:
            raise ValueError("its counts are not a list of whole numbers")
        return lengths.astype(np.int64)
    if not isinstance(counts, str | bytes) or not counts:
        raise ValueError(f"its counts are {'empty' if counts in ('', b'') else f'a {type(counts).__name__}'}")
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("its counts are no string of run lengths")
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 7:  # of 40 bits: no image is that large
        raise ValueError("its counts are no string of run lengths")
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & 31) << 5 * places, starts)
    values -= np.where(digits[ends] & 16, 1 << 5 * (ends - starts + 1), 0)  # two's complement
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Any ``segmentation`` without a ``mask_problem`` as one compressed RLE, its ``counts`` a string."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        rle = mask.merge(mask.frPyObjects(rings(segmentation), height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask.frPyObjects(segmentation, height, width)
    else:
        return {"size": [height, width], "counts": segmentation["counts"]}
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def encode_mask(inside: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask ``(H, W)`` as compressed RLE, its ``counts`` a string as JSON can hold."""
    from pycocotools import mask

    rle = mask.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Any ``segmentation`` without a ``mask_problem`` as ``(H, W)`` of 0 and 1."""
    from pycocotools import mask

    decoded: NDArray[np.uint8] = mask.decode(to_rle(segmentation, height, width))
    return decoded
