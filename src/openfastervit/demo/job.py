"""The demo from start to end: data, training, evaluation, what carriers look at, speed, report."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from openfastervit.demo import environment
from openfastervit.demo.digits import Digits, load, prepare
from openfastervit.demo.evaluate import evaluate
from openfastervit.demo.folder import publish, staging, write
from openfastervit.demo.interrupt import Interruption
from openfastervit.demo.looking import look
from openfastervit.demo.network import build, describe
from openfastervit.demo.report import Results
from openfastervit.demo.report.markup import percent
from openfastervit.demo.throughput import REPEATS, SIDES, Timing, compare
from openfastervit.demo.train import EPOCHS, Step, steps_per_epoch, train
from openfastervit.models import FasterViT


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    report: Path
    top1: float
    """Share of the held-out images read correctly."""
    interrupted: bool


def run(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    epochs: int | None = None,
    sides: Sequence[int] = SIDES,
    repeats: int = REPEATS,
) -> Summary:
    """Train a pocket network on handwritten digits and write ``report.html`` and what it tells of into a folder.

    The first Ctrl-C during or after training ends what is going on and goes on to the report, which says so.

    Args:
        out: The folder; made if it is not there. Files of an earlier run are replaced, others left alone.
        seed: Of the network's first weights and of the training; the same seed gives the same weights on one machine.
        epochs: Passes over the training images; None for as many as the task needs.
        sides: Sides of the images that speed is measured at, in pixels, multiples of 32.
        repeats: Of each measurement of speed.

    Raises:
        ValueError: If an argument is out of range, ``out`` is a file, or scikit-learn is not installed.
        OSError: If ``out`` cannot be written into.
        KeyboardInterrupt: At Ctrl-C before training, and at the second one; then nothing is written.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} is outside 0 ... 2**63 - 1")
    out = Path(out)
    command = f"fastervit demo --seed {seed}" + ("" if epochs is None else f" --epochs {epochs}")
    # The folder comes first: that it cannot be written is better known before the training than after.
    with staging(out) as staged, _one_thread(), _progress() as progress:
        digits = load()
        with Interruption() as interruption:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model, results = _work(
                    digits,
                    progress,
                    interruption,
                    epochs=epochs or EPOCHS,
                    sides=tuple(sides),
                    repeats=repeats,
                    seed=seed,
                    command=command,
                )
            write(staged, model, results)
            publish(staged, out)
    _say(out, results)
    return Summary(out / "report.html", results.evaluation.top1, results.interrupted)


def _work(
    digits: Digits,
    progress: Progress,
    interruption: Interruption,
    *,
    epochs: int,
    sides: tuple[int, ...],
    repeats: int,
    seed: int,
    command: str,
) -> tuple[FasterViT, Results]:
    """All that takes time, told on ``progress``."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def stop() -> bool:
        return interruption.requested

    with _timed(seconds, "preparation"):
        images = prepare(digits.scans)
        labels = torch.from_numpy(digits.labels)
        model = build()
        stages = describe(model.eval(), images)
    per_epoch = steps_per_epoch(len(digits.training))
    task = progress.add_task("training", total=epochs * per_epoch, detail="")

    def tell(step: Step) -> None:
        detail = f"epoch {step.epoch}/{epochs}  loss {step.loss:.3f}  accuracy {percent(step.accuracy)}"
        progress.update(task, completed=step.done, detail=detail)

    with _timed(seconds, "training"):
        history = train(model, images[digits.training], labels[digits.training], epochs=epochs, stop=stop, tell=tell)
    if stop():
        progress.console.print(
            "Interrupted: next comes a report of what is trained so far. Ctrl-C again leaves at once."
        )
    with _timed(seconds, "evaluation"):
        model.eval()
        held_out = images[digits.held_out]
        evaluation = evaluate(model, held_out, digits.labels[digits.held_out])
        looking = look(model, held_out, evaluation.labels)
    timings: list[Timing] = []
    with _timed(seconds, "speed"):
        if not stop():
            task = progress.add_task("speed", total=len(sides) * repeats, detail="beside full attention")
            for timing in compare(model, sides=sides, repeats=repeats, stop=stop, tell=lambda: progress.advance(task)):
                timings.append(timing)
    seconds["total"] = time.perf_counter() - started
    return model, Results(
        digits=digits,
        evaluation=evaluation,
        epochs=history,
        planned_epochs=epochs,
        steps_per_epoch=per_epoch,
        interrupted=stop(),
        seed=seed,
        command=command,
        stages=stages,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        looking=looking,
        timings=timings,
        seconds=seconds,
        hardware=environment.hardware(),
        versions=environment.versions(),
        finished=datetime.now(UTC),
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums then come in one order, and a busy machine does not make threads wait in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _progress() -> Progress:
    """Bars with the time left, on stderr."""
    return Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def _say(out: Path, results: Results) -> None:
    total = len(results.evaluation.labels)
    early = f" (interrupted; trained for {results.trained})" if results.interrupted else ""
    print(
        f"Made {out / 'report.html'} and, beside it, the network and its predictions: "
        f"top-1 {percent(results.evaluation.top1, 2)} on {total} held-out digits{early}"
    )
