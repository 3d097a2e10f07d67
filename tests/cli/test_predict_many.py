"""``fastervit predict`` over more images than anyone would wait for: memory, and kills from outside."""

import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from pyarrow import parquet

import openfastervit_cli
from openfastervit.inference.engines import ENGINES
from tests.conftest import REPOSITORY
from tests.inference import stub
from tests.pocket import picture, write_broken


@pytest.fixture
def _stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stub", "stub-slow", "stub-measured"):
        monkeypatch.setitem(ENGINES, name, None)  # to be taken out again
    stub.register()


def write_many(folder: Path, count: int, a_folder: int) -> Path:
    """So many images: 20 files with many names each, every hundredth of them broken."""
    kinds = folder / "kinds"
    kinds.mkdir(parents=True)
    sources = [kinds / f"{i}.png" for i in range(20)]
    for i, source in enumerate(sources):
        picture(i, (12 + i, 24)).save(source)
    broken = write_broken(kinds / "broken.png")
    for i in range(count):
        place = folder / "many" / f"{i // a_folder:04}"
        if i % a_folder == 0:
            place.mkdir(parents=True)
        os.link(broken if i % 100 == 50 else sources[i % 20], place / f"{i:06}.png")
    return folder / "many"


def command(images: Path, checkpoint: Path, out: Path, engine: str, *more: object) -> list[str]:
    words = ["predict", images, "--checkpoint", checkpoint, "--out", out, "--engine", engine, "--device", "cpu", *more]
    return [str(word) for word in words]


def start(args: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.inference.stub", *args],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def is_same(path: Path, other: Path) -> bool:
    if path.suffix == ".parquet":
        return parquet.read_table(path).equals(parquet.read_table(other))
    return path.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("_stubs")
@pytest.mark.parametrize(
    ("suffix", "kills"),
    [
        ("csv", 2),
        pytest.param("jsonl", 6, marks=pytest.mark.slow),
        pytest.param("parquet", 6, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_places_it_ends_with_the_same_file(
    checkpoint: Path, tmp_path: Path, suffix: str, kills: int, capsys: pytest.CaptureFixture[str]
):
    images = write_many(tmp_path, 2000, 500)
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"rows.{suffix}"
    assert openfastervit_cli.main(command(images, checkpoint, whole, "stub", "--batch-size", 16)) == 3
    said = capsys.readouterr().err
    args = command(images, checkpoint, out, "stub-slow", "--batch-size", 16)
    journal = tmp_path / f"rows.{suffix}.part" / "journal.jsonl"
    for batches in sorted(random.Random(kills).sample(range(1, 120), kills)):
        process = start(args)
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= batches):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    process = start(args)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 3
    first, *others = told.splitlines(keepends=True)
    done = int(first.removeprefix("fastervit: going on after ").removesuffix(" of 2000 images\n"))
    assert done >= 16
    assert "".join(others) == said.replace(str(whole), str(out))  # each image that cannot be read is named once
    assert is_same(out, whole)
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith("rows")}
    assert left == {f"rows.{suffix}{more}" for more in ("", ".json", ".unreadable.jsonl")}


def peak(count: int, checkpoint: Path, folder: Path) -> int:
    """The most memory of Python's that predicting so many images takes, in bytes."""
    args = command(write_many(folder, count, 100), checkpoint, folder / "rows.csv", "stub", "--batch-size", 4)
    tracemalloc.start()
    try:
        assert openfastervit_cli.main(args) == 3
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("_stubs")
def test_memory_does_not_grow_with_the_number_of_images(checkpoint: Path, tmp_path: Path):
    peak(100, checkpoint, tmp_path / "warm-up")
    few, many = (peak(count, checkpoint, tmp_path / str(count)) for count in (300, 2300))
    assert many - few < 400_000  # a result is a kilobyte: 2000 that stay would be five times as much


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_is_flat_over_100_000_images(
    checkpoint: Path, tmp_path: Path, suffix: str, record_property: pytest.FixtureRequest
):
    images, memory = write_many(tmp_path, 100_000, 20_000), tmp_path / "memory"
    began = time.monotonic()
    args = command(images, checkpoint, tmp_path / f"rows.{suffix}", "stub-measured")
    process = start(args, STUB_MEMORY=str(memory))
    _, told = process.communicate()
    assert process.returncode == 3, told[-1000:]
    assert "1000 of 100000 images could not be read" in told
    used = [int(line) / 1e6 for line in memory.read_text().splitlines()]
    assert len(used) == 3125
    early, late = max(used[:313]), max(used)
    print(f"{suffix}: {early:.1f} MB at most over the first 10,000 images, {late:.1f} MB over all,")
    print(f"{used[-1]:.1f} MB at the end; {100_000 / (time.monotonic() - began):.0f} images a second with the start")
    assert late - early < 25
