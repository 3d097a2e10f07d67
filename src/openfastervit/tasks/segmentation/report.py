"""The files that tell what an evaluation of a segmenter found."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openfastervit.tasks.report_files import csv_bytes, json_bytes, write_files
from openfastervit.tasks.segmentation.metrics import ClassFigures, SegmentationMetrics

REPORT_FILES = ("per_class.csv", "confusion.csv", "confusion.png", "evaluation.json")
"""What ``write_report`` writes, in this order."""


def write_report(folder: str | os.PathLike[str], metrics: SegmentationMetrics, about: Mapping[str, Any]) -> list[Path]:
    """Write what an evaluation found into a folder, each file whole or not at all.

    ``evaluation.json`` holds all figures, ``per_class.csv`` a line a class, ``confusion.csv`` the pixels by true and by
    predicted class, ``confusion.png`` a picture of it, where matplotlib is installed.

    Args:
        folder: Made if it is not there.
        metrics: Of at least one image.
        about: Plain data on the evaluation, to keep beside the figures.

    Raises:
        ValueError: If ``about`` is not plain data.
        OSError: If a file cannot be written.
    """
    rows = metrics.per_class()
    confusion = metrics.confusion
    counts = zip(metrics.classes, confusion.tolist(), strict=True)
    contents = {
        "per_class.csv": csv_bytes(ClassFigures._fields, rows),
        "confusion.csv": csv_bytes(["true \\ predicted", *metrics.classes], ([name, *row] for name, row in counts)),
        "evaluation.json": json_bytes(
            {"about": dict(about), **metrics.compute(), "per_class": [row._asdict() for row in rows]}
        ),
    }
    if importlib.util.find_spec("matplotlib") is not None:
        from openfastervit.tasks import pictures

        contents["confusion.png"] = pictures.confusion_png(confusion.numpy(), metrics.classes)
    return write_files(Path(folder), REPORT_FILES, contents)
