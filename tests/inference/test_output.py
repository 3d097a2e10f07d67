import csv
import io
import json
import os
import threading
from pathlib import Path

import pytest

from openfastervit.inference import Prediction, csv_header, csv_row, growing_file, jsonl_row

ODD = Prediction(Path('a "b", c\n.png'), ("tench, Tinca tinca", "bée"), (0, 7), (0.123456789, 1.2345678e-9))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_raise(path: Path, error: BaseException) -> None:
    with growing_file(path) as file:
        file.write("new\n")
        raise error


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


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "new folder" / "rows.csv"
    with growing_file(path) as file:
        file.write("one\n")
        assert not path.exists()
        assert (tmp_path / "new folder" / "rows.csv.part").read_text() == "one\n"  # line by line
        file.write("two\n")
    assert path.read_text() == "one\ntwo\n"
    assert names(path.parent) == ["rows.csv"]


def test_a_failure_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("old\n")
    with pytest.raises(RuntimeError):
        write_and_raise(path, RuntimeError())
    assert path.read_text() == "old\n"
    assert names(tmp_path) == ["rows.csv"]


def test_an_interruption_keeps_what_was_written(tmp_path: Path):
    path = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(path, KeyboardInterrupt())
    assert path.read_text() == "new\n"
    assert names(tmp_path) == ["rows.csv"]


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "rows.csv").symlink_to(tmp_path / "real.csv")
    with growing_file(tmp_path / "rows.csv") as file:
        file.write("new\n")
    assert (tmp_path / "rows.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new\n"


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    with growing_file(pipe) as file:
        file.write("new\n")
    reader.join(timeout=10)
    assert received == ["new\n"]
    assert pipe.is_fifo()


def test_names_that_are_not_text_keep_their_bytes(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.png")
    prediction = Prediction(Path(name), ("ant",), (0,), (1.0,))
    with growing_file(tmp_path / "rows.csv") as file:
        file.write(csv_row(prediction))
    assert (tmp_path / "rows.csv").read_bytes() == b"caf\xe9.png,ant,0,1.0\n"
    assert json.loads(jsonl_row(prediction))["image"] == name
