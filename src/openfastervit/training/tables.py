"""The CSV files of a run: whole after a kill at any moment, and cut back to a step when the run is resumed from it."""

import csv
import io
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from openfastervit.atomic import write_atomically

Cell = str | float | int


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a CSV file; none of either where there is no file.

    A last line that an interrupted write cut short is left out.

    Raises:
        ValueError: If another line has too few or too many cells.
    """
    if not path.exists():
        return [], []
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if lines and not text.endswith(("\n", "\r")):
        lines.pop()
    if not lines:
        return [], []
    columns, *rows = lines
    if rows and len(rows[-1]) < len(columns):
        rows.pop()
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}: line {number} has {len(row)} cells, the head {len(columns)}; mend or delete that line"
            )
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def add_row(path: Path, row: Mapping[str, Cell]) -> None:
    """Add a row; columns that are new get empty cells in the rows before.

    The whole file is written anew, so this suits tables that grow slowly.
    """
    columns, rows = read_table(path)
    cells = {name: _cell(name, value) for name, value in row.items()}
    columns += [name for name in cells if name not in columns]
    write_atomically(path, _whole(columns, [*rows, cells]))


def extend(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Add rows at the end of a file that may be long; start it where there is none.

    Raises:
        OSError: If they cannot be written. The file is as before then.
    """
    if not rows:
        return
    texts = [[_cell(name, value) for name, value in zip(columns, row, strict=True)] for row in rows]
    if not _ends_whole(path):
        added = [dict(zip(columns, text, strict=True)) for text in texts]
        write_atomically(path, _whole(columns, [*read_table(path)[1], *added]))
        return
    data = _csv(texts)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(handle).st_size
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, before)
            raise
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def cut_back(path: Path, step: int, also: Callable[[Mapping[str, str]], bool] = lambda row: False) -> None:
    """Drop the rows whose ``step`` is larger, and those that ``also`` tells to drop.

    Raises:
        ValueError: If the table has no such column, or something else than a number in it.
    """
    columns, rows = read_table(path)
    if columns:
        kept = _whole(columns, [row for row in rows if _step(path, row) <= step and not also(row)])
        if kept != path.read_bytes():
            write_atomically(path, kept)


def _step(path: Path, row: Mapping[str, str]) -> int:
    try:
        return int(row["step"])
    except (KeyError, ValueError):
        raise ValueError(
            f"{path}: step={row.get('step')!r} is no number; mend it, or move the file away to start a new one"
        ) from None


def _cell(name: str, value: Cell) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, numbers.Real):  # a tensor would be written as its repr
        raise TypeError(f"{name} is a {type(value).__name__}; a cell is a number or a text")
    return repr(float(value)) if not isinstance(value, numbers.Integral) else str(int(value))


def _ends_whole(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _whole(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    return _csv([columns, *([row.get(name, "") for name in columns] for row in rows)])


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    # Names of files need not be text, and are written as the bytes they are.
    return text.getvalue().encode("utf-8", "surrogateescape")
