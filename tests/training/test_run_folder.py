"""What a run folder holds, refuses and gives back. That it survives faults: tests/faults/test_disk.py."""

import hashlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openfastervit import atomic, environment
from openfastervit.training import lock, tables
from openfastervit.training.environment import git_revision
from openfastervit.training.run_folder import RunFolder

RECIPE = "model: fastervit_0\nepochs: 3\n"
COMMAND = ["fastervit", "train", "--out", "a folder"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", RECIPE, seed=7, command=COMMAND) as run:
        yield run


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def save(run: RunFolder, step: int, keep: int = 2) -> Path:
    files = {"model.safetensors": holding(b"weights %d" % step * 99), "training_state.pt": holding(b"state %d" % step)}
    return run.save_checkpoint(step, files, keep)


def steps(run: RunFolder) -> list[int]:
    return [step for step, _ in run.checkpoints()]


# --- Starting and going on --------------------------------------------------------------------------------------------


def test_a_new_folder_says_what_the_run_is(run: RunFolder) -> None:
    told = json.loads((run.path / "environment.json").read_text())
    assert run.recipe_text == (run.path / "recipe.yaml").read_text() == RECIPE
    assert told["seed"] == 7
    (start,) = told["starts"]
    assert start["command"] == COMMAND
    assert start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert start["versions"]["numpy"] == np.__version__
    assert start["hardware"]["cores"] >= 1
    assert pd.Timestamp(start["started"]).tz is not None
    assert sorted(path.name for path in run.path.iterdir() if path.name[0] != ".") == [
        "environment.json",
        "recipe.yaml",
    ]


def test_each_resume_adds_a_start(run: RunFolder) -> None:
    run.close()
    for _ in range(2):
        with RunFolder.resume(run.path, command=["again"]) as resumed:
            assert resumed.recipe_text == RECIPE
    told = json.loads((run.path / "environment.json").read_text())
    assert told["seed"] == 7
    assert [start["command"] for start in told["starts"]] == [COMMAND, ["again"], ["again"]]


def test_a_damaged_environment_does_not_stop_a_resume(run: RunFolder) -> None:
    run.close()
    (run.path / "environment.json").write_text('{"seed": 7, "sta')
    with pytest.warns(UserWarning, match=r"environment.json is damaged"), RunFolder.resume(run.path):
        pass
    assert len(json.loads((run.path / "environment.json").read_text())["starts"]) == 1


def test_create_takes_an_empty_folder_or_one_of_hidden_files(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    RunFolder.create(tmp_path, RECIPE, seed=0, command=[]).close()
    RunFolder.create(tmp_path / "not" / "there" / "yet", RECIPE, seed=0, command=[]).close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text(""), "is a file; give a folder"),
        (lambda path: (path.mkdir(), (path / "thesis.tex").touch()), "is not empty: it holds thesis.tex; give a new"),
        (lambda path: (path.mkdir(), (path / "recipe.yaml").touch()), "holds a run already; go on with it by --resume"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "holds a run already"),
    ],
)
def test_create_refuses_what_is_in_use(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "out"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=told):
        RunFolder.create(path, RECIPE, seed=0, command=[])
    assert sorted(tmp_path.rglob("*")) == before


def test_create_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: object) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("openfastervit.training.run_folder.describe_start", fail)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "run", RECIPE, seed=0, command=[])
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=f"--resume {path}: there is no run"):
            RunFolder.resume(path)
    assert not (tmp_path / "nowhere").exists()


def test_resume_clears_what_interrupted_writes_left(run: RunFolder) -> None:
    whole = save(run, 10)
    run.close()
    mine = [run.path / ".notes.tmp", run.path / "backup.tmp", run.path / ".metrics.csv.tmp"]
    for path in [*mine, run.path / ".metrics.csv.0123abcd.tmp"]:
        path.write_text("half")
    half = whole.with_name(".step-00000020.89abcdef.tmp")
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    with RunFolder.resume(run.path) as resumed:
        assert resumed.newest() == (10, whole)
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]
    assert {path.name for path in run.path.glob("*.tmp")} | {path.name for path in run.path.glob(".*.tmp")} == {
        path.name for path in mine
    }


# --- One process at a time --------------------------------------------------------------------------------------------


def test_nobody_else_may_write(run: RunFolder) -> None:
    with pytest.raises(BlockingIOError, match=f"^{run.path} is in use: process {os.getpid()} on"):
        RunFolder.resume(run.path)
    assert run.path.is_dir()
    run.close()
    RunFolder.resume(run.path).close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # later Pythons: on forking with threads
def test_loader_workers_of_a_killed_trainer_do_not_keep_the_lock(tmp_path: Path) -> None:
    # A forked worker has copies of its parent's handles, and lives on for some seconds when the parent is killed.
    told, telling = os.pipe()
    waiting, ending = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        run = RunFolder.create(tmp_path / "run", RECIPE, seed=0, command=[])
        if os.fork() == 0:  # the worker: it ends when the test closes its end of the pipe
            os.close(ending)
            os.write(telling, b"1")
            os.read(waiting, 1)
            os._exit(0)
        signal.pause()
        run.close()
    os.close(waiting)
    try:
        os.read(told, 1)
        with pytest.raises(BlockingIOError, match=f"process {trainer} on"):
            RunFolder.resume(tmp_path / "run")
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
        RunFolder.resume(tmp_path / "run").close()
    finally:
        os.close(ending)


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with (
        pytest.warns(UserWarning, match=r"cannot be locked on this system"),
        RunFolder.create(tmp_path / "run", RECIPE, seed=0, command=[]) as run,
    ):
        save(run, 1)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_lists_its_files(run: RunFolder) -> None:
    path = save(run, 1234)
    assert path == run.path / "checkpoints" / "step-00001234"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest == {
        "step": 1234,
        "files": {
            file.name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in (path / "model.safetensors", path / "training_state.pt")
        },
    }
    assert run.newest() == (1234, path)


def test_the_newest_are_kept(run: RunFolder) -> None:
    assert run.newest() is None
    for step in (5, 100_000_000, 7, 8, 9):  # the second is of a future that the run left
        save(run, step, keep=3)
    assert steps(run) == [7, 8, 9]
    save(run, 10, keep=1)
    assert steps(run) == [10]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-00000010"]


def test_the_same_step_again_replaces_it(run: RunFolder) -> None:
    save(run, 3)
    run.save_checkpoint(3, {"model.safetensors": holding(b"better")})
    newest = run.newest()
    assert newest is not None
    assert {path.name: path.read_bytes() for path in newest[1].glob("*[!n]")}["model.safetensors"] == b"better"
    assert not (newest[1] / "training_state.pt").exists()


def test_a_checkpoint_may_hold_folders(run: RunFolder) -> None:
    def shards(path: Path) -> None:
        path.mkdir()
        for rank in range(2):
            (path / f"shard-{rank}").write_bytes(b"x" * rank)

    path = run.save_checkpoint(1, {"sharded": shards})
    assert run.newest() == (1, path)
    (path / "sharded" / "shard-1").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole .*shard-1 is missing"):
        run.newest()


@pytest.mark.parametrize(
    ("step", "files", "keep", "told"),
    [
        (-1, {"a": holding(b"a")}, 1, "step=-1"),
        (1, {"a": holding(b"a")}, 0, "keep=0"),
        (1, {}, 1, "at least one file"),
        (1, {"../a": holding(b"a")}, 1, "'../a' cannot be"),
        (1, {"manifest.json": holding(b"a")}, 1, "cannot be"),
    ],
)
def test_checkpoints_that_make_no_sense(run: RunFolder, step: int, files: dict, keep: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        run.save_checkpoint(step, files, keep)
    assert run.checkpoints() == []


def test_a_fault_of_the_writer_is_told_as_it_is(run: RunFolder) -> None:
    def fault(path: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    save(run, 1)
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access$"):
        run.save_checkpoint(2, {"model.safetensors": holding(b"w"), "training_state.pt": fault})
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000001"]


def test_publishing_outlives_the_checkpoint(run: RunFolder) -> None:
    for step in (1, 2, 3):
        path = save(run, step, keep=1)
        source = path / "model.safetensors"
        for _ in range(2):  # the second time both names are links to one file
            assert run.publish("last.safetensors", source) == run.path / "last.safetensors"
        if step == 1:
            run.publish("best.safetensors", source)
    assert (run.path / "last.safetensors").read_bytes() == b"weights 3" * 99
    assert (run.path / "best.safetensors").read_bytes() == b"weights 1" * 99
    assert [path for path in run.path.iterdir() if path.suffix == ".tmp"] == []


def test_publishing_copies_where_there_are_no_links(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    source = save(run, 1) / "model.safetensors"
    published = run.publish("best.safetensors", source)
    assert published.read_bytes() == source.read_bytes()
    assert not published.samefile(source)
    with pytest.raises(FileNotFoundError):
        run.publish("best.safetensors", source.with_name("ema.safetensors"))
    assert published.read_bytes() == source.read_bytes()


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_metrics_are_a_plain_table(run: RunFolder) -> None:
    run.append_metrics({"epoch": 1, "step": 10, "train_loss": 2.5})
    run.append_metrics({"epoch": 2, "step": 20, "train_loss": float("nan"), "val_top1": np.float32(0.1), "note": "a,b"})
    run.append_metrics({"epoch": 3, "step": 30, "val_top1": 1 / 3})
    table = pd.read_csv(run.metrics_csv)
    assert list(table) == ["epoch", "step", "train_loss", "val_top1", "note"]
    assert table["step"].tolist() == [10, 20, 30]
    np.testing.assert_array_equal(table["train_loss"], [2.5, np.nan, np.nan])
    np.testing.assert_array_equal(table["val_top1"], [np.nan, float(np.float32(0.1)), 1 / 3])  # no digit is lost
    assert table["note"][1] == "a,b"


def test_a_row_of_metrics_is_checked(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="needs its step; it has epoch"):
        run.append_metrics({"epoch": 1})
    with pytest.raises(TypeError, match="loss is a Tensor"):
        run.append_metrics({"step": 1, "loss": torch.tensor(1.0)})  # type: ignore[dict-item]
    assert not run.metrics_csv.exists()


def test_tables_are_cut_back(run: RunFolder) -> None:
    run.truncate_metrics(0)
    assert not run.metrics_csv.exists()
    for epoch in range(1, 5):
        run.append_metrics({"epoch": epoch, "step": 100 * epoch})
        run.add_skipped([(f"{epoch}.jpg", "broken")], epoch=epoch, step=100 * epoch - 5)
    run.truncate_metrics(200)
    assert pd.read_csv(run.metrics_csv)["epoch"].tolist() == [1, 2]
    assert pd.read_csv(run.skipped_csv)["image"].tolist() == ["1.jpg", "2.jpg"]
    run.append_metrics({"epoch": 3, "step": 300, "new": 1})
    assert pd.read_csv(run.metrics_csv)["epoch"].tolist() == [1, 2, 3]
    run.truncate_metrics(0)
    assert run.metrics_csv.read_text() == "epoch,step,new\n"


def test_a_table_that_someone_damaged_is_named(run: RunFolder) -> None:
    run.metrics_csv.write_text("epoch,step\n1,ten\n")
    with pytest.raises(ValueError, match=r"metrics.csv: step='ten' is no number"):
        run.truncate_metrics(5)
    run.metrics_csv.write_text("epoch,step\n1,10,2\n2,20\n")
    with pytest.raises(ValueError, match=r"metrics.csv: line 2 has 3 cells, the head 2"):
        run.append_metrics({"epoch": 3, "step": 30})


def test_skipped_images(run: RunFolder) -> None:
    run.add_skipped([], epoch=1, step=1)
    assert not run.skipped_csv.exists()
    run.add_skipped([('a "b",\n.jpg', "it does not\n decode"), ("ü.png", "the file is empty")], epoch=1, step=4)
    run.add_skipped([(os.fsdecode(b"\xff.jpg"), "it is not an image")], epoch=2, step=9)
    table = pd.read_csv(run.skipped_csv, encoding_errors="surrogateescape", dtype=object)
    assert table.to_numpy().tolist() == [
        ['a "b",\n.jpg', "it does not decode", "train", "1", "4"],
        ["ü.png", "the file is empty", "train", "1", "4"],
        [os.fsdecode(b"\xff.jpg"), "it is not an image", "train", "2", "9"],
    ]


TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXT, st.integers(0, 99)), min_size=1, max_size=4), st.data())
def test_a_table_cut_off_anywhere_goes_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A power cut may keep any part of what was added last: rows before stay, and the next ones fit."""
    path = tmp_path_factory.mktemp("table") / "skipped.csv"
    tables.extend(path, ("image", "step"), rows)
    before = path.read_bytes()
    tables.extend(path, ("image", "step"), [("last,\nimage", 123)])
    cut = data.draw(st.integers(len(before), path.stat().st_size - 1))
    path.write_bytes(path.read_bytes()[:cut])
    tables.cut_back(path, 1000)
    tables.extend(path, ("image", "step"), [("after", 5)])
    found = pd.read_csv(path, keep_default_na=False, dtype=str, skip_blank_lines=False)
    assert found.to_numpy().tolist() == [[name, str(step)] for name, step in [*rows, ("after", 5)]]


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        atomic.write_atomically(tmp_path / "file", b"1")
        atomic.write_atomically(tmp_path / "file", lambda file: file.write(b"2") and None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_bytes() == b"2"


def test_sizes_in_words() -> None:
    words = [atomic.size_in_words(size) for size in (0, 999, 1000, 12_345_678, 2e9, 3.21e12, 1e16)]
    assert words == ["0 bytes", "999 bytes", "1.0 kB", "12.3 MB", "2.0 GB", "3.2 TB", "10000.0 TB"]


# --- Environment ------------------------------------------------------------------------------------------------------


def test_the_revision_is_that_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *who, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() is None
    git("init", "-q")
    assert git_revision() is None  # no commit yet
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    Path("run").mkdir()
    Path("run", "untracked").touch()
    assert git_revision() == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    Path("file").write_text("2")
    assert git_revision() == {"revision": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_gpus_are_named_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.hardware()["gpus"] == "none" or torch.accelerator.is_available()
    assert "gpus" not in environment.hardware(gpus=False)

    class Driver:
        @staticmethod
        def get_device_name(index: int) -> str:
            return "Quick One" if index else "Other"

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Driver)
    assert environment.hardware()["gpus"] == "1 x Other, 2 x Quick One"
    monkeypatch.setattr(torch, "get_device_module", lambda device: None)
    assert environment.hardware()["gpus"] == "3 x cuda"


def test_versions_pass_over_what_is_not_installed() -> None:
    assert list(environment.versions(["torch", "no-such-package"])) == ["python", "torch"]
