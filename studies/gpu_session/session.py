"""The session from its start to its end: what runs when, and until when."""

import math
import signal
import sys
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from openfastervit.benchmarking import processes
from openfastervit.benchmarking.measure import Plan, measure
from openfastervit.benchmarking.status import INTERRUPTED, OUT_OF_TIME, RUNNING
from openfastervit.benchmarking.subject import Machine
from studies.common.command_line import cores
from studies.gpu_session import ceilings, checks, floors, hardware, summary
from studies.gpu_session.apart import Cells, Job, run_apart
from studies.gpu_session.cases import Row
from studies.gpu_session.parts import DRY, FULL, Part, parts
from studies.gpu_session.tables import Tables

RESERVE = 12.0
"""Seconds for the end: processes go, the summary is written."""
CEILINGS_SHARE = 0.08
"""Of the time, that ceilings may take at most."""
NOT_BEGUN = "not measured: its part did not begin"
LATE = "out of time"
"""The kind of a row that has some of its repeats."""


class Session:
    """One session.

    Args:
        out: Folder of the tables.
        device: Of torch's.
        seconds: That it may take.
        started: When it began, by ``time.monotonic``.
        only: Names of the parts to measure; None for all.
        dry: Pocket networks, once, and rows that say so.

    Raises:
        ValueError: If there is no such device or part, or the folder has tables.
    """

    def __init__(
        self, out: Path, device: str, *, seconds: float, started: float, only: Sequence[str] | None, dry: bool
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {device}: torch sees no GPU here; --dry-run shows on a CPU that the session runs"
            )
        self._device, self._dry = device, dry
        self._seconds, self._started = seconds, started
        self._end = started + seconds - min(RESERVE, 0.1 * seconds)
        self._scale = DRY if dry else FULL
        self._parts = parts(self._scale)
        names = [part.name for part in self._parts]
        for name in only or []:
            if name not in names:
                raise ValueError(f"--parts {name}: there is no such part; there is {', '.join(map(repr, names))}")
        self._parts = [part for part in self._parts if only is None or part.name in only]
        command = "python -m studies.gpu_session --out OUT" + (" --dry-run" if dry else f" --minutes {seconds / 60:g}")
        if only:
            command += " --parts " + " ".join(f"'{name}'" for name in only)
        self._tables = Tables(out, {**hardware.facts(device), "command": command}, dry=dry)
        self._out = out
        self._kept: dict[Hashable, tuple[str, Row]] = {}
        """Rows of networks, each with its table."""
        self._stopped = threading.Event()
        self._beside_until = self._end

    def run(self) -> int:
        """Run all of it. Returns the exit code."""
        self._tables.add("hardware", [hardware.state("start", self._device)])
        for part in self._parts:
            self._keep(part.table, [entry.unmeasured(NOT_BEGUN) for entry in part.entries])
        processes.context()  # its server is started from here, where Ctrl-C can be kept from it
        code = 0
        beside: threading.Thread | None = None
        try:
            self._tell("ceilings")
            self._apart([Job("ceilings", ceilings.make, ceilings.label, ceilings.ceilings(small=self._dry))])
            beside = threading.Thread(target=self._beside)
            beside.start()
            for part in self._parts:
                self._measure(part, beside)
            beside.join()
        except KeyboardInterrupt as error:
            code = 143 if error.args == (signal.SIGTERM,) else 130
            self._tell("interrupted: what there is is kept")
        finally:
            self._stopped.set()
            if beside is not None:
                beside.join()
        self._finish(interrupted=code != 0)
        failed = [row for row in self._tables.rows("checks") if "failed" in str(row["status"])]
        for row in failed:
            print(f"failed: {row['kernel']}, {row['dtype']}, {row['shape']}: {row['status']}", file=sys.stderr)
        return code or (1 if failed else 0)

    # --- What runs apart ---

    def _apart(self, jobs: Sequence[Job]) -> None:
        """Ceilings: one process, alone on the card."""
        until = min(self._end, time.monotonic() + max(CEILINGS_SHARE * self._seconds, 20))
        run_apart(jobs, self._device, self._add, until=lambda: until, stopped=self._stopped)

    def _beside(self) -> None:
        """Checks and floors, while networks are built: neither is timed."""
        groups = checks.checks(small=self._dry)
        jobs = [Job("checks", checks.make, checks.label, group) for group in groups.values()]
        jobs.append(Job("floors", floors.make, floors.label, self._floors()))
        at_once = 1 if self._dry else max(1, cores() // 4)
        run_apart(
            jobs, self._device, self._add, at_once=at_once, until=lambda: self._beside_until, stopped=self._stopped
        )

    def _floors(self) -> list[floors.Counted]:
        """What to count, once the ceilings are known."""
        rows = self._tables.rows("ceilings")
        copied = next((row["gbyte_per_second"] for row in rows if row.get("gbyte_per_second")), None)
        wanted = (ceilings.LARGE, self._scale.precision)
        product = next(
            (
                row["tflop_per_second"]
                for row in rows
                if (row["what"], row["dtype"]) == wanted and row.get("tflop_per_second")
            ),
            None,
        )
        many, one, *_ = self._scale.batches
        cases = [(name, batch) for batch in (many, one) for name in self._scale.family]
        return [
            floors.Counted(
                network=name,
                options=dict(self._scale.family[name]),
                side=self._scale.side,
                batch_size=batch,
                flop_per_second=None if product is None else 1e12 * float(product),
                bytes_per_second=None if copied is None else 1e9 * float(copied),
            )
            for name, batch in cases
        ]

    def _add(self, job: Job, rows: Sequence[Cells]) -> None:
        self._tables.add(job.name, rows)

    # --- Networks ---

    def _measure(self, part: Part, beside: threading.Thread) -> None:
        now = time.monotonic()
        if now >= self._end:
            self._keep(
                part.table, [entry.unmeasured(f"{OUT_OF_TIME}: its part did not begin") for entry in part.entries]
            )
            return
        self._tell(f"{part.name}: {len(part.entries)} rows")
        building = 1.0 if self._dry else part.building  # a CPU that has other work may be slow
        built_until = min(self._end, now + building * self._seconds)
        until = min(self._end, built_until + part.measuring * self._seconds)

        def before_turns() -> None:
            """Nothing else may run while networks are timed."""
            beside.join(max(0.0, built_until - time.monotonic()))
            self._beside_until = -math.inf
            beside.join()

        for rows in measure(
            part.entries,
            Machine(self._device, threads=1 if self._dry else 4, warm_up_seconds=0.01 if self._dry else 0.3),
            Plan(
                repeats=1 if self._dry else 7,
                seconds=0.01 if self._dry else 0.2,
                tail=not self._dry,
                share=0.9,
                builders=max(1, 3 * cores() // 4),
                built_until=built_until,
                until=until,
            ),
            tell=self._tell,
            before_turns=before_turns,
        ):
            self._keep(part.table, rows)
        cut = [row for row in self._of(part) if row.status.startswith(RUNNING)]
        self._keep(part.table, [replace(row, status=row.status.replace(RUNNING, LATE, 1)) for row in cut])
        self._tables.add("hardware", [hardware.state(f"after {part.name}", self._device)])

    def _keep(self, table: str, rows: Sequence[Row]) -> None:
        self._kept |= {row.key: (table, row) for row in rows}
        self._tables.add(table, rows, [row.key for row in rows])

    def _of(self, part: Part) -> list[Row]:
        keys = {entry.key for entry in part.entries}
        return [row for key, (_, row) in self._kept.items() if key in keys]

    # --- The end ---

    def _finish(self, *, interrupted: bool) -> None:
        cut = [(table, row) for table, row in self._kept.values() if row.status.startswith(RUNNING)]
        for table, row in cut if interrupted else []:
            self._keep(table, [replace(row, status=row.status.replace(RUNNING, INTERRUPTED, 1))])
        self._tables.add("hardware", [hardware.state("end", self._device)])
        least = 1 if self._dry else summary.LEAST_REPEATS
        inference, training, floor = (self._tables.rows(name) for name in ("inference", "training", "floors"))
        reached = summary.goals(inference, training, least=least)
        compared = summary.beside_peers(inference, least=least)
        shares = summary.shares(inference, floor)
        self._tables.add("goals", reached)
        self._tables.add("peers", compared)
        self._tables.add("shares", shares)
        self._print(reached, compared, shares)

    def _print(self, reached: Sequence[Cells], compared: Sequence[Cells], shares: Sequence[Cells]) -> None:
        if self._dry:
            print("A dry run: no figure means anything.\n")
        print(f"{'':56}{'goal':>6}{'here':>8}  quartiles")
        for row in reached:
            spread = "" if row["ratio"] is None else f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}"
            goal, here = (f"{row[name]:.2f}" if row[name] is not None else "" for name in ("goal", "ratio"))
            print(f"{row['what']:56}{goal:>6}{here:>8}  {spread or row['status']}")
        print()
        for line in summary.verdicts(compared):
            print(line)
        for row in shares:
            if row["share"] is not None:
                print(
                    f"{row['network']}, batch {row['batch_size']}: {row['measured_ms']:.3g} ms by {row['way']}, "
                    f"{row['share']:.0%} of what the ceilings allow ({row['floor_ms']:.3g} ms)"
                )
        passed = [row for row in self._tables.rows("checks") if str(row["status"]).endswith("ok")]
        print(
            f"\n{len(passed)} of {len(self._tables.rows('checks'))} checks of kernels passed; tables are in {self._out}"
        )

    def _tell(self, line: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {line}", file=sys.stderr, flush=True)
