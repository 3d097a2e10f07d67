"""What the commands of detection and of segmentation share."""

import math
from collections.abc import Sequence

from openfastervit_cli.parser import report_error

_NAMED = 20
"""Most unreadable images that are named on the terminal."""


def check_numbers(batch_size: int, workers: int | None, max_unreadable: float) -> None:
    """Raise ``ValueError`` where an option of an evaluation is out of range."""
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers {workers} must be at least 0")
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"--max-unreadable {max_unreadable} is a share, from 0 to 1")


def conclude(unreadable: Sequence[tuple[str, str]], images: int, speaks: bool) -> int:
    """Name the images that could not be read, and return the exit code."""
    if speaks and unreadable:
        for name, reason in unreadable[:_NAMED]:
            report_error(f"{name}: {reason}")
        more = f", the first {_NAMED} of them named here" if len(unreadable) > _NAMED else ""
        report_error(f"{len(unreadable)} of {images} images could not be read{more}; they are in no figure")
    return 3 if unreadable else 0


def number(value: float) -> float | None:
    """A figure for JSON, which has no NaN."""
    return value if math.isfinite(value) else None
