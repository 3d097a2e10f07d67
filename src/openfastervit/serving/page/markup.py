"""Answers as HTML that reads well on any screen, aloud too."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from openfastervit.inference.images_in_memory import Answer, Classes, Labels, Objects
from openfastervit.serving.page.inside import Look
from openfastervit.serving.page.subjects import Subject, Timed
from openfastervit.tasks.drawing import palette

_MOST = 12
"""Objects, or classes of pixels, that are listed; the picture shows all."""


def heading(subject: Subject) -> str:
    """Which network a column is of."""
    return _section(subject, [_heading(subject)])


def answered(subject: Subject, timed: Timed, decoding: float) -> str:
    """A column's heading, answer and times."""
    parts = [_heading(subject), f'<p class="summary">{escape(in_words(timed.answer, subject.model.classes))}</p>']
    match timed.answer:
        case Classes(names, _, scores):
            parts.append(_list("Likeliest classes", (_bar(n, s) for n, s in zip(names, scores, strict=True))))
        case Objects(_, _, names, scores, _) if names:
            pairs = list(zip(names, scores, strict=True))
            parts.append(_list("Objects, the surest first", (_bar(n, s) for n, s in pairs[:_MOST])))
            parts.append(_more(len(pairs)))
        case Labels():
            shares = _shares(timed.answer, subject.model.classes)
            colours = palette(len(subject.model.classes))
            rows = (_bar(subject.model.classes[place], share, colours[place]) for place, share in shares[:_MOST])
            parts.append(_list("Classes by their share of the pixels", rows))
            parts.append(_more(len(shares)))
    times = (("decoding", decoding), ("scaling", timed.preparing), ("network", timed.network))
    rows = (f"<div><dt>{name}</dt><dd>{_duration(seconds)}</dd></div>" for name, seconds in times)
    parts.append(f'<dl class="times" aria-label="Time it took">{"".join(rows)}</dl>')
    return _section(subject, parts)


def in_words(answer: Answer, classes: Sequence[str]) -> str:
    """The answer in a line."""
    match answer:
        case Classes(names, _, scores):
            return f"{names[0]}, {percent(scores[0])}"
        case Objects(_, _, names, _, _):
            kinds = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
            return f"{len(names)} object{'' if len(names) == 1 else 's'}: {kinds}" if names else "No objects"
        case Labels():
            shares = _shares(answer, classes)
            if not shares:
                return "No pixel has a class"
            return ", ".join(f"{classes[place]} {percent(share)}" for place, share in shares[:3])


def carriers(look: Look) -> str:
    """What carriers look at: pictures with captions."""
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(figure.png).decode()}" alt="{escape(figure.alt)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in look.figures
    )
    return (
        f'<h3>What the carrier tokens look at</h3><p class="soft">Amber is more than if attention were spread evenly, '
        f"dark is less; the blue frame is the carrier's own window. {escape(look.place)}.</p>"
        f'<div class="figures">{figures}</div>'
    )


def no_carriers(why: str) -> str:
    """Why carriers are not shown."""
    return f'<h3>What the carrier tokens look at</h3><p class="soft">{escape(why)}</p>'


def alert(message: str) -> str:
    """What went wrong, where it is read at once."""
    return f'<p class="wrong">{escape(message)}</p>'


def percent(score: float) -> str:
    """Such as ``"93.1 %"``; below 100 unless it is that, and what is little is not nothing."""
    if 0 < score < 0.001:
        return "below 0.1\u00a0%"
    return f"{min(100 * score, 99.9) if score < 1 else 100:.1f}\u00a0%"


def _section(subject: Subject, parts: Iterable[str]) -> str:
    return f'<section class="network" aria-label="{escape(subject.name)}">{"".join(parts)}</section>'


def _heading(subject: Subject) -> str:
    return f'<h2>{escape(subject.name)}</h2><p class="soft">{escape(subject.about)}</p>'


def _bar(name: str, score: float, colour: tuple[int, int, int] | None = None) -> str:
    style = f"width:{100 * min(max(score, 0), 1):.1f}%"
    if colour is not None:
        style += f";background:rgb{colour}".replace(" ", "")
    return (
        f'<li><span class="name">{escape(name)}</span> <span class="score">{percent(score)}</span>'
        f'<span class="bar" aria-hidden="true"><span style="{style}"></span></span></li>'
    )


def _list(label: str, items: Iterable[str]) -> str:
    return f'<ol class="scores" role="list" aria-label="{escape(label)}">{"".join(items)}</ol>'


def _more(count: int) -> str:
    return f'<p class="soft">and {count - _MOST} more</p>' if count > _MOST else ""


def _shares(answer: Labels, classes: Sequence[str]) -> list[tuple[int, float]]:
    """Places of the classes that pixels have, with their shares, the largest first."""
    counts = np.bincount(answer.labels.reshape(-1), minlength=len(classes))[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    return [(int(place), float(counts[place] / answer.labels.size)) for place in order if counts[place]]


def _duration(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.1f}\u00a0ms" if milliseconds < 100 else f"{milliseconds:,.0f}\u00a0ms"
