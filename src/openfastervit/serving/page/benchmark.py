"""The second tab: the page of a benchmark, made anew from its results."""

import csv
import json
from pathlib import Path
from typing import Any, get_type_hints

from openfastervit.benchmarking.cases import COLUMNS, Row
from openfastervit.benchmarking.page import render

FRAME = '<h2 class="unseen">Speed and accuracy</h2><iframe src="benchmark" title="A benchmark\'s results"></iframe>'
"""What the tab shows: results, as a page in the page."""
HOW = (
    "<h2>Speed and accuracy</h2><p>No benchmark was given. Make one, and start the page with it:</p>"
    "<pre><code>fastervit benchmark --models fastervit_0 --peers default --out runs/benchmark\n"
    "fastervit app --checkpoint model.safetensors --benchmark runs/benchmark</code></pre>"
)
"""What the tab says without results."""


def benchmark_page(results: Path) -> str:
    """The page of the results of ``fastervit benchmark``, as HTML that needs no network.

    It is made of the figures: a ``page.html`` that lies beside them is not looked at.

    Args:
        results: ``results.csv``, with ``settings.json`` beside it, or their folder.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If they are no results of classifiers, or damaged.
    """
    path = results if results.suffix == ".csv" else results / "results.csv"
    settings = path.with_name("settings.json")
    for needed in (path, settings):
        if not needed.is_file():
            raise FileNotFoundError(
                f"no {needed.name} at {needed}; --benchmark takes what `fastervit benchmark` leaves"
            )
    rows = read_rows(path)
    try:
        return render(rows, json.loads(settings.read_text(encoding="utf-8")))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{settings} is damaged ({type(error).__name__}: {error}); run the benchmark again") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of ``results.csv``.

    Raises:
        ValueError: If its columns are others, or a value is none of its column's.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}; the page is of `fastervit benchmark` of classifiers")
        lines = list(reader)
    kinds = get_type_hints(Row)
    try:
        return [Row(**{name: _value(line[name], kinds[name]) for name in COLUMNS}) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _value(text: str, kind: Any) -> Any:
    """A cell as ``to_csv`` wrote it."""
    kinds = [kind] if isinstance(kind, type) else list(kind.__args__)
    if not text and type(None) in kinds:
        return None
    (plain,) = (one for one in kinds if one is not type(None))
    if plain is bool:
        return {"true": True, "false": False}[text]
    return plain(text)
