"""A run that was killed, wherever that was, goes on and ends bit for bit as one that never was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.runs import (
    UPDATES,
    At,
    assert_same_end,
    break_image,
    fastervit,
    interrupt,
    kill,
    saved_state,
    saved_step,
    session_of,
    table,
    terminate,
    warn,
    write_data,
    write_recipe,
)

RECORDER = "openfastervit.training.recorder:Recorder"
FOLDER = "openfastervit.training.run_folder:RunFolder"
UPDATE = f"{RECORDER}.update"
EVALUATING = f"{RECORDER}.evaluating"

pytestmark = pytest.mark.early  # one reference, and one process that they are forked from


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two to learn from and one to be judged on among them broken."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    for name in ("train/ant/03.jpg", "train/bee/22.jpg", "val/cat/05.jpg"):
        break_image(folder / name)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    return write_recipe(path, data=str(data), save_steps=3, max_unreadable=0.5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ended = fastervit(run.with_name("told"), "train", "--recipe", recipe, "--out", run)
    assert ended.code == 0, ended.err
    assert len(table(run / "metrics.csv")) == 2
    assert {row["split"] for row in table(run / "skipped.csv")} == {"train", "val"}
    return run


def killed(run: Path, recipe: Path | None, at: At, *options: object) -> None:
    """Start a run, or go on with it, up to a moment at which it is killed."""
    start = ("--resume", run) if recipe is None else ("--recipe", recipe, "--out", run)
    ended = fastervit(run.with_name("told"), "train", *start, *options, moments=[at])
    assert ended.code == -signal.SIGKILL, ended.err


def finish(run: Path, *options: object) -> str:
    ended = fastervit(run.with_name("told"), "train", "--resume", run, *options)
    assert ended.code == 0, ended.err
    return ended.err


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_epochs_and_evaluations(
    tmp_path: Path, recipe: Path, reference: Path, workers: int
) -> None:
    run = tmp_path / "run"
    killed(run, recipe, At(UPDATE, 2, kill, after=True), "--workers", workers)  # before the first checkpoint
    assert saved_step(run) == 0
    killed(run, None, At(f"{FOLDER}.save_checkpoint", 1, kill, after=True))  # after it, before it is published
    assert saved_step(run) == 3
    assert not (run / "last.safetensors").exists()
    killed(run, None, At(EVALUATING, 2, kill))  # in the first evaluation
    assert saved_step(run) == 3
    killed(run, None, At(UPDATE, 5, kill, after=True))  # in the second epoch, after update 8; the last saved is 6
    assert saved_step(run) == 6
    assert "resuming" in finish(run)
    assert_same_end(run, reference)


def test_killed_at_the_end_of_epochs(tmp_path: Path, recipe: Path, reference: Path) -> None:
    """Where the last update of an epoch is saved, and its figures are written, but not yet the epoch's checkpoint."""
    run = tmp_path / "run"
    at = At(f"{FOLDER}.append_metrics", 1, kill, after=True)
    killed(run, recipe, at, "--save-steps", UPDATES)
    assert saved_step(run) == UPDATES
    assert saved_state(run)["progress"]["epoch"] == 0
    assert [row["epoch"] for row in table(run / "metrics.csv")] == ["1"]
    assert "val" in {row["split"] for row in table(run / "skipped.csv")}
    killed(run, None, at)  # again, before anything was saved
    killed(run, None, At(f"{FOLDER}.save_checkpoint", 1, kill, after=True))
    assert saved_state(run)["progress"]["epoch"] == 1
    published = (run / "last.safetensors").stat().st_mtime_ns
    killed(run, None, At(f"{FOLDER}.publish", 3, kill, after=True))  # last and best on resuming, then last of update 10
    assert (run / "last.safetensors").stat().st_mtime_ns > published
    finish(run, "--save-steps", 3)
    assert_same_end(run, reference)


def test_killed_before_and_after_the_very_last_checkpoint(tmp_path: Path, recipe: Path, reference: Path) -> None:
    run = tmp_path / "run"
    killed(run, recipe, At(f"{RECORDER}.epoch", 2, kill, after=True))
    assert saved_step(run) == 9
    assert len(table(run / "metrics.csv")) == 2
    killed(run, None, At(f"{FOLDER}.publish", 3, kill))
    assert saved_step(run) == 10
    finish(run)
    assert_same_end(run, reference)


def test_a_command_killed_from_outside(tmp_path: Path, recipe: Path, reference: Path) -> None:
    """The whole command, at whatever it is doing a while after its first checkpoint."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "openfastervit_cli", "train", "--recipe", recipe, "--out", run, "--workers", "2"]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        limit = time.monotonic() + 120
        while saved_step(run) == 0 and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        child.kill()
        assert child.wait(10) == -signal.SIGKILL
        limit = time.monotonic() + 20
        while left := list(session_of(child.pid)):  # workers see that they are alone
            assert time.monotonic() < limit, left
            time.sleep(0.1)
    assert 3 <= saved_step(run) <= 2 * UPDATES
    finish(run)
    assert_same_end(run, reference)


# --- Signals that ask -------------------------------------------------------------------------------------------------


def test_signals_save_and_stop(tmp_path: Path, recipe: Path, reference: Path) -> None:
    """Sent to the whole group, workers included."""
    run = tmp_path / "run"
    told = tmp_path / "told"
    start = ("train", "--recipe", recipe, "--out", run, "--workers", 2)
    ended = fastervit(told, *start, moments=[At(UPDATE, 2, terminate)])
    assert ended.code == 143, ended.err
    assert ended.err.splitlines()[-1].endswith(f"stopped by signal 15; go on with: fastervit train --resume {run}")
    assert saved_step(run) == 2
    for moment, code, step, epoch in (
        (At(UPDATE, 2, warn), 143, 4, 0),
        (At(EVALUATING, 1, terminate), 143, 5, 0),
        (At(EVALUATING, 2, interrupt), 130, 5, 0),
        (At(f"{RECORDER}.epoch", 1, terminate), 143, 6, 1),
        (At(UPDATE, 2, interrupt), 130, 8, 1),
    ):
        ended = fastervit(told, "train", "--resume", run, moments=[moment])
        assert ended.code == code, (moment, ended.err)
        assert "Traceback" not in ended.err
        assert saved_step(run) == step
        assert saved_state(run)["progress"]["epoch"] == epoch
    finish(run)
    assert_same_end(run, reference)


def wait_and_interrupt() -> None:
    time.sleep(1.2)
    interrupt()
    time.sleep(60)


def be_bothered() -> None:
    """What schedulers and launchers send while a run saves."""
    for send in (interrupt, terminate, warn, terminate):
        send()
    time.sleep(0.1)


def test_a_second_ctrl_c_interrupts_at_once_and_other_signals_do_not(
    tmp_path: Path, recipe: Path, reference: Path
) -> None:
    run = tmp_path / "run"
    told = tmp_path / "told"
    saving = f"{FOLDER}.save_checkpoint"
    ended = fastervit(
        told,
        *("train", "--recipe", recipe, "--out", run, "--workers", 2),
        moments=[At(UPDATE, 2, interrupt), At(saving, 1, wait_and_interrupt)],
    )
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "fastervit: interrupted"
    assert ended.seconds < 40
    assert saved_step(run) == 0
    ended = fastervit(told, "train", "--resume", run, moments=[At(UPDATE, 2, interrupt), At(saving, 1, be_bothered)])
    assert ended.code == 130
    assert saved_step(run) == 2
    finish(run)
    assert_same_end(run, reference)


def kill_a_worker() -> None:
    """As the kernel does when memory is short."""
    workers = sorted(set(session_of(os.getpid())) - {os.getpid()})
    os.kill(workers[0], signal.SIGKILL)
    time.sleep(2)


def test_a_worker_that_dies_ends_the_run_with_a_word(tmp_path: Path, recipe: Path, reference: Path) -> None:
    run = tmp_path / "run"
    ended = fastervit(
        tmp_path / "told",
        *("train", "--recipe", recipe, "--out", run, "--workers", 2),
        moments=[At(UPDATE, 4, kill_a_worker)],
    )
    assert ended.code == 1
    assert "fastervit: error: a process that decodes images died" in ended.err
    assert ended.err.splitlines()[-1].endswith("go on with --resume, with fewer --workers")
    finish(run, "--workers", 0)
    assert_same_end(run, reference)


# --- What may be resumed, and how -------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_run_that_is_done_is_left_as_it_is(tmp_path: Path, reference: Path) -> None:
    before = everything(reference)
    ended = fastervit(tmp_path / "told", "train", "--resume", reference)
    assert ended.code == 0
    assert ended.err == f"{reference} is done already: all 2 epochs; nothing was changed\n"
    best = max(float(row["val_top1"]) for row in table(reference / "metrics.csv"))
    assert ended.out == f"best top-1 {best:.2f} %; the network is {reference / 'best.safetensors'}\n"
    assert everything(reference) == before


def test_what_cannot_be_resumed_or_started(tmp_path: Path, recipe: Path, reference: Path, data: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = everything(tmp_path)
    for path in ("nowhere", "empty", "file"):
        ended = fastervit(told, "train", "--resume", tmp_path / path)
        assert ended.code == 1
        assert f"fastervit: error: --resume {tmp_path / path}: there is no run" in ended.err
    untouched = everything(reference)
    for options, says in (
        (("--resume", reference, "--epochs", 5), "epochs cannot change in a run that is resumed: its recipe is in "),
        (("--resume", reference, "--lr", 0.1), "start a new run with --recipe and another --out"),
        (("--resume", reference, "--recipe", recipe), "--recipe and --resume contradict each other"),
        (("--resume", reference, "--out", tmp_path / "new"), "--out and --resume contradict each other"),
        (("--recipe", recipe, "--out", reference), f"--out {reference} holds a run already; go on with it by --resume"),
        (("--recipe", recipe, "--out", tmp_path / "new", "--batch-size", 64), "lower batch_size"),
    ):
        ended = fastervit(told, "train", *options)
        assert ended.code == 1
        assert ended.err.startswith("fastervit: error: ")
        assert ended.err.count("\n") == 1
        assert says in ended.err
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    assert everything(reference) == untouched
    assert {path: found for path, found in everything(tmp_path).items() if "told" not in path} == before


def test_a_run_may_move_to_other_data_and_workers(tmp_path: Path, recipe: Path, reference: Path, data: Path) -> None:
    run = tmp_path / "run"
    killed(run, recipe, At(UPDATE, 7, kill))
    moved = tmp_path / "moved" / "run"
    moved.parent.mkdir()
    run.rename(moved)
    shutil.copytree(data, tmp_path / "copy")
    short = tmp_path / "short"
    shutil.copytree(data, short)
    (short / "train" / "ant" / "00.jpg").unlink()
    ended = fastervit(tmp_path / "told", "train", "--resume", moved, "--data", short)
    assert ended.code == 1
    assert "the run was started with 42 training images, here are 41; give the same data" in ended.err
    finish(moved, "--data", tmp_path / "copy", "--workers", 1, "--device", "cpu", "--log-every", 1)
    assert_same_end(moved, reference)


def start_another() -> None:
    """A second process for the folder of this one, which waits for its answer."""
    run = sys.argv[sys.argv.index("--out") + 1]
    told = Path(run).with_name("second")
    for args in (("--resume", run), sys.argv[2:]):
        pid = os.fork()
        if pid == 0:
            from openfastervit_cli import main

            os.dup2(os.open(f"{told}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os._exit(main(["train", *args]))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_one_process_at_a_time(tmp_path: Path, recipe: Path, reference: Path) -> None:
    run = tmp_path / "run"
    ended = fastervit(
        tmp_path / "told", "train", "--recipe", recipe, "--out", run, moments=[At(UPDATE, 4, start_another)]
    )
    assert ended.code == 0, ended.err
    first, second = (tmp_path / "second.err").read_text().splitlines()
    assert first.startswith(f"fastervit: error: {run} is in use: process ")
    assert second.startswith(f"fastervit: error: --out {run} holds a run already")
    assert_same_end(run, reference)
