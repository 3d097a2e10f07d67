"""Training runs in processes of their own, which may be killed at a chosen moment, and what is compared of them.

The processes are forked from one that has imported everything: they start in no time.
"""

import csv
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import yaml

from tests.pocket import TRAINED, picture

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["openfastervit.training.run", "openfastervit_cli", "matplotlib.pyplot", "pandas"])

TIMES = ("images_per_second", "data_wait", "seconds")
"""Columns of metrics.csv that differ from run to run."""

RECIPE: dict[str, Any] = {
    "model": "fastervit_0",
    "model_options": TRAINED,
    "img_size": [32],
    "epochs": 2,
    "batch_size": 4,
    "accumulate": 2,
    "lr": 1e-3,
    "lr_batch": 8,
    "mixup": 0.8,
    "cutmix": 1.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "ema_decay": 0.99,
    "ema_warmup": True,
    "mesa": 0.1,
    "clip_grad": 5.0,
    "drop_path": 0.1,
    "dropout": 0.1,
    "workers": 0,
    "log_every": 3,
    "device": "cpu",
}
"""Everything that draws random numbers, and everything that remembers; 5 updates an epoch of ``write_data``."""
UPDATES = 5


def write_data(folder: Path, *, train: int = 42, val: int = 10, classes: Sequence[str] = ("ant", "bee", "cat")) -> Path:
    """Images in ``train/CLASS`` and ``val/CLASS``."""
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / split / classes[number % len(classes)] / f"{number:02}.jpg"
            picture(1000 * len(split) + number, size=(48, 40)).save(path)
    return folder


def write_recipe(path: Path, **changes: Any) -> Path:
    """``RECIPE`` with changes, as a file."""
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


# --- Running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class At:
    """A moment of a run: a call of a function, and what is done there."""

    function: str
    """Such as ``openfastervit.training.recorder:Recorder.update``."""
    call: int
    """Which one, counted from 1."""
    do: Callable[[], None]
    after: bool = False
    """Once the function has returned, not before it is called."""

    def arrange(self) -> None:
        module, _, path = self.function.partition(":")
        holder: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        real, calls = getattr(holder, name), 0

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and not self.after:
                self.do()
            result = real(*args, **kwargs)
            if calls == self.call and self.after:
                self.do()
            return result

        setattr(holder, name, watched)


def kill() -> None:
    """As the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def _to_group(number: signal.Signals) -> None:
    os.killpg(os.getpgrp(), number)


def terminate() -> None:
    """To all processes of the run, as schedulers do."""
    _to_group(signal.SIGTERM)


def warn() -> None:
    """As Slurm does ahead of the end."""
    _to_group(signal.SIGUSR1)


def interrupt() -> None:
    """As a terminal does at Ctrl-C."""
    _to_group(signal.SIGINT)


class Ended(NamedTuple):
    """A run that is over."""

    code: int
    """Negative: the signal that killed it."""
    out: str
    err: str
    seconds: float


def _in_child(args: list[str], moments: Sequence[At], told: Path) -> None:
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{told}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may have been started with it ignored
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders, as in a command of its own
    sys.argv = ["fastervit", *args]
    for moment in moments:
        moment.arrange()
    from openfastervit_cli import main

    sys.exit(main(args))


class Running:
    """A ``fastervit`` command at work; ``told`` names the files of its output."""

    def __init__(self, told: Path, *args: object, moments: Sequence[At] = ()) -> None:
        self.told = told
        self._started = time.monotonic()
        self.process = FORKS.Process(target=_in_child, args=([str(arg) for arg in args], list(moments), told))
        self.process.start()

    def end(self, timeout: float = 120) -> Ended:
        """Wait for it, and for all processes that it started."""
        self.process.join(timeout)
        seconds = time.monotonic() - self._started
        pid, code = self.process.pid, self.process.exitcode
        assert pid is not None
        if code is None:
            os.killpg(pid, signal.SIGKILL)
            self.process.join()
        out, err = (Path(f"{self.told}.{name}").read_text(errors="replace") for name in ("out", "err"))
        assert code is not None, f"still running after {timeout} s:\n{err}"
        limit = time.monotonic() + 15
        while left := list(session_of(pid)):
            assert time.monotonic() < limit, f"processes {left} are left"
            time.sleep(0.05)
        return Ended(code, out, err, seconds)


def fastervit(told: Path, *args: object, moments: Sequence[At] = (), timeout: float = 120) -> Ended:
    """Run a command to its end."""
    return Running(told, *args, moments=moments).end(timeout)


def session_of(leader: int) -> Iterator[int]:
    """The living processes of a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == leader and state not in "ZX":
                yield int(entry.name)


# --- Comparing --------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without times."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def newest(run: Path) -> Path:
    """The folder of the newest checkpoint."""
    return max(run.glob("checkpoints/step-*"))


def saved_step(run: Path) -> int:
    """The update of the newest checkpoint; 0 where there is none."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)


def saved_state(run: Path) -> dict[str, Any]:
    """What the newest checkpoint has beside weights, without times."""
    state: dict[str, Any] = torch.load(newest(run) / "training_state.pt", weights_only=True)
    for name in ("seconds", "data_seconds"):
        state["sums"].pop(name)
    return state


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where  # a checkpoint gives tuples back as lists, now and then
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.numpy().tobytes() == other.numpy().tobytes(), where
    else:
        assert type(one) is type(other), where
        assert one == other, where


def assert_same_end(run: Path, reference: Path) -> None:
    """Two runs came to the same, bit for bit."""
    for name in ("last.safetensors", "best.safetensors"):
        assert_equal(safetensors.torch.load_file(run / name), safetensors.torch.load_file(reference / name), name)
        assert (run / name).read_bytes() == (reference / name).read_bytes()
    assert newest(run).name == newest(reference).name
    for path in newest(reference).glob("*.safetensors"):
        assert (newest(run) / path.name).read_bytes() == path.read_bytes(), path.name
    assert_equal(saved_state(run), saved_state(reference), "training_state")
    assert table(run / "metrics.csv") == table(reference / "metrics.csv")
    assert table(run / "skipped.csv") == table(reference / "skipped.csv")
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def break_image(path: Path) -> None:
    """Leave half of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
