"""The files that tell what an evaluation of a detector found."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openfastervit.tasks.detection.metrics import CocoMetrics
from openfastervit.tasks.detection.results import write_results
from openfastervit.tasks.report_files import csv_bytes, json_bytes, write_files

REPORT_FILES = ("per_class.csv", "evaluation.json")
"""What ``write_report`` writes, in this order, after ``predictions.json``."""


def write_report(
    folder: str | os.PathLike[str], metrics: CocoMetrics, figures: Mapping[str, float], about: Mapping[str, Any]
) -> list[Path]:
    """Write what an evaluation found into a folder, each file whole or not at all.

    ``evaluation.json`` holds all figures, ``per_class.csv`` the average precisions of each class, and
    ``predictions.json`` the detections as COCO results, which ``fastervit detect evaluate --predictions`` reads.

    Args:
        folder: Made if it is not there.
        metrics: Of at least one image.
        figures: What its ``compute`` gave.
        about: Plain data on the evaluation, to keep beside the figures.

    Raises:
        ValueError: If ``about`` is not plain data.
        OSError: If a file cannot be written.
    """
    rows = metrics.per_class()
    contents = {
        "per_class.csv": csv_bytes(rows[0]._fields if rows else ("name",), rows),
        "evaluation.json": json_bytes({"about": dict(about), **figures, "per_class": [row._asdict() for row in rows]}),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "predictions.json", metrics.results)
    return [folder / "predictions.json", *write_files(folder, REPORT_FILES, contents)]
