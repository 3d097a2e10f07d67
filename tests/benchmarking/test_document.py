"""The guide speaks of options and columns that there are."""

import inspect
import re

from openfastervit.benchmarking.cases import COLUMNS
from openfastervit_cli.benchmark import benchmark
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "benchmarking.md").read_text(encoding="utf-8")


def test_options() -> None:
    known = {name.replace("_", "-") for name in inspect.signature(benchmark).parameters}
    named = {option.removeprefix("no-") for option in re.findall(r"--([a-z][a-z-]+)", TEXT)}
    assert named - {"scale", "runs", "data"} <= known  # those of the study of resolution
    assert {"models", "peers", "engines", "batch-sizes", "sizes", "out"} <= named


def test_columns() -> None:
    told = set(re.findall(r"`([a-z0-9_]+)`", "\n".join(line for line in TEXT.splitlines() if line.startswith("| `"))))
    columns = {name for name in told if "_" in name and not name.startswith("_")}
    assert columns <= set(COLUMNS)
    assert {"images_per_second", "peak_memory_mb", "top1_published", "not_faster_than"} <= columns
