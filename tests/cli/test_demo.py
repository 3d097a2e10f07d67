"""``fastervit demo``: its command line; the demo has tests of its own."""

import builtins
import sys
import types
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    calls: list[dict] = []
    module = types.ModuleType("openfastervit.demo")
    module.run = lambda **kwargs: calls.append(kwargs)
    monkeypatch.setitem(sys.modules, "openfastervit.demo", module)
    return calls


def test_defaults(fastervit: Run, calls: list[dict]):
    assert fastervit("demo").code == 0
    assert calls == [{"out": Path("demo-report"), "seed": 0, "epochs": None}]


def test_options(fastervit: Run, calls: list[dict], tmp_path: Path):
    assert fastervit("demo", "--out", tmp_path, "--seed", 3, "--epochs", 2).code == 0
    assert calls == [{"out": tmp_path, "seed": 3, "epochs": 2}]


@pytest.mark.parametrize("name", ["sklearn"])
def test_what_it_needs_is_named(fails, monkeypatch: pytest.MonkeyPatch, name: str):
    real = builtins.__import__

    def refuse(wanted, *args, **kwargs):
        if wanted == "openfastervit.demo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    fails("demo", says=[f"the demo needs {name}", "pip install 'openfastervit[demo]'"])
