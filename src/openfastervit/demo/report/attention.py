"""Parts of the report about hierarchical attention: what carriers look at, and what it costs."""

import statistics
from html import escape

import torch

from openfastervit.demo.network import CLASSES
from openfastervit.demo.report.charts import Axis, Series, key, line_chart, log_ticks, round_ticks
from openfastervit.demo.report.markup import TIMES, figure, paragraph, percent, section, size, table
from openfastervit.demo.report.pictures import carriers_png, data_uri, map_png
from openfastervit.demo.report.predictions import scan
from openfastervit.demo.report.results import Results
from openfastervit.demo.throughput import BATCH, Timing, in_words, quartiles


def carriers(results: Results) -> str:
    """Maps of what each carrier looks at in a few digits, and means over all."""
    looking = results.looking
    stage = next(stage for stage in results.stages if stage.carriers)
    assert stage.windows is not None
    windows = stage.windows[0] * stage.windows[1]
    rows = [
        (f"Block {number}", [percent(habit.elsewhere), percent(habit.evenly), f"{habit.ink:.2f}\u00a0{TIMES}"])
        for number, habit in enumerate(looking.habits, start=1)
    ]
    return section(
        "carriers",
        "What the carrier tokens look at",
        f"<p>Stage 2 cuts its map into {windows} windows, and {stage.carriers // windows} carrier tokens stand for "
        "each. In every block all carriers attend to one another: that is how one corner of the image hears of "
        "another. Each tile is one carrier, at its place on the map. "
        '<span class="named"><span class="swatch amber"></span>Amber</span> '
        "is where what it hears comes from, more than if it listened evenly; "
        "dark is where it comes from less. "
        '<span class="named"><span class="swatch blue"></span>The blue frame</span> '
        "is the part of the image that the carrier was made from.</p>",
        paragraph(
            "Beside them, small: Grad-CAM (arXiv 1610.02391), where on the last map the evidence for the digit that "
            "was read lies; and the attention that each cell receives from the cells of its own window, in the first "
            "and the last block."
        ),
        *(_looked(results, index) for index in range(len(looking.shown))),
        "<h3>Over all held-out digits</h3>",
        table(
            "Means over images and carriers. Ink: how much ink lies where carriers look, as a multiple of what they "
            "would meet if they looked everywhere alike.",
            ["Block", "Attention to other windows", "If spread evenly", "Ink"],
            rows,
            numbers=(1, 2, 3),
        ),
        paragraph(
            "A tile joins what the carrier attends to in that block with what those carriers had read of their own "
            "windows a block before (in the first block: with the part of the map they were pooled from), averaged "
            "over heads. Colours can be compared within a row. Attention shows where a network looks, not what it "
            "concludes.",
            "soft after",
        ),
    )


def _looked(results: Results, index: int) -> str:
    """One digit: its scan, and the carriers of each block."""
    looking, evaluation = results.looking, results.evaluation
    position = looking.shown[index]
    label, read = (CLASSES[int(digits[position])] for digits in (evaluation.labels, evaluation.predicted))
    most = max(float(attention.maps[index].max()) for attention in looking.blocks)
    small = [figure(f"A {label}, read as {read}", scan(results, position)), *_beside(results, index)]
    parts = [f'<div class="beside">{"".join(small)}</div>']
    for number, attention in enumerate(looking.blocks, start=1):
        grid = f"{attention.maps.shape[1]} by {attention.maps.shape[2]} tiles, one a carrier token"
        elsewhere = percent(float(attention.elsewhere()[index].mean()), 0)
        alt = f"{grid}: where it looks in this {label}. {elsewhere} of the attention goes to other windows."
        source = data_uri(carriers_png(looking.images[index], attention, index, most))
        parts.append(figure(f"Carriers, block {number}", f'<img src="{source}" alt="{escape(alt)}">'))
    return f'<div class="looked">{"".join(parts)}</div>'


def _beside(results: Results, index: int) -> list[str]:
    """Grad-CAM of what was read, and attention inside windows in the first and the last block."""
    looking = results.looking
    image, cam = looking.images[index], looking.cam
    read, evidence = CLASSES[cam.classes[index]], cam.maps[index]
    mean = evidence.mean().clamp_min(torch.finfo(evidence.dtype).tiny)
    shown = [(f"Grad-CAM of {read}", f"where the evidence for a {read} lies", evidence / mean)]
    for number in dict.fromkeys((1, len(looking.windows))):
        relative = looking.windows[number - 1].relative()[index]
        shown.append((f"Windows, block {number}", f"attention inside windows in block {number}", relative))
    return [
        figure(caption, f'<img src="{data_uri(map_png(image, relative))}" alt="{escape(alt)}">')
        for caption, alt, relative in shown
    ]


def speed(results: Results) -> str:
    """Images a second beside full attention, as images grow."""
    heading = "Speed beside full attention"
    timings = list(results.timings)
    if not timings:
        return section("speed", heading, paragraph("Not measured: the run was interrupted before."))
    sides = Axis("image side (pixels)", [t.side for t in timings], lambda v: f"{v:.0f}", log=True)
    rates = [rate for t in timings for rate in (*quartiles(t.hierarchical), *quartiles(t.full))]
    ratios = [edge for t in timings for edge in quartiles(t.ratios)]

    def series(name: str, values: list[tuple[float, ...]]) -> Series:
        medians = [(t.side, statistics.median(v)) for t, v in zip(timings, values, strict=True)]
        return Series(name, medians, [quartiles(v) for v in values], marked=True)

    names = "hierarchical attention", "full attention"
    throughput = line_chart(
        "throughput",
        "Images a second by image side",
        f"From {timings[0].side} to {timings[-1].side} pixels; the table below has the numbers.",
        [series(names[0], [t.hierarchical for t in timings]), series(names[1], [t.full for t in timings])],
        sides,
        Axis("images a second", log_ticks(min(rates), max(rates)), lambda v: f"{v:g}", log=True),
    )
    ratio = line_chart(
        "ratio",
        "Speed of hierarchical attention over that of full attention",
        "Above the line at 1 hierarchical attention is faster; the table below has the numbers.",
        [series("hierarchical over full", [t.ratios for t in timings])],
        sides,
        Axis("ratio", round_ticks(0, max(ratios)), lambda v: f"{v:g}\u00a0{TIMES}"),
        level=1,
    )
    interrupted = "The measurement was interrupted: larger images are missing." if results.interrupted else ""
    return section(
        "speed",
        heading,
        paragraph(f"{in_words(timings)} {interrupted}".strip()),
        paragraph(
            "Beside it runs the same network with full attention: the same convolutions, channels and blocks, but "
            "each token attends to all tokens of the map, and there are no carriers. As images grow, full attention "
            "compares each token with ever more others; hierarchical attention compares it with its window's, and "
            "only carriers with one another."
        ),
        '<div class="pair">',
        figure("Images a second (more is better)", throughput + key(names)),
        figure("Hierarchical over full (above 1: faster)", ratio),
        "</div>",
        table(
            f"One core, float32, {BATCH} images at a time; the two networks in turns, {len(timings[0].full)} times. "
            "Medians, with the quartiles in brackets. The faster one is named where three quarters of the repeats "
            "agree.",
            ["Image", "Tokens", "Carriers", "Hierarchical (images/s)", "Full (images/s)", "Ratio", "Faster"],
            [_row(timing) for timing in timings],
            numbers=(1, 2, 3, 4, 5),
        ),
        paragraph(
            "Position embeddings and biases, which follow from the size alone, are computed before the clock starts, "
            "for both networks.",
            "soft after",
        ),
    )


def _row(timing: Timing) -> tuple[str, list[str]]:
    low, high = quartiles(timing.ratios)
    return size(timing.side, timing.side), [
        f"{timing.tokens:,}",
        f"{timing.carriers:,}",
        _rate(timing.hierarchical),
        _rate(timing.full),
        f"{timing.ratio:.2f} ({low:.2f} to {high:.2f})",
        {"faster": "hierarchical", "slower": "full"}.get(timing.verdict, "neither"),
    ]


def _rate(values: tuple[float, ...]) -> str:
    low, high = quartiles(values)
    digits = 0 if low >= 100 else 1
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
