"""A report as a test reads it."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br"}
ADDRESSES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}


class Page(HTMLParser):
    """The page's elements, its text by section, its tables; fails where elements are not nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str]]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self.cells: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[str, str]] = []
        self.styles = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @classmethod
    def read(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag == "tr":
            self.cells.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.cells[self.section][-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag not in VOID:
            self.open.append((tag, values))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        last, _ = self.open.pop()
        assert last == tag, f"<{last}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "style" in tags:
            self.styles += data
            return
        self.text[self.section] = self.text.get(self.section, "") + data
        if "td" in tags or "th" in tags:
            self.cells[self.section][-1][-1] += data
        if self.headings and tags and tags[-1] == self.headings[-1][0]:
            tag, before = self.headings[-1]
            self.headings[-1] = tag, before + data

    @property
    def section(self) -> str:
        """The name of the section that is open, ``header``, ``footer`` or nothing."""
        for tag, values in self.open:
            if tag == "section":
                return values["id"]
            if tag in ("header", "footer", "title"):
                return tag
        return ""

    def addresses(self) -> list[str]:
        """Whatever the page may fetch."""
        found = [v for _, values in self.elements for name, v in values.items() if name in ADDRESSES]
        styles = self.styles + " ".join(values.get("style", "") for _, values in self.elements)
        found += re.findall(r"url\(([^)]*)\)", styles) + re.findall(r"@import\s+([^;]*)", styles)
        return found
