"""Results on disk to the page of the second tab."""

import json
from pathlib import Path

import pytest

from openfastervit.benchmarking.cases import COLUMNS, to_csv
from openfastervit.benchmarking.page import render
from openfastervit.serving.page.benchmark import benchmark_page, read_rows
from tests.benchmarking.test_page import SETTINGS, some_rows


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results.csv").write_text(to_csv(some_rows()), encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (tmp_path / "page.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    return tmp_path


def test_rows_come_back(results: Path):
    rows = read_rows(results / "results.csv")
    measured = {"images_per_second", "images_per_second_q1", "images_per_second_q3", "latency_ms_p50"}
    for row, before in zip(rows, some_rows(), strict=True):
        for name in COLUMNS:
            found, expected = getattr(row, name), getattr(before, name)
            if name in measured and expected is not None:
                assert found == pytest.approx(expected, rel=1e-4), name
            else:
                assert (found, type(found)) == (expected, type(expected)), name


def test_the_page_is_made_of_the_figures(results: Path):
    page = benchmark_page(results)
    assert page == benchmark_page(results / "results.csv")
    assert page == render(read_rows(results / "results.csv"), SETTINGS)
    assert "alert(1)" not in page
    assert "--peers &lt;none&gt;" in page


def test_what_is_missing_or_damaged_is_named(results: Path, tmp_path: Path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "results.csv").write_text("model,head\nx,y\n")
    (tmp_path / "dense" / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no column engine; .*classifiers"):
        benchmark_page(tmp_path / "dense")
    with pytest.raises(FileNotFoundError, match=r"no results\.csv at"):
        benchmark_page(tmp_path / "nowhere")
    text = (results / "results.csv").read_text(encoding="utf-8")
    (results / "results.csv").write_text(text.replace(",false,", ",perhaps,", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        benchmark_page(results)
    (results / "results.csv").write_text(text, encoding="utf-8")
    for broken in ("{", "{}"):
        (results / "settings.json").write_text(broken)
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            benchmark_page(results)
    (results / "settings.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no settings\.json at"):
        benchmark_page(results)
