"""The choice of an engine: measured, right, remembered."""

import json
import warnings

import pytest
import torch

from openfastervit.inference.engines import EngineError, Settings, auto, auto_engine
from openfastervit.inference.engines.engine import difference
from tests.networks import images, tiny

SETTINGS = Settings(size=(64, 64), batch_size=2)


class Slow:
    """An engine whose calls take a time that is known, on a clock that does not run by itself."""

    precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, name, seconds, clock, network, *, wrong=0.0):
        self.name, self.seconds, self.clock, self.network, self.wrong = name, seconds, clock, network, wrong
        self.closed = False

    def __call__(self, x):
        self.clock[0] += self.seconds
        with torch.no_grad():
            return self.network(x) * (1 + self.wrong)

    def close(self):
        self.closed = True


@pytest.fixture
def network():
    return tiny().eval()


def stub(monkeypatch, engines, clock):
    """Engines by name; exceptions are raised when they are built."""
    real = auto.create_engine
    built = []

    def create(network, name, settings):
        if name == "torch-eager":
            return real(network, name, settings)
        built.append(name)
        if isinstance(engines[name], Exception):
            raise engines[name]
        return engines[name]

    monkeypatch.setattr(auto, "create_engine", create)
    monkeypatch.setattr(auto.time, "perf_counter", lambda: clock[0])
    return built


def test_the_fastest_right_engine_wins(network):
    clock = [0.0]
    engines = {
        "openvino": Slow("openvino", 0.2, clock, network),
        "torch-folded": Slow("torch-folded", 0.1, clock, network),
        "onnxruntime": Slow("onnxruntime", 0.01, clock, network, wrong=0.01),
        "torch-compiled": RuntimeError("no compiler here\nand a long trace"),
    }
    with pytest.MonkeyPatch.context() as patch:
        stub(patch, engines, clock)
        choice, winner = auto.measure(network, SETTINGS, list(engines), clock=lambda: clock[0])
    assert winner is engines["torch-folded"]
    assert choice.engine == "torch-folded"
    assert choice.images_per_second == pytest.approx({"openvino": 10.0, "torch-folded": 20.0})
    assert choice.failures["torch-compiled"] == "no compiler here"
    assert "differ from the network's by 0.01" in choice.failures["onnxruntime"]
    assert "torch-folded 20.0, openvino 10.0" in choice.reason
    assert engines["openvino"].closed
    assert engines["onnxruntime"].closed
    assert not winner.closed


def test_nothing_that_runs_is_an_error_that_says_why(network):
    engines = {
        "openvino": ValueError("no such arithmetic"),
        "onnxruntime": Slow("onnxruntime", 1, [0.0], network, wrong=float("nan")),
    }
    with pytest.MonkeyPatch.context() as patch:
        stub(patch, engines, [0.0])
        with pytest.raises(EngineError, match=r"openvino: no such arithmetic; onnxruntime: its logits differ"):
            auto.measure(network, SETTINGS, list(engines))
    with pytest.raises(EngineError, match=r"no engine here has precision 'int8' on 'mps'.*openfastervit\[openvino"):
        auto_engine(network, Settings(size=(64, 64), precision="int8", device="mps"))


def test_the_choice_is_remembered_for_what_it_was_measured_for(network, tmp_path, monkeypatch):
    clock = [0.0]
    engines = {name: Slow(name, 0.1, clock, network) for name in ("openvino", "torch-folded")}
    built = stub(monkeypatch, engines, clock)
    monkeypatch.setattr(auto, "REPEATS", 2)
    cache = tmp_path / "deep" / "engines.json"

    def choose(network=network, settings=SETTINGS):
        built.clear()
        lines = []
        auto_engine(network, settings, among=["openvino", "torch-folded"], cache=cache, tell=lines.append)
        return len(built), lines[-1]

    monkeypatch.setattr(auto, "measure", lambda *a, m=auto.measure, **k: m(*a, **k, clock=lambda: clock[0]))
    assert choose()[0] == 2
    count, line = choose()
    assert count == 1, "only the winner is built"
    assert "as measured before: images a second" in line
    trained = tiny(seed=5).eval()  # other weights take the same time
    engines.update({name: Slow(name, 0.1, clock, trained) for name in engines})
    assert choose(trained)[0] == 1
    assert choose(trained, Settings(size=(64, 64), batch_size=4))[0] == 2
    assert choose(trained, Settings(size=(64, 64), batch_size=2, threads=7))[0] == 2
    monkeypatch.setattr(auto, "versions", lambda packages: {"torch": "0"})
    assert choose(trained)[0] == 2
    assert len(json.loads(cache.read_text())) == 4


def test_a_remembered_engine_that_is_wrong_by_now_is_not_used(network, tmp_path, monkeypatch):
    clock = [0.0]
    engines = {
        name: Slow(name, seconds, clock, network) for name, seconds in (("openvino", 0.1), ("torch-folded", 0.2))
    }
    built = stub(monkeypatch, engines, clock)
    monkeypatch.setattr(auto, "measure", lambda *a, m=auto.measure, **k: m(*a, **k, clock=lambda: clock[0]))
    options = {"among": list(engines), "cache": tmp_path / "engines.json"}
    assert auto_engine(network, SETTINGS, **options).name == "openvino"
    engines["openvino"].wrong = 0.5
    lines = []
    assert auto_engine(network, SETTINGS, **options, tell=lines.append).name == "torch-folded"
    assert any("openvino, the fastest when measured before, is out" in line for line in lines)
    engines["torch-folded"] = RuntimeError("gone")
    with pytest.raises(EngineError, match="gone"):
        auto_engine(network, SETTINGS, **options)
    assert built
    with pytest.raises(EngineError, match="among is empty"):
        auto_engine(network, SETTINGS, among=[])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"KEY": {"engine": "gone"}}', '{"KEY": 3}'])
def test_a_damaged_memory_is_measured_anew(content, network, tmp_path, monkeypatch):
    clock = [0.0]
    engines = {"openvino": Slow("openvino", 0.1, clock, network)}
    built = stub(monkeypatch, engines, clock)
    monkeypatch.setattr(auto, "measure", lambda *a, m=auto.measure, **k: m(*a, **k, clock=lambda: clock[0]))
    monkeypatch.setattr(auto, "_key", lambda *_: "KEY")
    cache = tmp_path / "engines.json"
    cache.write_text(content)
    engine = auto_engine(network, SETTINGS, among=["openvino"], cache=cache)
    assert engine.name == "openvino"
    assert built == ["openvino"]
    assert json.loads(cache.read_text())["KEY"]["engine"] == "openvino"


def test_a_memory_that_cannot_be_written_is_a_warning(network, tmp_path, monkeypatch):
    clock = [0.0]
    stub(monkeypatch, {"openvino": Slow("openvino", 0.1, clock, network)}, clock)
    monkeypatch.setattr(auto, "measure", lambda *a, m=auto.measure, **k: m(*a, **k, clock=lambda: clock[0]))
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="not remembered"):
        assert auto_engine(network, SETTINGS, among=["openvino"], cache=tmp_path / "file" / "engines.json")


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr(auto.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert auto.default_cache() == tmp_path / "openfastervit" / "engines.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert auto.default_cache() == tmp_path / "home" / ".cache" / "openfastervit" / "engines.json"


def test_measured_for_real(network, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "REPEATS", 1)
    monkeypatch.setattr(auto, "SECONDS", 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        engine = auto_engine(network, SETTINGS, among=["torch-folded", "onnxruntime"], cache=tmp_path / "engines.json")
    assert engine.name in ("torch-folded", "onnxruntime")
    x = images(64, 64, batch=3)
    with torch.no_grad():
        assert difference(engine(x), network(x)) < 1e-5
