"""Jobs on a real cluster: two nodes on this machine, one killed half-way; the driver interrupted, and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

import openfastervit_cli
from openfastervit.inference.cluster import Planned, ShardFailed, Told, Written, run_on
from openfastervit.inference.cluster import job as jobs
from openfastervit.inference.cluster import stream as streaming
from openfastervit.inference.cluster.connection import quieten
from openfastervit.inference.cluster.resources import Placement
from tests.inference.cluster.data import (
    job,
    local_rows,
    rows_in,
    same_rows,
    unpacked,
    unreadable_in,
    write_folder,
    write_shards,
)

quieten()

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.early, pytest.mark.timeout(600)]

LARGE = (900, 700)
"""Pictures that take a moment to decode: there is time to kill something half-way."""
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
QUICK = {
    "_system_config": {
        "worker_niceness": 0,
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 6,
    }
}
"""Workers are as important as other processes, and lost nodes are found within seconds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Its first node."""
    started = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **QUICK})
    try:
        yield started
    finally:
        started.shutdown()


def workers(raylet: psutil.Process) -> str:
    """Names of what a node is doing."""
    return " ".join(" ".join(child.cmdline()) for child in raylet.children() if child.is_running())


def test_a_node_is_killed_half_way(cluster: Cluster, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1)  # many parts are under way
    shards = write_shards(tmp_path / "set", 72, 6, LARGE)
    expected = local_rows(unpacked(shards, tmp_path / "flat"), checkpoint, tmp_path / "rows.parquet")
    node = cluster.add_node(**NODE)
    (raylet,) = (psutil.Process(process.process.pid) for process in node.all_processes["raylet"])
    events, written = [], 0
    before = signal.getsignal(signal.SIGTERM)
    for event in run_on(cluster.address, job(shards, tmp_path / "out", checkpoint)):
        events.append(event)
        written += isinstance(event, Written)
        names = workers(raylet) if written and raylet.is_running() else ""
        if "Predict" in names and "decode" in names:
            raylet.kill()
            raylet.wait()
            killed_after = written
    assert not raylet.is_running()
    assert killed_after < 12
    assert events[0] == Planned(12, 0, None, 0)
    assert not [event for event in events if isinstance(event, ShardFailed)]
    assert sorted(event.shard for event in events if isinstance(event, Written)) == [
        f"some-{number:04}.tar" for number in range(12)
    ]
    found = rows_in(tmp_path / "out")
    assert found["image"].is_unique
    names = [f"some-{number // 6:04}.tar/in/{number:03}" for number in range(72) if number != 3]
    same_rows(found, expected, names)
    assert [line["image"] for line in unreadable_in(tmp_path / "out")] == ["some-0000.tar/in/003"]
    assert signal.getsignal(signal.SIGTERM) == before  # Ray has one of its own
    cluster.remove_node(node)


def written_files(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("rows/*.parquet")}


def ended_half_way(args: list[str], out: Path, number: int) -> tuple[int, str]:
    """Run the command until it has written a file, and send it a signal."""
    command = [sys.executable, "-m", "openfastervit_cli", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not written_files(out) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(), process.stderr.read() if process.stderr else ""


def arguments(cluster: Cluster, checkpoint: Path, photos: Path, out: Path) -> list[str]:
    """Of a job of twelve shards."""
    command = ["predict", str(photos), "--checkpoint", str(checkpoint), "--cluster", cluster.address]
    command += ["--out", f"file://{out}", "--shard-size", "5", "--batch-size", "4", "--topk", "2"]
    return [*command, "--device", "cpu", "--engine", "torch-folded"]


def test_the_driver_is_killed_half_way(
    cluster: Cluster, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photos, out = write_folder(tmp_path / "photos", 60, LARGE), tmp_path / "out"
    expected = local_rows(photos, checkpoint, tmp_path / "rows.parquet")
    command = arguments(cluster, checkpoint, photos, out)
    code, told = ended_half_way(command, out, signal.SIGKILL)
    killed = written_files(out)
    assert code == -signal.SIGKILL, told
    assert 0 < len(killed) < 12
    (out / "rows" / ".images-000099.parquet.0123abcd.tmp").write_bytes(b"half")  # as if it had been in the midst
    capsys.readouterr()
    assert openfastervit_cli.main(command) == 3
    told = capsys.readouterr().err
    assert f"fastervit: going on after {len(killed)} of 12 shards" in told
    complete = written_files(out)
    assert len(complete) == 12
    assert complete.items() >= killed.items()  # none was written again
    assert not list(out.rglob(".*"))
    same_rows(rows_in(out), expected, expected["image"])
    assert [line["image"] for line in unreadable_in(out)] == [f"{photos}/003.png"]


@pytest.mark.slow  # a driver more
def test_the_driver_is_interrupted(cluster: Cluster, checkpoint: Path, tmp_path: Path):
    photos, out = write_folder(tmp_path / "photos", 60, LARGE), tmp_path / "out"
    code, told = ended_half_way(arguments(cluster, checkpoint, photos, out), out, signal.SIGINT)
    assert code == 130, told
    stay = f"shards that are complete stay in file://{out}, and the same command goes on after them"
    assert told.splitlines()[-1] == f"fastervit: interrupted; {stay}"
    assert "Traceback" not in told
    assert not list(out.rglob(".*"))
    assert 0 < len(written_files(out)) < 12
    assert all(len(pd.read_parquet(path)) in (4, 5) for path in written_files(out))


@pytest.mark.slow  # as the first test, with nodes that claim to have a GPU
def test_a_node_with_a_gpu_is_killed_half_way(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its engine is placed nowhere else: the job goes on with the one that is left."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1)
    monkeypatch.setattr(jobs, "place", lambda device, replicas, found: Placement("cpu", int(found.get("GPU", 0)), 1))
    photos = write_folder(tmp_path / "photos", 60, LARGE)
    expected = local_rows(photos, checkpoint, tmp_path / "rows.parquet")
    options = {**NODE, "num_gpus": 1}
    started = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False, **QUICK})
    try:
        node = started.add_node(**options)
        (raylet,) = (psutil.Process(process.process.pid) for process in node.all_processes["raylet"])
        events = []
        for event in run_on(started.address, job(photos, tmp_path / "out", checkpoint, shard_size=5)):
            events.append(event)
            if raylet.is_running() and isinstance(event, Written):
                raylet.kill()
                raylet.wait()
        assert any(isinstance(event, Told) and "going on with those that are left" in event.line for event in events)
        assert sorted(event.shard for event in events if isinstance(event, Written)) == [
            f"images-{number:06}" for number in range(12)
        ]
        same_rows(rows_in(tmp_path / "out"), expected, expected["image"])
    finally:
        started.shutdown()


@pytest.mark.slow  # a cluster that has a server for clients, which starts a process for each
def test_a_client_that_is_no_node(checkpoint: Path, tmp_path: Path):
    photos = write_folder(tmp_path / "photos", 20)
    expected = local_rows(photos, checkpoint, tmp_path / "rows.parquet")
    options = {**NODE, "include_dashboard": False, "ray_client_server_port": 23010, **QUICK}
    started = Cluster(initialize_head=True, head_node_args=options)
    try:
        address = f"ray://127.0.0.1:{options['ray_client_server_port']}"
        events = list(run_on(address, job(photos, tmp_path / "out", checkpoint, shard_size=8)))
        assert not ray.is_initialized()
        assert len([event for event in events if isinstance(event, Written)]) == 3
        assert rows_in(tmp_path / "out").equals(expected)
        with pytest.raises(ValueError, match="other settings"):
            list(run_on(address, job(photos, tmp_path / "out", checkpoint, shard_size=9)))
    finally:
        started.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "host:six"])
def test_no_cluster_answers(checkpoint: Path, tmp_path: Path, address: str):
    with pytest.raises(ValueError, match=rf"--cluster {address}: no cluster answers .*; start one with `ray start"):
        list(run_on(address, job(tmp_path, tmp_path / "out", checkpoint)))
    assert os.listdir(tmp_path) == []  # noqa: PTH208
