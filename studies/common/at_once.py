"""Several runs, one after the other or several at once.

One at a time, they are trained in this process. Several at once have a process each, with its share of the cores:
small networks use one thread much better than two. What such a process tells is in ``NAME.log`` beside its folder.

A run that fails is told of, and the others go on. Ctrl-C or SIGTERM lets all save and ends; the same command goes on.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from openfastervit.training.trainer import Stopped
from studies.common.runs import Run, is_done, train

Failures = dict[str, str]
"""The last line of what went wrong, by the run's title."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def train_all(
    runs: Sequence[Run],
    out: Path,
    *,
    command: Sequence[str],
    at_once: int = 1,
    after_each: Callable[[Failures], None] = lambda failures: None,
) -> Failures:
    """Train all that is not done yet.

    Args:
        runs: In their order.
        out: The folder of their folders.
        command: The study's command line, to be written down.
        at_once: How many at a time.
        after_each: Called with what failed so far when a run has ended, and at the start if some are done already.

    Raises:
        Stopped: If a signal asked for it. All that were being trained are saved.
        ValueError: If a setting is wrong, or a folder holds a run with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if not is_done(run, out)]  # also: are all settings right, before anything starts?
    for run in waiting:
        run.resolved()
    if len(waiting) < len(runs):
        _tell(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already")
        after_each({})
    if at_once == 1:
        return _one_by_one(waiting, out, command, after_each)
    with _stop_signals():
        return _Several(waiting, out, command, at_once, after_each).train()


def _one_by_one(
    runs: Sequence[Run], out: Path, command: Sequence[str], after_each: Callable[[Failures], None]
) -> Failures:
    failures: Failures = {}
    for number, run in enumerate(runs):
        _tell(f"== {run.title}, {number + 1} of {len(runs)}")
        try:
            train(run, out, command)
        except Stopped:
            raise
        except Exception as error:  # whatever it is: the others go on, and it is told of at the end
            log = out / f"{run.title}.log"
            log.write_text(traceback.format_exc(), encoding="utf-8")
            failures[run.title] = _short(str(error) or type(error).__name__)
            _tell(f"{run.title} failed: {failures[run.title]} ({log})")
        after_each(failures)
    return failures


class _Several:
    """Processes that train, a run each."""

    def __init__(
        self,
        runs: Sequence[Run],
        out: Path,
        command: Sequence[str],
        at_once: int,
        after_each: Callable[[Failures], None],
    ) -> None:
        self._waiting = list(runs)
        self._count = len(runs)
        self._out, self._command, self._at_once, self._after_each = out, command, at_once, after_each
        self._running: dict[subprocess.Popen[bytes], Run] = {}
        self._failures: Failures = {}

    def train(self) -> Failures:
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._at_once:
                    self._start(self._waiting.pop(0))
                time.sleep(0.2)
                for process in [process for process in self._running if process.poll() is not None]:
                    self._end(process)
        except BaseException:
            self._stop()
            raise
        return self._failures

    def _start(self, run: Run) -> None:
        _tell(f"== {run.title}, {self._count - len(self._waiting)} of {self._count}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = str(max(1, cores // self._at_once))
        arguments = [json.dumps(dataclasses.asdict(run)), str(self._out), json.dumps(list(self._command))]
        with self._log(run).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "studies.common.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict.fromkeys(_THREADS, threads)},
            )
        self._running[process] = run

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        run = self._running.pop(process)
        if process.returncode != 0:
            lines = self._log(run).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            ended = f"its process ended with exit code {process.returncode}"
            self._failures[run.title] = _short(f"{ended}: {lines[-1]}" if lines else ended)
            _tell(f"{run.title} failed: {self._failures[run.title]} ({self._log(run)})")
        self._after_each(self._failures)

    def _stop(self) -> None:
        """Ask all to save and end, and wait. Ctrl-C has reached them already: asked twice, they save once."""
        _tell(f"saving {len(self._running)} runs")
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            for process in self._running:
                process.wait()
        except BaseException:  # a second Ctrl-C: at once, from the last checkpoint
            for process in self._running:
                process.kill()
            raise

    def _log(self, run: Run) -> Path:
        return self._out / f"{run.title}.log"


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise ``Stopped``; the second one as well."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:  # one that was ignored, as Ctrl-C is in the background, stays so
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
