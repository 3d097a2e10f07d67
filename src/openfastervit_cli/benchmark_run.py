"""What all tasks of ``fastervit benchmark`` share: measuring, keeping what is measured, showing it."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openfastervit.benchmarking.measure import Plan
    from openfastervit.benchmarking.subject import Machine, R, Subject


def run(
    cases: "Sequence[Subject[R]]",
    machine: "Machine",
    plan: "Plan",
    out: Path,
    settings: Mapping[str, Any],
    *,
    columns: Sequence[str],
    show: "Callable[[Sequence[R]], None]",
    judge: "Callable[[list[R]], list[R]]" = list,
    page: "Callable[[list[R], Mapping[str, Any]], str] | None" = None,
) -> int:
    """Measure cases, keep the rows in a folder as they come, print a table. Returns the exit code.

    Args:
        cases: In the order of who is compared with whom.
        machine: Where.
        plan: How often.
        out: The folder.
        settings: What the figures follow from.
        columns: Of ``results.csv``.
        show: Prints the table.
        judge: What is said of the rows once all are seen beside one another.
        page: What makes ``page.html``.
    """
    from openfastervit.benchmarking.folder import Folder
    from openfastervit.benchmarking.measure import measure
    from openfastervit.benchmarking.status import OK, RUNNING

    folder: Folder[R] = Folder(out, cases, settings, columns=columns, judge=judge)
    code = 0
    try:
        with _ends_as_ctrl_c(), _progress(len(cases)) as (tell, show_done):
            for rows in measure(cases, machine, plan, tell=tell):
                folder.add(rows)
                show_done(sum(not row.status.startswith(RUNNING) for row in folder.rows))
    except KeyboardInterrupt as error:
        code = 143 if error.args == (signal.SIGTERM,) else 130
    folder.finish(interrupted=code != 0, page=page)
    show(folder.rows)
    if code:
        done = sum(row.status == OK for row in folder.rows)
        print(f"fastervit: interrupted; {done} of {len(cases)} rows are whole, in {out}", file=sys.stderr)
        return code
    names = "results.csv and settings.json" if page is None else "results.csv, settings.json and page.html"
    print(f"fastervit: {len(folder.rows)} rows; {names} are in {out}", file=sys.stderr)
    return 0


def print_table(left: Sequence[str], right: Sequence[str], last: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows on stdout, wide as they need to be where that is no terminal.

    Args:
        left: Heads of the first columns, which hold words.
        right: Heads of the columns that follow, which hold numbers.
        last: Head of the last one, which may be broken into lines.
        rows: Cells.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(last)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def number(value: float | None) -> str:
    """Three digits and no more."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(low: float | None, high: float | None) -> str:
    """Two quartiles."""
    return "" if low is None or high is None else f"{number(low)} - {number(high)}"


def once(values: Sequence[Any]) -> list[Any]:
    """The values without what comes twice."""
    return list(dict.fromkeys(values))


@contextlib.contextmanager
def _ends_as_ctrl_c() -> Iterator[None]:
    """A signal that asks to end, as schedulers send it, interrupts like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number))

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A bar on stderr, if that is a terminal; else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)
        yield lambda line: progress.update(task, description=line), lambda count: progress.update(task, completed=count)
