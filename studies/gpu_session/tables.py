"""The session's tables. With each new row the file is replaced by one that has it: whatever comes, it is whole."""

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from studies.common.table import write_table

DRY = "dry run"


class Tables:
    """Rows by table and key, in the order in which they first came. Threads may add at once.

    Args:
        folder: Where the files are; it is made.
        facts: Cells of all rows.
        dry: Say in each row's status that it is of a dry run.

    Raises:
        ValueError: If the folder has tables already.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, dry: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder} is a file; name a folder")
        if any(folder.glob("*.csv")):
            raise ValueError(f"--out {folder} holds tables already; name another folder, or remove them")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._facts = facts
        self._dry = dry
        self._lock = threading.Lock()
        self._rows: dict[str, dict[Hashable, Mapping[str, Any]]] = {}

    def add(self, table: str, rows: Sequence[Any], keys: Sequence[Hashable] | None = None) -> None:
        """Keep rows in a table and write it.

        Args:
            table: Its name, without an ending.
            rows: Cells by column, or dataclasses.
            keys: One a row: it replaces the one with that key. By default none is replaced.
        """
        with self._lock:
            kept = self._rows.setdefault(table, {})
            for i, row in enumerate(rows):
                cells = dict(asdict(row) if is_dataclass(row) and not isinstance(row, type) else row)
                if self._dry:
                    cells["status"] = f"{DRY}: {cells['status']}" if cells.get("status") else DRY
                kept[len(kept) if keys is None else keys[i]] = cells
            if not kept:
                return
            write_table(
                self._folder / f"{table}.csv",
                [{**{name: _cell(value) for name, value in row.items()}, **self._facts} for row in kept.values()],
            )

    def rows(self, table: str) -> list[Mapping[str, Any]]:
        """Those of a table, as they were given but for a dry run's status."""
        with self._lock:
            return list(self._rows.get(table, {}).values())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    if isinstance(value, tuple):
        return " ".join(map(_cell, value))
    return str(value)
