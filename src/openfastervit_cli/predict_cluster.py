"""``fastervit predict --cluster``: the job's settings from the command line, and what is told of it on stderr."""

import contextlib
import datetime
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openfastervit_cli.parser import report_error

if TYPE_CHECKING:
    from openfastervit.inference.cluster import ClusterJob, Planned
    from openfastervit.inference.engines import Precision

_LINE_SECONDS = 30.0


def predict_on_cluster(
    source: str,
    address: str,
    checkpoint: Sequence[Path],
    digest: str,
    *,
    out: str | None,
    format: str | None,
    calibration: Path | None,
    model: str | None,
    img_size: Sequence[int] | None,
    precision: "Precision",
    **settings: object,
) -> int:
    """Classify images or WebDataset shards on a cluster of Ray's, and return the exit code.

    Args:
        source: What to classify.
        address: Of the cluster.
        checkpoint: Its file, and those that lie beside it.
        digest: Of these.
        out: The folder of rows.
        format: As on the command line.
        calibration: As on the command line.
        model: As on the command line.
        img_size: As on the command line.
        precision: As on the command line.
        settings: More fields of ``ClusterJob``.

    Raises:
        ValueError: If something cannot be had on a cluster, or is missing; and as of ``cluster.run_on``.
        OSError: As of ``cluster.run_on``.
    """
    if out is None or out == "-":
        raise ValueError("--cluster writes a folder of Parquet files; name it: --out FOLDER")
    if format not in (None, "parquet"):
        raise ValueError(f"--cluster writes Parquet, not {format}; leave --format out")
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pandas", "pyarrow")):
        raise ValueError("--cluster needs Ray Data; install with: pip install 'openfastervit[scale]'")
    from openfastervit.inference.cluster import ClusterJob, read_network
    from openfastervit.inference.exported import is_exported

    if calibration is not None or (precision == "int8" and not is_exported(checkpoint[0])):
        raise ValueError(
            "--cluster takes no calibration images; quantise first, with `fastervit export --precision int8`, and give "
            "the exported file as --checkpoint"
        )
    network = read_network(checkpoint, model, img_size)
    job = ClusterJob(source, out, network, digest, precision=precision, **settings)  # type: ignore[arg-type]
    # Ray prints what happens to its nodes, whoever reads standard output.
    with contextlib.redirect_stdout(sys.stderr):
        return _follow(job, address)


def _follow(job: "ClusterJob", address: str) -> int:
    """Do the job, tell of it, and return the exit code."""
    from openfastervit.inference.cluster import Planned, Progress, ShardFailed, Told, Written, run_on

    plan: Planned | None = None
    shards = images = unreadable = failed = 0
    clock = _Clock()
    try:
        with contextlib.closing(run_on(address, job)) as events:  # type: ignore[type-var]
            for event in events:
                match event:
                    case Planned():
                        plan = event
                        if plan.complete < plan.shards and plan.complete:
                            print(_on(plan), file=sys.stderr)
                    case Told(line):
                        print(f"fastervit: {line}", file=sys.stderr)
                    case Progress(count):
                        clock.tell(count, plan, shards)
                    case ShardFailed(shard, reason):
                        failed += 1
                        report_error(f"{shard}: {reason}")
                    case Written():
                        shards, images, unreadable = (
                            shards + 1,
                            images + event.images,
                            unreadable + event.unreadable,
                        )
                        for image, reason in event.failures:
                            report_error(f"{image}: {reason}")
    except KeyboardInterrupt:
        goes_on = (
            f"; shards that are complete stay in {job.out}, and the same command goes on after them" if plan else ""
        )
        print(f"fastervit: interrupted{goes_on}", file=sys.stderr)
        return 130
    assert plan is not None
    return _sum_up(plan, job.out, shards, images, unreadable, failed)


class _Clock:
    """A line on stderr now and then: how far the job is, and how fast."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self._images = 0

    def tell(self, images: int, plan: "Planned | None", shards: int) -> None:
        """So many images more are done, and so many shards."""
        if self._images == 0:  # the cluster has started
            self._began = self._told = time.monotonic()
        self._images += images
        now = time.monotonic()
        if plan is None or now - self._told < _LINE_SECONDS:
            return
        self._told = now
        rate = self._images / (now - self._began)
        left = ""
        if shards:
            seconds = (plan.shards - plan.complete - shards) * (now - self._began) / shards
            left = f", {datetime.timedelta(seconds=round(seconds))} left"
        print(
            f"fastervit: {plan.complete + shards} of {plan.shards} shards, {rate:.1f} images/s{left}",
            file=sys.stderr,
            flush=True,
        )


def _on(plan: "Planned") -> str:
    return f"fastervit: going on after {plan.complete} of {plan.shards} shards"


def _sum_up(plan: "Planned", out: str, shards: int, images: int, unreadable: int, failed: int) -> int:
    """The last lines on stderr, and the exit code."""
    where = f"rows in {out}"
    if failed:
        report_error(f"{failed} of {plan.shards} shards could not be read; the same command tries them again; {where}")
        return 1
    if plan.complete == plan.shards:
        print(f"fastervit: {plan.shards} shards classified already; {where}", file=sys.stderr)
    else:
        print(f"fastervit: {images} images in {shards} shards classified; {where}", file=sys.stderr)
    if unreadable:
        report_error(f"{unreadable} of {images} images could not be read; all are listed in {out}/unreadable")
    if plan.unreadable:
        report_error(f"images of {plan.unreadable} shards that were complete could not be read; see {out}/unreadable")
    return 3 if unreadable or plan.unreadable else 0
