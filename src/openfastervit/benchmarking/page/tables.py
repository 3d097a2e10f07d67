"""What stands below the charts: verdicts, all rows, how it was measured."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from openfastervit.benchmarking.cases import Row


def verdicts(best: Sequence[Row]) -> str:
    """FasterViTs beside what is as accurate or more.

    Args:
        best: Rows of each network's fastest engine, judged across engines.
    """
    lines = []
    ours = [row for row in best if not row.peer]
    for row in ours:
        names = ", ".join(row.not_faster_than.split())
        if not row.comparable:
            continue
        if names:
            verdict, kind = f"not faster than {names}", "behind"
        else:
            verdict, kind = "faster than all measured of equal or better top-1", "ahead"
        lines.append(
            f'<tr class="{kind}"><th scope="row">{escape(row.model)}</th><td>{row.precision}</td>'
            f"<td>{row.batch_size}</td><td>{row.height}</td><td>{escape(row.engine)}</td>"
            f"<td>{number(row.images_per_second)}</td><td>{number(row.top1_published)}</td>"
            f'<td class="text">{escape(verdict)}</td></tr>'
        )
    apart = len(ours) - len(lines)
    if not lines:
        return ""
    return (
        '<section id="verdicts"><h2>Faster than what is as accurate?</h2><p>Each FasterViT with its fastest engine '
        "here, beside the other networks with theirs: those of the same precision and batch whose published top-1 is "
        "equal or better, each at the size that its top-1 was published at. Faster means that three quarters of the "
        "repeats are above three quarters of the other's.</p>"
        f'<div class="wide"><table><thead><tr><th scope="col">network</th><th scope="col">precision</th>'
        '<th scope="col">batch</th><th scope="col">size</th><th scope="col">engine</th><th scope="col">images/s</th>'
        f'<th scope="col">top-1</th><th scope="col">verdict</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
        f"</div>{_apart(apart)}</section>"
    )


def all_rows(rows: Sequence[Row]) -> str:
    """Everything that was asked for, what could not be measured included."""
    names = ("network", "engine", "precision", "batch", "size", "images/s", "quartiles", "p50 ms", "p99 ms", "MB")
    head = "".join(f'<th scope="col">{name}</th>' for name in (*names, "top-1", "status; not faster than"))
    lines = []
    for row in rows:
        spread = "" if row.images_per_second_q1 is None else _range(row)
        top1 = number(row.top1_published)
        if top1 and not row.top1_size == row.height == row.width:
            top1 += f" at {row.top1_size}"
        note = row.status
        if row.measured and row.not_faster_than:
            note = "not faster than " + ", ".join(row.not_faster_than.split())
        cells = (
            row.engine,
            row.precision,
            str(row.batch_size),
            str(row.height) if row.height == row.width else f"{row.height} x {row.width}",
            number(row.images_per_second),
            spread,
            number(row.latency_ms_p50),
            number(row.latency_ms_p99),
            "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}",
            top1,
        )
        lines.append(
            f'<tr class="{"ok" if row.measured else "open"}"><th scope="row">{escape(row.model)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f'<td class="text">{escape(note)}</td></tr>'
        )
    missing = sum(not row.measured for row in rows)
    told = f", {missing} of them not measured" if missing else ""
    return (
        f'<section id="rows"><h2>All rows</h2><details{" open" if len(rows) <= 30 else ""}><summary>{len(rows)} rows'
        f'{told}</summary><p>Here rows are compared with those of the same engine.</p><div class="wide"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details></section>"
    )


def facts(settings: Mapping[str, Any]) -> str:
    """How it was measured."""
    hardware, versions = settings["hardware"], settings["versions"]
    told = {
        "Command": settings["command"],
        "Processor": f"{hardware['processor']}, {hardware['cores']} cores, "
        f"{settings['threads'] or 'the default number of'} threads",
        "GPU": hardware.get("gpus", "not used"),
        "System": hardware["system"],
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Timing": f"{settings['repeats']} repeats of about {settings['seconds']:g} s, all in turns, each call waited "
        "for; medians",
        "Weights": settings["weights"],
        "Memory": "the most that a process held, Python included; on a GPU, what was taken of it",
        "Load before": ", ".join(map(str, settings["load_before"] or ["unknown"])),
        "Began": settings["started"],
        "Ended": settings["finished"] or "",
        **{f"Top-1, {name}": source for name, source in settings["published_top1"].items()},
    }
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in told.items())
    return f'<section id="facts"><h2>How it was measured</h2><dl>{terms}</dl></section>'


def number(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _range(row: Row) -> str:
    return f"{number(row.images_per_second_q1)} to {number(row.images_per_second_q3)}"


def _apart(count: int) -> str:
    """How many results are in no comparison."""
    if not count:
        return ""
    return f"<p>{count} more {'is' if count == 1 else 'are'} not compared: no top-1 was published at their size.</p>"
