"""Load and faults, at their smallest: the whole path with a pocket network, and the arithmetic by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from studies.common.table import read_table
from studies.serving_load import __main__ as study
from studies.serving_load import judge
from studies.serving_load.client import CLOSED, NO_ANSWER, Answer, Told
from tests.conftest import REPOSITORY
from tests.pocket import write_checkpoint

COUNTED = ("answered_200", "refused_503", "refused_503_silent", "other_5xx", "other_status")
SILENT = ("no_answer", "closed", "not_connected")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="looks for processes in /proc")
@pytest.mark.timeout(300)
def test_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every phase but those that wait for ten seconds. Whether a machine is fast enough is not asked."""
    monkeypatch.chdir(REPOSITORY)  # its processes are modules of studies
    out = tmp_path / "load.csv"
    phases = ["closed_loop", "load", "overload", "leaving_clients", "end_under_load"]
    words = ["--checkpoint", str(write_checkpoint(tmp_path / "pocket.safetensors")), "--engine", "torch-folded"]
    code = study.main(["--out", str(out), "--seconds", "2", *words, "--threads", "1", "--phases", *phases])
    told = capsys.readouterr()
    alone, *rows = read_table(out)
    assert [row["phase"] for row in rows] == [
        "two batches at once",
        "80 % of the engine's rate",
        "4 times the engine's rate",
        "clients that leave",
        "SIGTERM",
    ]
    rate, batch_ms = float(alone["answered_per_second"]), float(alone["batch_ms"])
    assert rate == pytest.approx(8 / batch_ms * 1000, rel=2e-3)
    for row in rows:
        counts = {name: int(row[name]) for name in (*COUNTED, *SILENT)}
        assert sum(counts.values()) == int(row["requests"])
        assert counts["answered_200"] > 0
        assert counts["other_5xx"] == counts["refused_503_silent"] == counts["other_status"] == 0
        sent = int(row["requests"]) + int(row["unsent"])
        assert float(row["share_of_offered"]) == pytest.approx(counts["answered_200"] / sent, rel=2e-3)
        assert float(row["share_of_engine"]) == pytest.approx(float(row["answered_per_second"]) / rate, rel=2e-3)
        assert float(row["p99_batches"]) == pytest.approx(float(row["p99_ms"]) / batch_ms, rel=2e-3)
        assert float(row["p50_ms"]) <= float(row["p99_ms"])
        assert row["met"] == "yes" or all(part in row["criteria"] for part in row["met"][4:].split("; "))
        assert row["processor"]
        assert row["torch"]
        assert row["command"].startswith("python -m studies.serving_load")
        assert str(tmp_path) not in "".join(row.values())
        assert row["phase"] in told.out
    ratio = float(rows[2]["offered_per_second"]) / float(rows[1]["offered_per_second"])
    assert ratio == pytest.approx(5, rel=0.7)  # Poisson's
    assert int(rows[4]["exit_code"]) == 0
    assert code == (0 if all(row["met"] == "yes" for row in rows) else 1)


def answer(sent: float, seconds: float, status: int, retry_after: bool = False) -> Answer:
    return Answer(sent - 0.001, sent, sent + seconds, status, retry_after)


def test_figures_by_hand() -> None:
    answers = [answer(i / 10, 0.1 + i / 1000, 200) for i in range(100)]  # the last one's answer comes after the end
    answers += [answer(5, 0.01, 503, True), answer(5, 0.02, 503), answer(5, 1, 500), answer(5, 1, CLOSED)]
    found = judge.figures(Told(answers, 6, 0.0, 10.0, 2.0), bare_rate=20.0, batch_s=0.05)
    assert found["requests"] == 104
    assert (found["refused_503"], found["refused_503_silent"], found["other_5xx"], found["closed"]) == (1, 1, 1, 1)
    assert found["offered_per_second"] == pytest.approx(11)
    assert found["share_of_offered"] == pytest.approx(100 / 110)
    assert found["answered_per_second"] == pytest.approx(9.9)
    assert found["share_of_engine"] == pytest.approx(9.9 / 20)
    assert found["p99_ms"] == pytest.approx(198)
    assert found["p99_batches"] == pytest.approx(0.198 / 0.05)
    assert found["refusal_p99_ms"] == pytest.approx(20)
    assert found["client_late_p99_ms"] == pytest.approx(1)
    assert found["client_cores"] == pytest.approx(0.2)


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=997)
    for share in (0.01, 0.5, 0.99, 1.0):
        assert judge.percentile(values.tolist(), share) == np.quantile(values, share, method="inverted_cdf")
    assert math.isnan(judge.percentile([], 0.5))


def test_growth_begins_after_the_first_fifth() -> None:
    start = [1.0] * 20 + [10.0] * 80  # a server that warms up
    assert judge.growth(start) == 0
    assert judge.growth([*start[:90], *[11.0] * 10]) == pytest.approx(0.1)
    assert math.isnan(judge.growth([1.0, 2.0]))
    assert not judge.growth([1.0, 2.0]) < 0.05  # what was not seen is not good enough


def test_what_is_not_good_enough() -> None:
    good = [answer(0, 1, 200), answer(1, 0.1, 503, True)]
    assert judge.only_refusals(good).met
    assert judge.all_answered(good, 2).met
    assert not judge.all_answered([], 2).met
    assert not judge.all_answered(good, 0.5).met
    for status in (NO_ANSWER, CLOSED):
        assert not judge.all_answered([*good, answer(0, 0.1, status)], 2).met
    for bad in (answer(0, 1, 503), answer(0, 1, 500), answer(0, 1, 504)):
        assert not judge.only_refusals([*good, bad]).met
    assert judge.verdict([judge.only_refusals(good)]) == "yes"
    assert judge.verdict([judge.all_answered(good, 0.5)]) == "no: each request answered within 0.5 s"


def test_back_counts_from_the_first_that_came_afterwards() -> None:
    answers = [answer(1.9, 5, 200), answer(2.1, 0.1, 503, True), answer(4, 0.5, 200), answer(3.9, 2, 200)]
    assert judge.back_after(answers, 2.0) == pytest.approx(2.5)
    assert judge.back_after(answers[:2], 2.0) == math.inf
