"""Predictions as text and as Parquet, read back by what others read them with."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from pyarrow import parquet

from openfastervit.inference import FORMATS, Prediction, csv_header, csv_row, jsonl_row

ODD = Prediction(Path('a "b", c\n.png'), ("tench, Tinca tinca", "bée"), (0, 7), (0.123456789, 1.2345678e-9))


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(csv_header(2) + csv_row(ODD), newline="")))
    assert rows == [
        {
            "image": 'a "b", c\n.png',
            "class_1": "tench, Tinca tinca",
            "index_1": "0",
            "score_1": "0.123457",
            "class_2": "bée",
            "index_2": "7",
            "score_2": "1.23457e-09",
        }
    ]


def test_json_reads_back():
    assert jsonl_row(ODD).count("\n") == 1
    assert json.loads(jsonl_row(ODD)) == {
        "image": 'a "b", c\n.png',
        "predictions": [
            {"class": "tench, Tinca tinca", "index": 0, "score": 0.123457},
            {"class": "bée", "index": 7, "score": 1.23457e-09},
        ],
    }


@pytest.mark.parametrize("name", ["a\rb.png", "a\nb.png", 'a"b.png', "a,b.png", "a\r\nb.png", " a .png"])
def test_odd_names_read_back(name: str):
    prediction = Prediction(Path(name), ("ant",), (0,), (1.0,))
    ((image, *_),) = csv.reader(io.StringIO(csv_row(prediction), newline=""))
    assert image == name
    assert json.loads(jsonl_row(prediction))["image"] == name


def test_names_that_are_not_text_keep_their_bytes():
    name = os.fsdecode(b"caf\xe9.png")
    prediction = Prediction(Path(name), ("ant",), (0,), (1.0,))
    assert FORMATS["csv"].row(prediction) == b"caf\xe9.png,ant,0,1.0\n"
    assert json.loads(FORMATS["jsonl"].row(prediction))["image"] == name


def parquet_rows(path: Path, predictions: list[Prediction], topk: int) -> list[dict]:
    kind = FORMATS["parquet"]
    (path / "rows").write_bytes(kind.header(topk) + b"".join(map(kind.row, predictions)))
    kind.convert(path / "rows", path / "rows.parquet")
    return parquet.read_table(path / "rows.parquet").to_pylist()


def test_parquet_reads_back(tmp_path: Path):
    other = Prediction(Path(os.fsdecode(b"caf\xe9.png")), ("", "null"), (1, 2), (0.5, 1e-30))
    assert parquet_rows(tmp_path, [ODD, other], 2) == [
        {
            "image": 'a "b", c\n.png',
            "class_1": "tench, Tinca tinca",
            "index_1": 0,
            "score_1": 0.123457,
            "class_2": "bée",
            "index_2": 7,
            "score_2": 1.23457e-09,
        },
        {
            "image": "caf\\xe9.png",  # Parquet's strings hold nothing but text
            "class_1": "",
            "index_1": 1,
            "score_1": 0.5,
            "class_2": "null",
            "index_2": 2,
            "score_2": 1e-30,
        },
    ]
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "rows.parquet")}
    assert [kinds[name] for name in ("image", "class_1", "index_1", "score_1")] == ["string"] * 2 + ["int32", "double"]


def test_parquet_without_a_row_has_its_columns(tmp_path: Path):
    assert parquet_rows(tmp_path, [], 1) == []
    assert parquet.read_schema(tmp_path / "rows.parquet").names == ["image", "class_1", "index_1", "score_1"]


def test_parquet_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openfastervit.inference.parquet._BLOCK", 1000)
    many = [ODD._replace(path=Path(f"{i}.png")) for i in range(100)]
    rows = parquet_rows(tmp_path, many, 2)
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(100)]
    assert parquet.read_metadata(tmp_path / "rows.parquet").num_row_groups > 5
