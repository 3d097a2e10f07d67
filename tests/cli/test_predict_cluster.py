"""``fastervit predict --cluster``: what is asked for and told, and exit codes. The job: tests/inference/cluster."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import openfastervit.inference.cluster as cluster
from openfastervit.inference.cluster import ClusterJob, Event, Planned, Progress, ShardFailed, Told, Written
from openfastervit_cli import predict_cluster
from tests.cli.conftest import Run

Happens = Callable[..., list[tuple[str, ClusterJob]]]


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Happens:
    """Let a job tell of some events, or raise an error."""

    def on(*events: Event | BaseException) -> list[tuple[str, ClusterJob]]:
        asked: list[tuple[str, ClusterJob]] = []

        def run_on(address: str, job: ClusterJob) -> Iterator[Event]:
            asked.append((address, job))
            for event in events:
                if isinstance(event, BaseException):
                    raise event
                yield event

        monkeypatch.setattr(cluster, "run_on", run_on)
        return asked

    return on


def arguments(checkpoint: Path, *more: object) -> tuple[object, ...]:
    return ("predict", "s3://bucket/photos", "--checkpoint", checkpoint, "--cluster", "ray://host:10001", *more)


def test_the_command_line_is_the_job(fastervit: Run, checkpoint: Path, happens: Happens):
    asked = happens(Planned(1, 0, 3, 0), Progress(3), Written("images-000000", 3, 0, []))
    more = ("--topk", 3, "--batch-size", 4, "--replicas", 2, "--workers", 6, "--shard-size", 7, "--img-size", 96)
    outcome = fastervit(*arguments(checkpoint, "--out", "s3://bucket//rows", "--engine", "openvino", *more))
    assert outcome == (0, "", "fastervit: 3 images in 1 shards classified; rows in s3://bucket//rows\n")
    ((address, job),) = asked
    assert address == "ray://host:10001"
    assert (job.source, job.out) == ("s3://bucket/photos", "s3://bucket//rows")
    assert (job.topk, job.batch_size, job.replicas, job.workers, job.shard_size) == (3, 4, 2, 6, 7)
    assert (job.engine, job.precision, job.device, job.overwrite) == ("openvino", "fp32", "auto", False)
    assert job.network.img_size == (96,)
    assert job.digest.startswith("sha256:")
    assert fastervit(*arguments(checkpoint, "--out", "rows", "--overwrite")).code == 0
    assert asked[1][1].overwrite
    assert asked[1][1].shard_size == 10_000


def test_what_happens_is_told(fastervit: Run, checkpoint: Path, happens: Happens, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict_cluster, "_LINE_SECONDS", 0)
    bad = Written("a.tar", 10, 2, [("a.tar/1", "it is no image"), ("a.tar/2", "the file is empty")])
    happens(Planned(4, 1, None, 1), Told("measuring"), Progress(4), bad, Progress(6), Written("b.tar", 5, 0, []))
    outcome = fastervit(*arguments(checkpoint, "--out", "rows"))
    assert (outcome.code, outcome.out) == (3, "")
    lines = outcome.err.splitlines()
    assert lines[:2] == ["fastervit: going on after 1 of 4 shards", "fastervit: measuring"]
    assert lines[-3:] == [
        "fastervit: 15 images in 2 shards classified; rows in rows",
        "fastervit: error: 2 of 15 images could not be read; all are listed in rows/unreadable",
        "fastervit: error: images of 1 shards that were complete could not be read; see rows/unreadable",
    ]
    assert "fastervit: error: a.tar/1: it is no image" in lines
    assert any(line.startswith("fastervit: 2 of 4 shards, ") and line.endswith(" left") for line in lines)


def test_exit_codes(fastervit: Run, checkpoint: Path, happens: Happens):
    args = arguments(checkpoint, "--out", "rows")
    happens(Planned(2, 2, 9, 0))
    assert fastervit(*args) == (0, "", "fastervit: 2 shards classified already; rows in rows\n")
    happens(Planned(2, 2, 9, 1))
    assert fastervit(*args).code == 3
    happens(Planned(2, 0, 9, 0), ShardFailed("b.tar", "OSError: slow down"), Written("a.tar", 4, 0, []))
    outcome = fastervit(*args)
    assert outcome.code == 1
    assert "fastervit: error: b.tar: OSError: slow down\n" in outcome.err
    assert "1 of 2 shards could not be read; the same command tries them again" in outcome.err
    happens(Planned(2, 0, 9, 0), KeyboardInterrupt())
    stay = "shards that are complete stay in rows, and the same command goes on after them"
    assert fastervit(*args) == (130, "", f"fastervit: interrupted; {stay}\n")
    happens(KeyboardInterrupt())
    assert fastervit(*args) == (130, "", "fastervit: interrupted\n")
    happens(ValueError("no cluster answers"))
    assert fastervit(*args) == (1, "", "fastervit: error: no cluster answers\n")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "--cluster writes a folder of Parquet files; name it: --out FOLDER"),
        (("--out", "-"), "--cluster writes a folder of Parquet files"),
        (("--out", "rows", "--format", "csv"), "--cluster writes Parquet, not csv"),
        (("--out", "rows", "--precision", "int8"), "quantise first, with `fastervit export --precision int8`"),
        (("--out", "rows", "--precision", "int8", "--calibration", "photos"), "--cluster takes no calibration images"),
        (("--out", "rows", "--topk", 0), "topk=0 must be at least 1"),
    ],
)
def test_what_a_cluster_does_not_do_is_told(
    fails: Any, checkpoint: Path, happens: Happens, more: tuple[object, ...], says: str
):
    asked = happens()
    fails(*arguments(checkpoint, *more), says=[says])
    assert asked == []


def test_what_is_for_a_cluster_alone_is_told(fails: Any, checkpoint: Path, photos: Path):
    for option in ("--replicas", "--shard-size"):
        fails("predict", photos, "--checkpoint", checkpoint, option, 2, says=["are for a cluster: --cluster ADDRESS"])


def test_a_missing_library_is_named(fails: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    fails(*arguments(checkpoint, "--out", "rows"), says=["pip install 'openfastervit[scale]'"])
