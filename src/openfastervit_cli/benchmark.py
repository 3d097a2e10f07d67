"""``fastervit benchmark``."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfastervit_cli import parser as parsing

if TYPE_CHECKING:
    from openfastervit.benchmarking.cases import Row
    from openfastervit.inference.engines import Precision


def benchmark(
    *,
    models: list[str] = ["fastervit_0"],  # noqa: B006 - a default of the command line, never changed
    peers: list[str] | None = None,
    engines: list[str] = ["auto"],  # noqa: B006
    precisions: list[str] = ["fp32"],  # noqa: B006
    batch_sizes: list[int] = [1, 8, 32, 128],  # noqa: B006
    sizes: list[int] = [224],  # noqa: B006
    published_sizes: bool = False,
    repeats: int = 5,
    seconds: float = 1.0,
    device: str = "auto",
    threads: int | None = None,
    memory_limit: float | None = None,
    out: Path = Path("benchmark-report"),
    page: bool = True,
) -> int:
    """Measure how fast networks are, beside others, on this machine.

    All take turns, each in a process of its own, so that what else the machine does meets all alike. Prints a table
    and leaves in the folder --out: results.csv, a row a measurement; settings.json, all that they follow from;
    page.html, the front of published top-1 against the speed measured here. A row that cannot be measured says why,
    and the others go on: an engine that is not installed, a network that runs out of memory. Ctrl-C keeps what was
    measured so far. Weights are random: speed does not depend on them.

    Args:
        models: FasterViTs.
        peers: timm's networks to compare with, such as convnext_tiny and swin_tiny; 'default' for those that most
            would weigh today.
        engines: Names of engines; 'auto' for those installed, 'all' for all.
        precisions: fp32, fp16, bf16, int8.
        batch_sizes: Images a call.
        sizes: Sides of the images.
        published_sizes: Measure each network also at the size that its top-1 was published at.
        repeats: Turns of each.
        seconds: A turn lasts about so long.
        device: cpu, cuda, cuda:1; auto takes a GPU where there is one.
        threads: Of the processor; by default as many as torch uses.
        memory_limit: GB that each network's process may take; a row that needs more runs out of memory.
        out: Folder for the results.
        page: Write page.html, which needs plotly.
    """
    from openfastervit.benchmarking.cases import RUNNING
    from openfastervit.benchmarking.cases import plan as plan_cases
    from openfastervit.benchmarking.folder import Folder, describe
    from openfastervit.benchmarking.measure import Plan, measure
    from openfastervit.benchmarking.worker import Machine
    from openfastervit.inference.engines.engine import installed

    for name, values in (("batch-sizes", batch_sizes), ("sizes", sizes), ("repeats", [repeats])):
        if min(values) < 1:
            raise ValueError(f"--{name} {min(values)} must be at least 1")
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds} must be above 0")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads} must be at least 1")
    if memory_limit is not None and not memory_limit > 0:
        raise ValueError(f"--memory-limit {memory_limit} must be above 0 GB")
    if page and not installed("plotly"):
        raise ValueError("page.html needs plotly: pip install 'openfastervit[report]', or leave it out with --no-page")
    device = _device(device)
    engines = _engines(engines)
    cases = plan_cases(
        _networks(models, peers or []),
        engines,
        _precisions(precisions),
        _once(batch_sizes),
        [(side, side) for side in _once(sizes)],
        published_sizes=published_sizes,
    )
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    machine = Machine(device=device, threads=threads, memory_limit=limit)
    plan = Plan(repeats=repeats, seconds=seconds)
    settings = {
        "command": shlex.join(["fastervit", *parsing.command_line]),
        "models": models,
        "peers": peers or [],
        "engines": engines,
        "precisions": precisions,
        "batch_sizes": batch_sizes,
        "sizes": sizes,
        "published_sizes": published_sizes,
        "repeats": repeats,
        "seconds": seconds,
        "device": device,
        "threads": threads,
        "memory_limit_gb": memory_limit,
        **describe(device),
    }
    folder = Folder(out, cases, settings)
    code = 0
    try:
        with _ends_as_ctrl_c(), _progress(len(cases)) as (tell, show_done):
            for rows in measure(cases, machine, plan, tell=tell):
                folder.add(rows)
                show_done(sum(not row.status.startswith(RUNNING) for row in folder.rows))
    except KeyboardInterrupt as error:
        code = 143 if error.args == (signal.SIGTERM,) else 130
    folder.finish(page=page, interrupted=code != 0)
    _print_table(folder.rows)
    if code:
        done = sum(row.measured for row in folder.rows)
        print(f"fastervit: interrupted; {done} of {len(cases)} rows are whole, in {out}", file=sys.stderr)
        return code
    names = "results.csv, settings.json and page.html" if page else "results.csv and settings.json"
    print(f"fastervit: {len(folder.rows)} rows; {names} are in {out}", file=sys.stderr)
    return 0


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"--device {asked!r} is none; choose cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {asked!r} is not measured here; choose cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {asked!r} is not there; torch sees {torch.cuda.device_count()} GPUs")
    return asked


def _engines(asked: list[str]) -> list[str]:
    from openfastervit.inference.engines import ENGINES, installed_engines

    named: list[str] = []
    for name in asked:
        if name == "auto":
            named += installed_engines()
        elif name == "all":
            named += ENGINES
        elif name in ENGINES:
            named.append(name)
        else:
            raise ValueError(f"--engines {name!r} is unknown; choose auto, all or some of {', '.join(ENGINES)}")
    return _once(named)


def _precisions(asked: list[str]) -> "list[Precision]":
    from openfastervit.inference.engines import PRECISIONS

    for name in asked:
        if name not in PRECISIONS:
            raise ValueError(f"--precisions {name!r} is unknown; choose some of {', '.join(PRECISIONS)}")
    return [precision for precision in _once(asked) if precision in PRECISIONS]


def _networks(models: list[str], peers: list[str]) -> list[tuple[str, str, bool]]:
    from openfastervit.benchmarking.peers import DEFAULT_PEERS, resolve_peer
    from openfastervit.models.factory import resolve_name

    peers = [name for asked in peers for name in (DEFAULT_PEERS if asked == "default" else [asked])]
    networks = [(name, resolve_name(name).partition(".")[0], False) for name in _once(models)]
    return networks + [(name, resolve_peer(name), True) for name in _once(peers)]


def _once(values: Sequence[Any]) -> list[Any]:
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


def _print_table(rows: "Sequence[Row]") -> None:
    """The rows on stdout, wide as they need to be where that is no terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("model", "engine", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("batch", "size", "images/s", "quartiles", "p50 ms", "p99 ms", "memory MB", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status; not faster than")
    for row in rows:
        table.add_row(*_cells(row))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def _cells(row: "Row") -> list[str]:
    spread = ""
    if row.images_per_second_q1 is not None and row.images_per_second_q3 is not None:
        spread = f"{_number(row.images_per_second_q1)} - {_number(row.images_per_second_q3)}"
    top1 = "" if row.top1_published is None else f"{row.top1_published:.1f}"
    if top1 and not row.top1_size == row.height == row.width:
        top1 += f" at {row.top1_size}"
    verdict = f"not faster than {row.not_faster_than.replace(' ', ', ')}" if row.not_faster_than else ""
    return [
        row.model,
        row.engine,
        row.precision,
        str(row.batch_size),
        str(row.height) if row.height == row.width else f"{row.height}x{row.width}",
        _number(row.images_per_second),
        spread,
        _number(row.latency_ms_p50),
        _number(row.latency_ms_p99),
        "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        top1,
        verdict if row.measured else row.status,
    ]


def _number(value: float | None) -> str:
    """Three digits and no more."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
