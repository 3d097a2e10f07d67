"""Predictions as rows of a file: CSV or JSON lines."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from openfastervit.inference.predictor import Prediction


def csv_header(topk: int) -> str:
    """``image,class_1,index_1,score_1,class_2,...``: the first line of a CSV file."""
    columns = [f"{name}_{rank}" for rank in range(1, topk + 1) for name in ("class", "index", "score")]
    return _csv_line(["image", *columns])


def csv_row(prediction: Prediction) -> str:
    """One line of CSV: an image, then class, index and score of each rank."""
    ranks = zip(prediction.classes, prediction.indices, prediction.scores, strict=True)
    cells = [cell for name, index, score in ranks for cell in (name, index, _rounded(score))]
    return _csv_line([str(prediction.path), *cells])


def jsonl_row(prediction: Prediction) -> str:
    """One line of JSON: ``{"image": ..., "predictions": [{"class": ..., "index": ..., "score": ...}, ...]}``."""
    ranks = zip(prediction.classes, prediction.indices, prediction.scores, strict=True)
    predictions = [{"class": name, "index": index, "score": _rounded(score)} for name, index, score in ranks]
    return json.dumps({"image": str(prediction.path), "predictions": predictions}) + "\n"


@contextlib.contextmanager
def growing_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Text that becomes the file ``path`` once it is complete.

    Until then it grows beside it, line by line, as ``path.part``, and a file that was there before stays. Where the
    block is interrupted (``KeyboardInterrupt``), what was written until then becomes the file; where it fails, nothing
    does. What is not a plain file, such as ``/dev/stdout`` or a named pipe, is written to directly.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing to what it points to
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        # surrogateescape: names of files need not be text, and are written as the bytes they are.
        with part.open("w", buffering=1, encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except KeyboardInterrupt:
        part.replace(path)
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _rounded(score: float) -> float:
    """Six digits: what float32 holds."""
    return float(f"{score:.6g}")
