"""``fastervit benchmark``."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openfastervit_cli import parser as parsing
from openfastervit_cli.benchmark_dense import benchmark_dense
from openfastervit_cli.benchmark_run import number, once, print_table, run, spread

if TYPE_CHECKING:
    from openfastervit.benchmarking.cases import Row
    from openfastervit.benchmarking.subject import Machine
    from openfastervit.inference.engines import Precision


def benchmark(
    *,
    task: Literal["classification", "detection", "segmentation"] = "classification",
    models: list[str] = ["fastervit_0"],  # noqa: B006 - a default of the command line, never changed
    peers: list[str] | None = None,
    head: str | None = None,
    head_options: dict[str, Any] | None = None,
    modes: list[str] | None = None,
    engines: list[str] | None = None,
    precisions: list[str] = ["fp32"],  # noqa: B006
    batch_sizes: list[int] | None = None,
    sizes: list[int] | None = None,
    img_size: list[int] | None = None,
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
    and leaves in the folder --out: results.csv, a row a measurement; settings.json, all that they follow from; for
    classification page.html, the front of published top-1 against the speed measured here. A row that cannot be
    measured says why, and the others go on: an engine that is not installed, a network that runs out of memory. Ctrl-C
    keeps what was measured so far. Weights are random: speed does not depend on them.

    With --task detection or segmentation networks are backbones in a head, in PyTorch as it is: time and peak memory
    of a step of training and of inference, at 800x1333 or 512x512.

    Args:
        task: What networks do.
        models: FasterViTs.
        peers: timm's networks to compare with, such as convnext_tiny and swin_tiny; 'default' for those that most
            would weigh today.
        head: What stands on backbones: cascade-mask-rcnn, mask-rcnn, faster-rcnn, rt-detr and others; upernet or
            mask2former. The first of each is what is measured if none is named.
        head_options: Other options of the head, by name.
        modes: What backbones in a head are measured at: inference, training; by default both.
        engines: Names of engines of classification; 'auto', the default, for those that are installed and run on the
            device, 'all' for all.
        precisions: fp32, fp16, bf16, fp8, int8; in a head fp32 and bf16.
        batch_sizes: Images a call; by default 1, 8, 32 and 128, for detection 1, for segmentation 2.
        sizes: Sides of the images of classification; by default 224.
        img_size: Side, or height and width, of the images of detection or segmentation.
        published_sizes: Measure each network also at the size that its top-1 was published at.
        repeats: Turns of each.
        seconds: A turn lasts about so long.
        device: cpu, cuda, cuda:1; auto takes a GPU where there is one.
        threads: Of the processor; by default as many as torch uses.
        memory_limit: GB that each network's process may take; a row that needs more runs out of memory.
        out: Folder for the results.
        page: Write page.html for classification, which needs plotly.
    """
    from openfastervit.benchmarking.subject import Machine

    for name, values in (("batch-sizes", batch_sizes), ("sizes", sizes), ("repeats", [repeats])):
        if values is not None and min(values) < 1:
            raise ValueError(f"--{name} {min(values)} must be at least 1")
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds} must be above 0")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads} must be at least 1")
    if memory_limit is not None and not memory_limit > 0:
        raise ValueError(f"--memory-limit {memory_limit} must be above 0 GB")
    if task == "classification":
        _refuse(task, {"head": head, "head-options": head_options, "modes": modes, "img-size": img_size})
    else:
        _refuse(task, {"engines": engines, "sizes": sizes, "published-sizes": published_sizes or None})
    device = _device(device)
    networks = _networks(models, peers or [])
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    machine = Machine(device=device, threads=threads, memory_limit=limit)
    settings = {
        "command": shlex.join(["fastervit", *parsing.command_line]),
        "task": task,
        "models": models,
        "peers": peers or [],
        "repeats": repeats,
        "seconds": seconds,
        "device": device,
        "threads": threads,
        "memory_limit_gb": memory_limit,
    }
    if task != "classification":
        return benchmark_dense(
            task,
            networks,
            head=head,
            head_options=head_options,
            modes=modes,
            precisions=precisions,
            batch_sizes=batch_sizes,
            img_size=img_size,
            repeats=repeats,
            seconds=seconds,
            machine=machine,
            out=out,
            settings=settings,
        )
    return _benchmark_classification(
        networks,
        engines=["auto"] if engines is None else engines,
        precisions=precisions,
        batch_sizes=[1, 8, 32, 128] if batch_sizes is None else batch_sizes,
        sizes=[224] if sizes is None else sizes,
        published_sizes=published_sizes,
        repeats=repeats,
        seconds=seconds,
        machine=machine,
        out=out,
        page=page,
        settings=settings,
    )


def _benchmark_classification(
    networks: list[tuple[str, str, bool]],
    *,
    engines: list[str],
    precisions: list[str],
    batch_sizes: list[int],
    sizes: list[int],
    published_sizes: bool,
    repeats: int,
    seconds: float,
    machine: "Machine",
    out: Path,
    page: bool,
    settings: dict[str, Any],
) -> int:
    from openfastervit.benchmarking.cases import COLUMNS
    from openfastervit.benchmarking.cases import plan as plan_cases
    from openfastervit.benchmarking.folder import describe
    from openfastervit.benchmarking.measure import Plan
    from openfastervit.benchmarking.page import render
    from openfastervit.benchmarking.pareto import judged
    from openfastervit.inference.engines.engine import installed

    if page and not installed("plotly"):
        raise ValueError("page.html needs plotly: pip install 'openfastervit[report]', or leave it out with --no-page")
    engines = _engines(engines, machine.device)
    cases = plan_cases(
        networks,
        engines,
        _precisions(precisions),
        once(batch_sizes),
        [(side, side) for side in once(sizes)],
        published_sizes=published_sizes,
    )
    told = {
        "engines": engines,
        "precisions": precisions,
        "batch_sizes": batch_sizes,
        "sizes": sizes,
        "published_sizes": published_sizes,
        **describe(machine.device),
    }
    return run(
        cases,
        machine,
        Plan(repeats=repeats, seconds=seconds),
        out,
        {**settings, **told},
        columns=COLUMNS,
        show=_show,
        judge=judged,
        page=render if page else None,
    )


def _refuse(task: str, given: dict[str, object]) -> None:
    """Raise ``ValueError`` where options are given that a task has no use for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} is not for --task {task}; leave it out, or name the task that it is for")


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


def _engines(asked: list[str], device: str = "cpu") -> list[str]:
    from openfastervit.inference.engines import ENGINES, installed_engines

    named: list[str] = []
    for name in asked:
        if name == "auto":
            named += [installed for installed in installed_engines() if ENGINES[installed].runs_on(device)]
        elif name == "all":
            named += ENGINES
        elif name in ENGINES:
            named.append(name)
        else:
            raise ValueError(f"--engines {name!r} is unknown; choose auto, all or some of {', '.join(ENGINES)}")
    return once(named)


def _precisions(asked: list[str]) -> "list[Precision]":
    from openfastervit.inference.engines import PRECISIONS

    for name in asked:
        if name not in PRECISIONS:
            raise ValueError(f"--precisions {name!r} is unknown; choose some of {', '.join(PRECISIONS)}")
    return [precision for precision in once(asked) if precision in PRECISIONS]


def _networks(models: list[str], peers: list[str]) -> list[tuple[str, str, bool]]:
    from openfastervit.benchmarking.peers import DEFAULT_PEERS, resolve_peer
    from openfastervit.models.factory import resolve_name

    peers = [name for asked in peers for name in (DEFAULT_PEERS if asked == "default" else [asked])]
    networks = [(name, resolve_name(name).partition(".")[0], False) for name in once(models)]
    return networks + [(name, resolve_peer(name), True) for name in once(peers)]


def _show(rows: "Sequence[Row]") -> None:
    print_table(
        ("model", "engine", "precision"),
        ("batch", "size", "images/s", "quartiles", "p50 ms", "p99 ms", "memory MB", "top-1"),
        "status; not faster than",
        [_cells(row) for row in rows],
    )


def _cells(row: "Row") -> list[str]:
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
        number(row.images_per_second),
        spread(row.images_per_second_q1, row.images_per_second_q3),
        number(row.latency_ms_p50),
        number(row.latency_ms_p99),
        "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        top1,
        verdict if row.measured else row.status,
    ]
