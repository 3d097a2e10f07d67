"""Pieces of HTML, and numbers as people write them. Text is escaped here, so that it cannot be forgotten."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

TIMES = "\u00d7"


def percent(share: float, digits: int = 1) -> str:
    """``98.9 %``, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def duration(seconds: float) -> str:
    """``4.2 s``, ``37 s`` or ``1 min 52 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes else f"{rest}\u00a0s"


def size(height: int, width: int) -> str:
    """``8 × 8``."""
    return f"{height}\u00a0{TIMES}\u00a0{width}"


def css_class(name: str) -> str:
    """The attribute, or nothing for no name."""
    return f' class="{escape(name)}"' if name else ""


def section(name: str, heading: str, *parts: str) -> str:
    """A part of the page with its heading; ``parts`` are HTML."""
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph."""
    return f"<p{css_class(kind)}>{escape(text)}</p>"


def terms(items: Mapping[str, str]) -> str:
    """The inside of a list of terms and what they are."""
    return "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in items.items())


def scrollable(label: str, inside: str) -> str:
    """A box that scrolls sideways where the screen is narrow, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inside}</div>'


def table(
    caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], numbers: Sequence[int] = ()
) -> str:
    """A table whose first column names the rows; ``numbers`` are the columns aligned to the right."""

    def kind(column: int) -> str:
        return css_class("n" if column in numbers else "")

    columns = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td{kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(cells, start=1))
        + "</tr>"
        for name, cells in rows
    )
    inside = (
        f'<table class="wide"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    )
    return scrollable(caption, inside)


def figure(caption: str, picture: str, kind: str = "") -> str:
    """A picture under its caption; ``picture`` is HTML."""
    return f"<figure{css_class(kind)}><figcaption>{escape(caption)}</figcaption>{picture}</figure>"
