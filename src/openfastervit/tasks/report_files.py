"""What reports of all tasks are written with: tables and figures as bytes, put in place whole."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openfastervit.atomic import write_atomically


def write_files(folder: Path, names: Sequence[str], contents: Mapping[str, bytes]) -> list[Path]:
    """Write a report's files; those of an earlier one that have nothing in their place are removed.

    Args:
        folder: Made if it is not there.
        names: All that a report may have.
        contents: Those that this one has.

    Returns:
        The paths written, in the order of ``names``.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in contents:
            write_atomically(folder / name, contents[name])
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names if name in contents]


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
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


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON, in which what is not finite is null."""
    try:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"about={value.get('about')!r} is not plain data: {error}") from error
    return text.encode("utf-8", "backslashreplace") + b"\n"  # what is not text, as JSON's own escape


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
