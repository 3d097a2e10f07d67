"""One short run of the demo, shared by the tests that look at what it leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from openfastervit.demo import Summary, job, run
from openfastervit.demo.report import Results

SHORT = {"epochs": 1, "sides": (128, 256), "repeats": 2}


class ShortRun(NamedTuple):
    """A run of one epoch."""

    out: Path
    results: Results
    summary: Summary


@contextmanager
def watched() -> Iterator[list[Results]]:
    """Collects what runs hand to the report."""
    seen: list[Results] = []
    real = job.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write", lambda folder, model, results: (seen.append(results), real(folder, model, results)))
        yield seen


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    out = tmp_path_factory.mktemp("demo") / "report"
    with watched() as seen:
        summary = run(out, **SHORT)
    return ShortRun(out, seen[0], summary)
