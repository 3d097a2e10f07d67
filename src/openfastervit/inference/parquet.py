"""Rows of CSV as a Parquet file, for any number of them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCK = 8 << 20
"""Bytes of CSV that are held at once: a row group of the Parquet file."""


def require_pyarrow() -> None:
    """Raise ``ValueError`` unless pyarrow is installed, saying how to get it."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("Parquet needs pyarrow; install with: pip install 'openfastervit[parquet]'")


def row_schema(columns: Sequence[str]) -> Any:
    """The ``pyarrow.Schema`` of columns named as by ``output.columns``."""
    import pyarrow as pa

    kinds: dict[str, Any] = {"image": pa.string(), "class": pa.string(), "index": pa.int32(), "score": pa.float64()}
    return pa.schema([(column, kinds[column.partition("_")[0]]) for column in columns])


def write_parquet(rows: Path, path: Path) -> None:
    """Write a file of CSV, from ``csv_header`` and ``csv_row``, as a Parquet file.

    The columns are the same: images and classes are strings, indices ``int32``, scores ``float64``.

    Args:
        rows: In UTF-8: Parquet's strings hold nothing else.
        path: The file to write. It is whole when the call returns.

    Raises:
        OSError: If a file cannot be read or written.
    """
    from pyarrow import csv, parquet

    with rows.open() as file:
        schema = row_schema(file.readline().rstrip("\n").split(","))
    with (
        rows.open("rb") as raw,
        csv.open_csv(
            raw,
            read_options=csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=schema),
        ) as batches,
        parquet.ParquetWriter(path, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
