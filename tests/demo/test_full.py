"""The demo as people run it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(900)
def test_the_demo_reads_98_percent_of_held_out_digits(tmp_path):
    out = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "openfastervit", "demo", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"Made {out / 'report.html'}")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["top1"] >= 0.98
    assert summary["interrupted"] is False
