"""The page: its frame, what was done, and the other parts in their order."""

from html import escape
from importlib import resources

from openfastervit.demo.report.attention import carriers, speed
from openfastervit.demo.report.charts import Axis, Series, key, line_chart, round_ticks, whole_ticks
from openfastervit.demo.report.markup import duration, figure, paragraph, percent, section, size, table, terms
from openfastervit.demo.report.pictures import data_uri, scan_png
from openfastervit.demo.report.predictions import confusion, mistakes, page
from openfastervit.demo.report.results import Results

STRIP = 24
"""Digits shown in the header."""


def render(results: Results) -> str:
    """The report as an HTML page."""
    css = resources.files("openfastervit.demo.report").joinpath("style.css").read_text(encoding="utf-8")
    parts = (_made, _network, _training, confusion, mistakes, page, carriers, speed, _folder)
    title = f"Digits demo: top-1 {percent(results.evaluation.top1, 2)}"
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # An icon of no bytes: without one a browser asks the server for it.
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f"<style>{css}</style></head><body>",
            _header(results),
            "<main>",
            *(part(results) for part in parts),
            "</main>",
            _footer(results),
            "</body></html>\n",
        ]
    )


def _header(results: Results) -> str:
    evaluation = results.evaluation
    total, wrong = len(evaluation.labels), len(evaluation.wrong)
    low, high = evaluation.interval()
    strip = "".join(
        f'<img src="{data_uri(scan_png(results.digits.scans[i]))}" alt="" width="44" height="44">'
        for i in results.digits.held_out[:STRIP]
    )
    tiles = {
        "Top-1 accuracy": percent(evaluation.top1, 2),
        "Misread": f"{wrong} of {total}",
        "Training": duration(results.seconds["training"]),
        "Parameters": f"{results.parameters:,}",
    }
    banner = ""
    if results.interrupted:
        banner = paragraph(
            f"This run was interrupted (Ctrl-C). The network trained for {results.trained}; all below is about the "
            "network as it was then.",
            "banner",
        )
    return (
        '<header class="hero"><div><p class="kicker">openfastervit: digits demo</p>'
        f"<h1>A pocket FasterViT reads {total - wrong} of {total} handwritten digits it had never seen</h1>"
        f'<p class="lead">That is a top-1 accuracy of {percent(evaluation.top1, 2)}; with {total} images the 95&nbsp;% '
        f"interval of the true accuracy is {percent(low)} to {percent(high)}.</p>"
        f'{banner}<div class="strip" aria-hidden="true">{strip}</div>'
        f'<dl class="tiles">{terms(tiles)}</dl></div></header>'
    )


def _made(results: Results) -> str:
    digits = results.digits
    side = results.looking.images.shape[2:]
    cores = int(results.hardware["cores"])
    facts = {
        "Command": results.command,
        "Seed": str(results.seed),
        "Trained for": results.trained,
        "Training images": f"{len(digits.training):,} scans of {size(*digits.scans.shape[1:])} pixels, "
        f"enlarged to {size(*side)}",
        "Held-out images": f"{len(digits.held_out):,}, stratified by digit, the same for every seed",
        "Time": ", ".join(f"{part} {duration(seconds)}" for part, seconds in results.seconds.items()),
        "Processor": f"{results.hardware['processor']}, one of {cores} cores in use",
        "System": str(results.hardware["system"]),
        "Finished": results.finished.strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": ", ".join(f"{name}\u00a0{version}" for name, version in results.versions.items()),
    }
    return section(
        "made",
        "How it was made",
        paragraph(
            "The held-out digits were set aside before anything else. The network never trained on them, and nothing "
            "was chosen by looking at them: the weights are those after the last training step. Training images were "
            "turned, shifted, scaled and sheared a little, anew each time. All ran on one processor core, so that the "
            "same seed gives the same weights, whatever else the machine has to do."
        ),
        paragraph(
            'The scans are scikit-learn\'s copy of the UCI set "Optical Recognition of Handwritten Digits" (E. '
            "Alpaydin, C. Kaynak). Training and held-out digits were written by the same thirteen people: the result "
            "says little about strangers' handwriting.",
            "soft",
        ),
        f'<dl class="facts">{terms(facts)}</dl>',
    )


def _network(results: Results) -> str:
    rows = []
    for number, stage in enumerate(results.stages):
        windows = "\u2013"
        if stage.windows and stage.window:
            windows = f"{size(*stage.windows)}, each of {size(*stage.window)} tokens"
        cells = [stage.kind, str(stage.blocks), size(*stage.size), str(stage.channels), windows]
        rows.append((f"Stage {number}", [*cells, str(stage.carriers or "\u2013")]))
    side = results.looking.images.shape[2:]
    return section(
        "network",
        "The network",
        paragraph(
            "FasterViT-0, made small. Convolutions read the strokes; then windows attend inside themselves, and "
            "carrier tokens, which summarise the windows, attend to one another across the whole image."
        ),
        table(
            f"The stages at {size(*side)} pixels; {results.parameters:,} parameters in all.",
            ["Stage", "Kind", "Blocks", "Map", "Channels", "Windows", "Carrier tokens"],
            rows,
            numbers=(2, 3, 4, 6),
        ),
    )


def _training(results: Results) -> str:
    epochs = results.epochs
    if not epochs:
        return section("training", "Training", paragraph("It was interrupted before the first step."))
    first, last, top1 = epochs[0], epochs[-1], results.evaluation.top1
    x = Axis("epoch", whole_ticks(last.number), lambda v: f"{v:.0f}")
    losses = [epoch.loss for epoch in epochs]
    loss = line_chart(
        "loss",
        "Training loss by epoch",
        f"It goes from {first.loss:.2f} in epoch {first.number} to {last.loss:.2f} in epoch {last.number}.",
        [Series("loss", [(epoch.number, epoch.loss) for epoch in epochs])],
        x,
        Axis("loss", round_ticks(min(losses), max(losses)), lambda v: f"{v:g}"),
    )
    shares = [*(epoch.accuracy for epoch in epochs), top1]
    names = "training images", "held-out images, at the end"
    accuracy = line_chart(
        "accuracy",
        "Accuracy by epoch",
        f"On training images it goes from {percent(first.accuracy)} to {percent(last.accuracy)}; "
        f"on held-out images it is {percent(top1, 2)} at the end.",
        [
            Series(names[0], [(epoch.number, epoch.accuracy) for epoch in epochs]),
            Series(names[1], [(last.number, top1)], marked=True),
        ],
        x,
        Axis("accuracy", [tick for tick in round_ticks(min(shares), 1) if tick <= 1], lambda v: percent(v, 0)),
    )
    return section(
        "training",
        "Training",
        paragraph(
            "Both curves are of training images as they were trained on: moved about, and each counted before its "
            "step. The loss is the cross-entropy of smoothed labels, which does not fall to 0. The held-out images "
            "were read once, after the last step, and not moved about: they may well be the easier ones."
        ),
        '<div class="pair">',
        figure("Loss, mean of each epoch", loss),
        figure("Accuracy", accuracy + key(names)),
        "</div>",
    )


def _folder(results: Results) -> str:
    files = {
        "model.safetensors": "the network, with all that is needed to use it",
        "images": "the page of held-out digits as PNG files; their names tell the digit",
        "predictions.csv": "what was read in each held-out image, with the probability of each digit",
        "metrics.csv": "the training, epoch by epoch",
        "summary.json": "the figures of this page",
    }
    items = "".join(f"<li><code>{escape(name)}</code>: {escape(text)}</li>" for name, text in files.items())
    return section(
        "folder",
        "What else is in this folder",
        f"<ul>{items}</ul>",
        paragraph("In this folder, the network reads the images from their files:"),
        "<pre><code>fastervit predict images --checkpoint model.safetensors</code></pre>",
    )


def _footer(results: Results) -> str:
    text = (
        f"Made by openfastervit {results.versions['openfastervit']}: FasterViT (arXiv 2306.06189) for everyone, under "
        "the Apache-2.0 licence. The network was trained from scratch in this run; no released weights are in it."
    )
    return f"<footer>{paragraph(text)}</footer>"
