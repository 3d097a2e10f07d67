"""``fastervit benchmark --task detection`` and ``--task segmentation``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfastervit_cli.benchmark_run import number, once, print_table, run, spread

if TYPE_CHECKING:
    from openfastervit.benchmarking.dense import DenseRow, Task
    from openfastervit.benchmarking.subject import Machine

SMALLEST_SIDE = 32
"""Of an image, in pixels: the stride of a backbone's last map."""


def benchmark_dense(
    task: "Task",
    networks: Sequence[tuple[str, str, bool]],
    *,
    head: str | None,
    head_options: dict[str, Any] | None,
    modes: list[str] | None,
    precisions: list[str],
    batch_sizes: list[int] | None,
    img_size: list[int] | None,
    repeats: int,
    seconds: float,
    machine: "Machine",
    out: Path,
    settings: Mapping[str, Any],
) -> int:
    """Measure backbones in the head of a task. Returns the exit code.

    Args:
        task: Which one.
        networks: (name as asked for, architecture, whether a peer).
        head: Its name; None for the usual one.
        head_options: Of the head.
        modes: What it does; None for all.
        precisions: Of the products.
        batch_sizes: Images a call; None for the usual one.
        img_size: Side, or height and width; None for the usual ones.
        repeats: Turns of each.
        seconds: A turn lasts about so long.
        machine: Where.
        out: The folder.
        settings: Other things that the figures follow from.
    """
    from openfastervit.benchmarking.dense import (
        BATCH_SIZES,
        DENSE_COLUMNS,
        DENSE_PRECISIONS,
        MODES,
        SIZES,
        TASK_HEADS,
        plan_dense,
    )
    from openfastervit.benchmarking.folder import describe_machine
    from openfastervit.benchmarking.measure import Plan

    heads = TASK_HEADS[task]
    if head is None:
        head = heads[0]
    if head not in heads:
        raise ValueError(f"--head {head!r} is none of {task}; choose from {', '.join(heads)}")
    modes = list(MODES) if modes is None else modes
    for name, asked, known in (("modes", modes, MODES), ("precisions", precisions, DENSE_PRECISIONS)):
        for value in asked:
            if value not in known:
                raise ValueError(f"--{name} {value!r} is not measured for {task}; choose some of {', '.join(known)}")
    size = SIZES[task] if img_size is None else (img_size[0], img_size[-1])
    if img_size is not None and (len(img_size) > 2 or min(img_size) < SMALLEST_SIDE):
        shown = " ".join(map(str, img_size))
        raise ValueError(f"--img-size {shown} must be one side, or height and width, of at least {SMALLEST_SIDE}")
    batch_sizes = [BATCH_SIZES[task]] if batch_sizes is None else batch_sizes
    cases = plan_dense(
        task,
        networks,
        head,
        [mode for mode in MODES if mode in modes],
        [precision for precision in DENSE_PRECISIONS if precision in precisions],
        once(batch_sizes),
        size,
        head_options or {},
    )
    told = {
        "head": head,
        "head_options": head_options or {},
        "modes": modes,
        "precisions": precisions,
        "batch_sizes": batch_sizes,
        "img_size": list(size),
        **describe_machine(machine.device),
        "weights": "random, and nothing was downloaded; what random weights would propose is replaced by the same "
        "boxes for every backbone",
    }
    # Calls take from a tenth of a second to many: a 99th percentile would take a hundred of each.
    plan = Plan(repeats=repeats, seconds=seconds, tail=False)
    return run(cases, machine, plan, out, {**settings, **told}, columns=DENSE_COLUMNS, show=_show)


def _show(rows: "Sequence[DenseRow]") -> None:
    print_table(
        ("backbone", "head", "mode", "precision"),
        ("batch", "size", "images/s", "quartiles", "p50 s", "memory MB", "M param.", "backbone G", "boxes", "masks"),
        "status",
        [_cells(row) for row in rows],
    )


def _cells(row: "DenseRow") -> list[str]:
    return [
        row.backbone,
        row.head,
        row.mode,
        row.precision,
        str(row.batch_size),
        f"{row.height}x{row.width}",
        number(row.images_per_second),
        spread(row.images_per_second_q1, row.images_per_second_q3),
        number(row.seconds_p50),
        "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        "" if row.parameters_m is None else f"{row.parameters_m:.1f}",
        "" if row.backbone_multiply_adds_g is None else f"{row.backbone_multiply_adds_g:.1f}",
        "" if row.box_head_boxes is None else str(row.box_head_boxes),
        "" if row.mask_head_boxes is None else str(row.mask_head_boxes),
        row.status,
    ]
