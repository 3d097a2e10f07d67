"""What the commands of detection and of segmentation share."""

import math
from collections.abc import Sequence
from pathlib import Path

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


def names_below(input: Path, paths: Sequence[Path], pictures: bool) -> list[Path]:
    """The names of images below the folder that was given.

    Args:
        input: The folder, or an image.
        paths: The images.
        pictures: Whether a PNG is made of each: then no two may differ in their suffix alone.

    Raises:
        ValueError: If two would be written to one file.
    """
    root = input if input.is_dir() else input.parent
    names = [path.relative_to(root) for path in paths]
    seen: dict[Path, Path] = {}
    for name in names if pictures else ():
        other = seen.setdefault(name.with_suffix(".png"), name)
        if other is not name:
            raise ValueError(f"{other} and {name} would both become {name.with_suffix('.png')}; rename one of them")
    return names


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
