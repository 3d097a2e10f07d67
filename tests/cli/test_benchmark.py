"""``fastervit benchmark``: what it leaves, what it refuses, and what goes on when something does not."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from openfastervit.benchmarking.cases import COLUMNS
from openfastervit.inference import engines
from openfastervit.inference.engines import ENGINES, EngineKind
from tests.cli.conftest import Run

QUICK = ["--sizes", 64, "--batch-sizes", 2, "--repeats", 2, "--seconds", 0.01, "--threads", 1, "--device", "cpu"]


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == list(COLUMNS)
        return list(reader)


def test_a_run_leaves_a_table_its_settings_and_a_page(
    fastervit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are measured, of an engine that is not installed, and of a precision that an engine has not."""
    monkeypatch.setitem(ENGINES, "abacus", EngineKind("nowhere:build", ("fp32",), ("abacus_beads",), "abacus"))
    out = tmp_path / "report"
    networks = ["--models", "fastervit_0", "--peers", "test_resnet", "--engines", "torch-eager", "abacus"]
    outcome = fastervit("benchmark", *networks, "--precisions", "fp32", "int8", *QUICK, "--out", out)
    assert outcome.code == 0
    assert outcome.err == f"fastervit: 8 rows; results.csv, settings.json and page.html are in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["page.html", "results.csv", "settings.json"]
    rows = rows_in(out)
    assert [(row["model"], row["engine"], row["precision"]) for row in rows] == [
        (model, engine, precision)
        for precision in ("fp32", "int8")
        for engine in ("torch-eager", "abacus")
        for model in ("fastervit_0", "test_resnet")
    ]
    assert [row["status"].partition(":")[0] for row in rows] == ["ok"] * 2 + ["unavailable"] * 6
    assert "pip install 'openfastervit[abacus]'" in rows[2]["status"]
    assert all(float(row["images_per_second"]) > 0 and float(row["peak_memory_mb"]) > 0 for row in rows[:2])
    assert rows[0]["top1_published"] == "82.100"
    assert rows[0]["top1_size"] == "224", "published at another size than measured, and told so"
    assert "82.1 at 224" in outcome.out
    settings = json.loads((out / "settings.json").read_text())
    assert settings["command"].startswith("fastervit benchmark --models fastervit_0")
    assert settings["finished"]
    assert not settings["interrupted"]
    assert {"python", "torch", "timm", "openfastervit"} <= set(settings["versions"])
    assert {"processor", "cores", "system"} <= set(settings["hardware"])


def test_what_runs_out_of_memory_is_a_row_and_the_rest_go_on(fastervit: Run, tmp_path: Path) -> None:
    out = tmp_path / "report"
    sizes = ["--batch-sizes", 80000, 2, "--memory-limit", 2, "--no-page", "--engines", "torch-folded"]
    outcome = fastervit("benchmark", "--models", "fastervit_0", *QUICK, *sizes, "--out", out)
    assert outcome.code == 0
    huge, small = rows_in(out)
    assert huge["batch_size"] == "80000"
    assert huge["status"].startswith("out of memory: ")
    assert huge["images_per_second"] == ""
    assert small["status"] == "ok"
    assert "out of memory" in outcome.out
    assert not (out / "page.html").exists()


def long_run(out: Path) -> subprocess.Popen[str]:
    """A benchmark that lasts for minutes, in a session of its own."""
    words = [sys.executable, "-m", "openfastervit", "benchmark", "--peers", "test_resnet", "--engines", "torch-eager"]
    words += [*map(str, QUICK), "--precisions", "int8", "fp32", "--repeats", "10000", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, start_new_session=True, env=environment, **pipes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_the_rows_so_far(tmp_path: Path, number: int, code: int) -> None:
    """The real thing: a process of its own, and a signal as from the keyboard to all of its group."""
    out = tmp_path / "report"
    process = long_run(out)
    try:
        ends = time.monotonic() + 120
        while not (out / "results.csv").exists() or len(rows_in(out)) < 4:  # all have come to their first turn
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert [row["status"].partition(":")[0] for row in rows_in(out)] == ["unavailable"] * 2 + ["running"] * 2
        os.killpg(process.pid, number)
        table, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert message == f"fastervit: interrupted; 0 of 4 rows are whole, in {out}\n"
    rows = rows_in(out)
    assert [row["status"].partition(":")[0] for row in rows] == ["unavailable"] * 2 + ["interrupted"] * 2
    assert all(int(row["repeats"]) >= 1 and float(row["images_per_second"]) > 0 for row in rows[2:])
    assert "interrupted: " in table
    assert json.loads((out / "settings.json").read_text())["interrupted"]
    assert "was interrupted" in (out / "page.html").read_text(encoding="utf-8")
    assert in_session(process.pid) == []


def test_no_process_outlives_the_command(tmp_path: Path) -> None:
    """Killed, it can tell nobody to end; and a stopped process does nothing of itself."""
    out = tmp_path / "report"
    process = long_run(out)
    try:
        ends = time.monotonic() + 120
        while not any(state == "T" and session == process.pid for _, state, session in processes()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < ends
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert in_session(process.pid) == []


def test_auto_takes_what_is_installed_and_all_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from openfastervit_cli.benchmark import _engines

    table = {"torch-eager": ENGINES["torch-eager"], "abacus": EngineKind("nowhere:build", ("fp32",), ("abacus_beads",))}
    monkeypatch.setattr(engines, "ENGINES", table)
    monkeypatch.setattr(engines, "installed_engines", lambda: ["torch-eager"])
    assert _engines(["auto"]) == ["torch-eager"]
    assert _engines(["all"]) == ["torch-eager", "abacus"]
    assert _engines(["abacus", "auto", "abacus"]) == ["abacus", "torch-eager"]
    table["graphs"] = EngineKind("nowhere:build", ("fp32",), devices=("cuda",))
    monkeypatch.setattr(engines, "installed_engines", lambda: ["torch-eager", "graphs"])
    assert _engines(["auto"], "cpu") == ["torch-eager"]
    assert _engines(["auto"], "cuda:1") == ["torch-eager", "graphs"]
    assert _engines(["graphs"], "cpu") == ["graphs"], "what is named is tried, and says why it cannot be"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--models", "fastervit_9"], ["fastervit_9", "did you mean"]),
        (["--peers", "convnext_tyni"], ["convnext_tyni", "did you mean", "convnext_tiny"]),
        (["--engines", "steam"], ["'steam'", "torch-eager", "auto"]),
        (["--precisions", "fp4"], ["'fp4'", "bf16"]),
        (["--batch-sizes", "0"], ["--batch-sizes 0", "at least 1"]),
        (["--sizes", "-3"], ["--sizes -3", "at least 1"]),
        (["--repeats", "0"], ["--repeats 0", "at least 1"]),
        (["--seconds", "0"], ["--seconds 0", "above 0"]),
        (["--threads", "0"], ["--threads 0", "at least 1"]),
        (["--memory-limit", "0"], ["--memory-limit 0", "above 0"]),
        (["--device", "abacus"], ["'abacus'", "cpu"]),
        (["--device", "cuda:99"], ["'cuda:99'", "GPUs"]),
    ],
)
def test_values_out_of_range(fails, tmp_path: Path, args: list[str], says: list[str]) -> None:
    fails("benchmark", *args, "--out", tmp_path / "report", says=says)
    assert not (tmp_path / "report").exists()


def test_results_are_never_overwritten(fails, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("dear")
    fails("benchmark", *QUICK, "--out", tmp_path, says=[f"--out {tmp_path} holds results already", "another folder"])
    assert (tmp_path / "results.csv").read_text() == "dear"
    fails("benchmark", *QUICK, "--out", tmp_path / "results.csv", says=["is a file", "folder"])


def test_the_page_needs_plotly(fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openfastervit.inference.engines.engine.installed", lambda module: module != "plotly")
    says = ["plotly", "pip install 'openfastervit[report]'", "--no-page"]
    fails("benchmark", *QUICK, "--out", tmp_path / "report", says=says)


def processes() -> list[tuple[int, str, int]]:
    """Number, state and session of each process there is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session, *_ = (entry / "stat").read_text().rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            found.append((int(entry.name), state, int(session)))
    return found


def in_session(session: int) -> list[int]:
    """Processes of a session, once none is left or after a few seconds."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        left = [number for number, state, own in processes() if own == session and state != "Z"]
        if not left:
            return []
        time.sleep(0.1)
    return left
