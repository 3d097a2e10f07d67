"""The page of a benchmark: one file that needs no network, for a wide screen or a phone, light or dark."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from openfastervit.benchmarking.cases import Row
from openfastervit.benchmarking.page.charts import group_name, groups, measured_chart, paper_chart
from openfastervit.benchmarking.page.tables import all_rows, facts, verdicts
from openfastervit.benchmarking.pareto import fastest, front, judged


def render(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The page as HTML. Plotly must be installed.

    Args:
        rows: Of ``results.csv``.
        settings: Of ``settings.json``.
    """
    from plotly.offline import get_plotlyjs

    best = judged(fastest(rows), across_engines=True)
    charts = {group_name(*group): measured_chart(rows, best, *group) for group in groups(best)}
    data = json.dumps({"measured": charts, "paper": paper_chart()}).replace("</", "<\\/")
    hardware = settings["hardware"]
    machine = hardware["processor"] if settings["device"] == "cpu" else hardware.get("gpus", settings["device"])
    title = f"Speed and accuracy on {machine}"
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # An icon of no bytes: without one a browser asks the server for it.
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f"<style>{_file('style.css')}</style></head><body>",
            f'<header><p class="kicker">openfastervit benchmark</p><h1>{escape(title)}</h1>',
            f'<p class="lead">{escape(in_words(best))}</p>{_interrupted(settings)}</header><main>',
            _charts(list(charts)),
            verdicts(best),
            all_rows(rows),
            facts(settings),
            "</main>",
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="data">{data}</script>',
            f"<script>{_file('page.js')}</script></body></html>\n",
        ]
    )


def in_words(best: Sequence[Row]) -> str:
    """How many of the FasterViTs that can be compared are on a front, and how many are not faster than a peer.

    Args:
        best: Each network's fastest rows, judged.
    """
    compared = [row for row in best if row.comparable and not row.peer]
    if not best:
        return "No row was measured whole: nothing can be compared."
    if not compared:
        return "No FasterViT was measured at the size that its accuracy was published at: none can be compared."
    if not any(row.peer and row.comparable for row in best):
        return "No peer was measured at the size that its accuracy was published at: there is nothing to compare with."
    on_front = sum(row in on for group in groups(best) for on in [front_rows(best, *group)] for row in compared)
    beaten = sum(bool(peers_beating(row, best)) for row in compared)
    results = f"{len(compared)} result{'' if len(compared) == 1 else 's'}"
    return (
        f"Of {results} of FasterViTs, each with the fastest of the engines measured, {_are(on_front)} on the front of "
        f"accuracy and speed, and {_are(beaten)} not faster than a peer of equal or better published top-1."
    )


def front_rows(best: Sequence[Row], precision: str, batch_size: int) -> list[Row]:
    """Rows on the front of a precision and batch, slowest first."""
    rows = [row for row in best if row.comparable and (row.precision, row.batch_size) == (precision, batch_size)]
    rows = [row for row in rows if row.top1_data == "ImageNet-1K"]
    points = [(row.images_per_second or 0.0, row.top1_published or 0.0) for row in rows]
    return [rows[i] for i in front(points)]


def peers_beating(row: Row, rows: Sequence[Row]) -> list[str]:
    """Those of the networks that a row is not faster than which are peers."""
    peers = {other.model for other in rows if other.peer}
    return [name for name in row.not_faster_than.split() if name.partition("@")[0] in peers]


_KEY = (
    '<p class="key"><span class="ours">FasterViT</span> <span class="peers">other networks</span> '
    '<span class="front">front</span></p>'
)


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def _charts(names: list[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in names)
    choice = f'<label>Shown: <select id="group">{options}</select></label>' if names else ""
    here = (
        '<div class="chart" id="measured" role="img" aria-label="Top-1 against images a second measured here"></div>'
        if names
        else "<p>No row was measured whole; the table below has what was measured until then.</p>"
    )
    return (
        '<section id="front"><h2>Accuracy against speed</h2><div class="pair"><figure><h3>Measured here</h3>'
        f"{choice}{_KEY}{here}<figcaption>Up and to the right is better. The line is the front: no network measured is "
        "both faster and more accurate. Numbers name FasterViTs; each network stands where its fastest engine is, "
        "small dots are its other engines. Rings are not compared: their top-1 was published at another size, or after "
        "training on more data. Bars span the quartiles of the repeats. Accuracies are the published ones, of float32 "
        "weights; they were not measured here.</figcaption></figure>"
        "<figure><h3>From the paper, not measured here</h3>"
        f'{_KEY}<div class="chart" id="paper" role="img" '
        'aria-label="Top-1 against images a second as the FasterViT paper gives them"></div><figcaption>What the '
        "FasterViT paper (arXiv 2306.06189) reports for an A100 GPU at batches of 128. Another machine, other "
        "software: only the order of the networks is to be compared.</figcaption></figure></div></section>"
    )


def _interrupted(settings: Mapping[str, Any]) -> str:
    if not settings.get("interrupted"):
        return ""
    return '<p class="banner">The benchmark was interrupted: rows are missing.</p>'


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
