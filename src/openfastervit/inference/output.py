"""Predictions as rows of a file: CSV, JSON lines or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from openfastervit.inference.parquet import write_parquet
from openfastervit.inference.predictor import Prediction


def csv_header(topk: int) -> str:
    """``image,class_1,index_1,score_1,class_2,...``: the first line of a CSV file."""
    return _csv_line(columns(topk))


def columns(topk: int) -> list[str]:
    """Names of the columns: the image, then class, index and score of each rank."""
    return ["image", *(f"{name}_{rank}" for rank in range(1, topk + 1) for name in ("class", "index", "score"))]


def csv_row(prediction: Prediction) -> str:
    """One line of CSV: an image, then class, index and score of each rank.

    The line may have line breaks in it, in a quoted name.
    """
    ranks = zip(prediction.classes, prediction.indices, prediction.scores, strict=True)
    cells = [cell for name, index, score in ranks for cell in (name, index, rounded(score))]
    return _csv_line([str(prediction.path), *cells])


def jsonl_row(prediction: Prediction) -> str:
    """One line of JSON: ``{"image": ..., "predictions": [{"class": ..., "index": ..., "score": ...}, ...]}``."""
    ranks = zip(prediction.classes, prediction.indices, prediction.scores, strict=True)
    predictions = [{"class": name, "index": index, "score": rounded(score)} for name, index, score in ranks]
    return json.dumps({"image": str(prediction.path), "predictions": predictions}) + "\n"


def encoded(text: str) -> bytes:
    """UTF-8. Names of files need not be text, and are written as the bytes they are."""
    return text.encode("utf-8", "surrogateescape")


def encoded_as_text(text: str) -> bytes:
    """UTF-8 without exception: bytes of names that are no text are escaped, as a backslash, x and two digits."""
    return encoded(text).decode("utf-8", "backslashreplace").encode("utf-8")


class Format(NamedTuple):
    """A kind of file for predictions."""

    header: Callable[[int], bytes]
    """What the rows start with, for so many classes an image."""
    row: Callable[[Prediction], bytes]
    convert: Callable[[Path, Path], None] | None = None
    """From a file of rows to the complete file, where that is another thing."""


FORMATS: dict[str, Format] = {
    "csv": Format(lambda topk: encoded(csv_header(topk)), lambda prediction: encoded(csv_row(prediction))),
    "jsonl": Format(lambda topk: b"", lambda prediction: encoded(jsonl_row(prediction))),
    "parquet": Format(
        lambda topk: encoded(csv_header(topk)), lambda prediction: encoded_as_text(csv_row(prediction)), write_parquet
    ),
}
"""By name. Each grows by rows of text: a Parquet file that is not complete cannot be read, nor written on."""


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # what is in the terminator is quoted where it is in a name
    return line.getvalue().removesuffix("\r\n") + "\n"


def rounded(score: float) -> float:
    """Six digits: what float32 holds."""
    return float(f"{score:.6g}")
