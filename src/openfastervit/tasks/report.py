"""The files that tell what an evaluation of a classifier found."""

import csv
import importlib.util
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openfastervit.tasks.metrics import CONFUSION_CLASSES, ClassFigures, ClassificationMetrics

REPORT_FILES = ("per_class.csv", "confusion.csv", "confusion.png", "reliability.png", "evaluation.json")
"""What ``write_report`` writes, in this order."""


def write_report(
    folder: str | os.PathLike[str], metrics: ClassificationMetrics, *, about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write what an evaluation found into a folder, each file whole or not at all.

    ``evaluation.json`` holds all figures, ``per_class.csv`` a line a class, ``confusion.csv`` the confusion matrix (up
    to 2000 classes), ``confusion.png`` and ``reliability.png`` pictures, where matplotlib is installed. Files of these
    names from an earlier evaluation are replaced or, where there is nothing to put in their place, removed.

    Args:
        folder: Made if it is not there.
        metrics: Of at least one image.
        about: Plain data on the evaluation, such as the checkpoint and the data, to keep beside the figures.

    Returns:
        The paths written.

    Raises:
        ValueError: If no image was evaluated, or ``about`` is not plain data.
        OSError: If a file cannot be written.
    """
    contents: dict[str, bytes] = {"per_class.csv": _table(ClassFigures._fields, metrics.per_class())}
    summary = {**metrics.compute(), "unpredicted": metrics.unpredicted, "classes": len(metrics.classes)}
    evaluation = {
        "about": dict(about or {}),
        **summary,
        "reliability": [row._asdict() for row in metrics.reliability()],
        "per_class": [row._asdict() for row in metrics.per_class()],
    }
    contents["evaluation.json"] = _json(evaluation)
    has_confusion = len(metrics.classes) <= CONFUSION_CLASSES
    if has_confusion:
        rows = zip(metrics.classes, metrics.confusion.tolist(), strict=True)
        contents["confusion.csv"] = _table(
            ["true \\ predicted", *metrics.classes], ([name, *row] for name, row in rows)
        )
    if importlib.util.find_spec("matplotlib") is not None:
        from openfastervit.tasks import pictures

        contents["reliability.png"] = pictures.reliability_png(metrics.reliability(), summary["ece"])
        if has_confusion:
            contents["confusion.png"] = pictures.confusion_png(metrics.confusion.numpy(), metrics.classes)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in REPORT_FILES:
        if name in contents:
            _replace(folder / name, contents[name])
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in REPORT_FILES if name in contents]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """CSV with six digits of what is not whole; undefined figures are empty cells."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(head)
    for row in rows:
        table.writerow([_cell(value) for value in row])
    # Names of folders need not be text, and are written as the bytes they are.
    return text.getvalue().encode("utf-8", "surrogateescape")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _json(value: Mapping[str, Any]) -> bytes:
    """JSON, in which what is not finite is null."""
    try:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"about={value['about']!r} is not plain data: {error}") from error
    return text.encode("utf-8", "backslashreplace") + b"\n"  # what is not text, as JSON's own escape


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place, complete: a full disk or a kill leaves the old one whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
