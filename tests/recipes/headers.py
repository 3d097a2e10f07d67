"""What stands in the comments at the top of a recipe."""

import re
import shlex
from pathlib import Path


def header(path: Path) -> dict[str, str]:
    """The header's lines by their first word: "Command", "Hardware", ..."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").removeprefix(" "))
    entries = {"": comments[0]}
    for line in comments[1:]:
        if found := re.match(r"([A-Z]\w+): +(.*)", line):
            name = found[1]
            entries[name] = found[2]
        elif line:
            entries[name] += "\n" + line.strip()
    return entries


def command(path: Path) -> list[str]:
    """The words of the header's command."""
    lines = re.match(r"(?:.*\\\n)*.*", header(path)["Command"])
    assert lines is not None
    return shlex.split(lines[0].replace("\\\n", " "))
