"""The files that tell what an evaluation of a classifier found."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openfastervit.tasks.metrics import CONFUSION_CLASSES, ClassFigures, ClassificationMetrics
from openfastervit.tasks.report_files import csv_bytes, json_bytes, write_files

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
    contents: dict[str, bytes] = {"per_class.csv": csv_bytes(ClassFigures._fields, metrics.per_class())}
    summary = {**metrics.compute(), "unpredicted": metrics.unpredicted, "classes": len(metrics.classes)}
    evaluation = {
        "about": dict(about or {}),
        **summary,
        "reliability": [row._asdict() for row in metrics.reliability()],
        "per_class": [row._asdict() for row in metrics.per_class()],
    }
    contents["evaluation.json"] = json_bytes(evaluation)
    has_confusion = len(metrics.classes) <= CONFUSION_CLASSES
    if has_confusion:
        rows = zip(metrics.classes, metrics.confusion.tolist(), strict=True)
        contents["confusion.csv"] = csv_bytes(
            ["true \\ predicted", *metrics.classes], ([name, *row] for name, row in rows)
        )
    if importlib.util.find_spec("matplotlib") is not None:
        from openfastervit.tasks import pictures

        contents["reliability.png"] = pictures.reliability_png(metrics.reliability(), summary["ece"])
        if has_confusion:
            contents["confusion.png"] = pictures.confusion_png(metrics.confusion.numpy(), metrics.classes)

    return write_files(Path(folder), REPORT_FILES, contents)
