"""``fastervit app``: what it refuses before it listens, and how it ends."""

import signal
import socket
from pathlib import Path
from urllib.request import urlopen

from openfastervit.serving.page.server import is_loopback
from tests.serving.page.conftest import serving


def test_what_is_wrong_is_named(fails, checkpoint: Path, detector: Path, tmp_path: Path) -> None:
    ours = ("app", "--checkpoint", checkpoint, "--engine", "torch-eager", "--device", "cpu")
    fails("app", "--checkpoint", tmp_path / "none", says=["none: No such file"])
    fails(*ours, "--compare", tmp_path / "other", says=["other: No such file"])
    fails(*ours, "--compare-engine", "torch-fast", says=["torch-fast"])
    fails(*ours, "--benchmark", tmp_path, says=["no results.csv at"])
    fails(*ours, "--max-pixels", 0, says=["--max-pixels 0 must be at least 1"])
    fails(*ours, "--max-body-mb", -1, says=["--max-body-mb -1"])
    fails("app", "--checkpoint", detector, "--engine", "openvino", says=["detection", "engine='openvino'"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(*ours, "--port", port, says=[f"--port {port} cannot be listened on", "choose others"])
    fails(*ours, "--port", 70_000, says=["--port 70000 must be from 0 to 65535"])
    fails(*ours, "--host", "nowhere.invalid", says=["--host nowhere.invalid"])


def test_a_missing_library_is_named(fails, checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr("openfastervit.serving.page.server.installed", lambda name: name != "gradio")
    fails("app", "--checkpoint", checkpoint, says=["the page needs gradio", "pip install 'openfastervit[app]'"])


def test_ctrl_c_ends_it(checkpoint: Path) -> None:
    with serving("--checkpoint", checkpoint, "--engine", "torch-eager", "--device", "cpu") as server:
        with urlopen(server.url, timeout=60) as page:
            assert page.status == 200
        with urlopen(f"{server.url}config", timeout=60) as config:
            assert "No benchmark was given" in config.read().decode()
        assert server.end(signal.SIGINT) == 130
    assert server.lines[-1] == "fastervit: interrupted\n"
    assert "Traceback" not in "".join(server.lines)


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.com", "", "12.7.0.1")))
