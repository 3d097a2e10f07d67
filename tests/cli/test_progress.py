"""How a long job tells how far it is, in a log; the bar on a terminal is seen in ``test_predict``."""

import time

import pytest

from openfastervit_cli.progress import progress


def test_a_log_has_a_line_each_half_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress(1_000_100, done=100) as advance:
        for _ in range(140):
            now += 0.5
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "fastervit: 160 of 1000100 images, 2.0 images/s, 5 days, 18:52:50 left",
        "fastervit: 220 of 1000100 images, 2.0 images/s, 5 days, 18:52:20 left",
    ]


def test_what_is_hidden_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress(10, hidden=True) as advance:
        for _ in range(5):
            now += 100
            advance()
    assert capsys.readouterr().err == ""
