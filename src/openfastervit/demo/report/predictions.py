"""Parts of the report about single digits: the confusion matrix, the mistakes, a page of predictions."""

from html import escape

from openfastervit.demo.network import CLASSES
from openfastervit.demo.report.markup import css_class, paragraph, percent, scrollable, section
from openfastervit.demo.report.pictures import data_uri, scan_png
from openfastervit.demo.report.results import PAGE, Results

LEAST_SURE = 6
"""Images shown where there are no mistakes to show."""
WRONG = 60
"""At most so many mistakes are shown: a run stopped early makes many."""


def confusion(results: Results) -> str:
    """The confusion matrix, as a table."""
    counts = results.evaluation.confusion()
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in CLASSES)
    body = []
    for row, name in zip(counts, CLASSES, strict=True):
        cells = []
        for column, count in zip(CLASSES, row, strict=True):
            kind = "hit" if name == column else "miss" if count else ""
            share = f' style="--share:{round(60 * count / max(row.sum(), 1))}%"' if name == column else ""
            cells.append(f"<td{css_class(kind)}{share}>{count}</td>")
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    matrix = (
        '<table class="confusion"><caption><span>A row is the digit that was written, a column the digit that was '
        "read; held-out images only.</span></caption>"
        f'<thead><tr><td class="corner"></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )
    return section(
        "confusion",
        "Which digit was read as which",
        paragraph(_commonest(results)),
        scrollable("Confusion matrix", matrix),
    )


def _commonest(results: Results) -> str:
    counts = results.evaluation.confusion()
    classes = range(len(CLASSES))
    pairs = [(int(counts[i, j]), i, j) for i in classes for j in classes if i != j and counts[i, j]]
    pairs.sort(reverse=True)
    if not pairs:
        return "No digit was taken for another."
    most, written, read = pairs[0]
    often = "once" if most == 1 else f"{most} times"
    if len(pairs) > 1 and pairs[1][0] == most:
        return f"No digit was taken for a particular other one more often than {often}."
    return f"The commonest confusion: {CLASSES[written]} read as {CLASSES[read]}, {often}."


def mistakes(results: Results) -> str:
    """The images it got wrong; where there are none, those it was least sure of."""
    evaluation = results.evaluation
    wrong, total = evaluation.wrong, len(evaluation.labels)
    if len(wrong):
        heading = "What it got wrong"
        text = f"{len(wrong)} of {total} held-out digits, the most confident mistake first."
        if len(wrong) > WRONG:
            text += f" The first {WRONG} are shown."
        shown = wrong[:WRONG]
    else:
        heading = "What it got wrong: nothing"
        text = f"All {total} held-out digits were read correctly. These are the ones it was least sure of."
        shown = evaluation.confidence.argsort(kind="stable")[:LEAST_SURE]
    cards = []
    for position in shown.tolist():
        label, read = int(evaluation.labels[position]), int(evaluation.predicted[position])
        sure, believed = float(evaluation.confidence[position]), float(evaluation.probabilities[position, label])
        verdict = '<span class="good">which is right</span>'
        if read != label:
            verdict = f'<span class="bad">is a {escape(CLASSES[label])}</span>: {percent(believed)}'
        cards.append(
            f"<li>{scan(results, position)}<p>read as <strong>{escape(CLASSES[read])}</strong>: {percent(sure)}<br>"
            f"{verdict}</p></li>"
        )
    return section("mistakes", heading, paragraph(text), f'<ul class="cards">{"".join(cards)}</ul>')


def page(results: Results) -> str:
    """The first held-out images, each with what was read."""
    evaluation = results.evaluation
    cards = []
    for position in range(min(PAGE, len(evaluation.labels))):
        label, read = int(evaluation.labels[position]), int(evaluation.predicted[position])
        mark = '<span class="good" role="img" aria-label="right">\u2713</span>'
        if read != label:
            mark = f'<span class="bad">\u2717 is {escape(CLASSES[label])}</span>'
        sure = percent(float(evaluation.confidence[position]), 0)
        cards.append(
            f"<li{css_class('miss' if read != label else '')}>{scan(results, position)}"
            f"<p><strong>{escape(CLASSES[read])}</strong> {mark}<br>{sure}</p></li>"
        )
    return section(
        "page",
        "A page of held-out digits",
        f"<p>The first {len(cards)} of the held-out images, not picked: what was read, and how sure the network was. "
        "It was trained with smoothed labels, so it never is entirely. The same images lie in the folder "
        "<code>images</code>.</p>",
        f'<ul class="cards small">{"".join(cards)}</ul>',
    )


def scan(results: Results, position: int, kind: str = "scan") -> str:
    """A held-out scan as it is, its pixels plainly to be seen."""
    index = int(results.digits.held_out[position])
    label = CLASSES[int(results.digits.labels[index])]
    return (
        f'<img{css_class(kind)} src="{data_uri(scan_png(results.digits.scans[index]))}" '
        f'alt="Scan {index}, a handwritten {escape(label)}" width="128" height="128">'
    )
