"""What docs/web-page.md says, typed by a reader."""

import json
import shlex
import shutil
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from openfastervit.benchmarking.cases import to_csv
from tests.benchmarking.test_page import SETTINGS, some_rows
from tests.conftest import REPOSITORY
from tests.docs.reader import commands
from tests.pocket import pocket, write_checkpoint
from tests.serving.page.conftest import serving

DOCUMENT = REPOSITORY / "docs" / "web-page.md"


@pytest.mark.early
def test_the_commands_do_what_is_said(tmp_path: Path, detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one: pages differ by their options alone, and one takes long to start."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("model.safetensors"))
    write_checkpoint(Path("other.safetensors"), pocket(seed=5))
    shutil.copytree(detector, "detector")
    seen = [shlex.split(command) for command in commands(DOCUMENT)]
    apps = [words[2:] for words in seen if words[:2] == ["fastervit", "app"]]
    (benchmark,) = [words for words in seen if words[:2] == ["fastervit", "benchmark"]]
    assert len(apps) == len(seen) - 1 == 4
    assert benchmark in [shlex.split(command) for command in commands(REPOSITORY / "README.md")], "it is run there"
    results = Path(benchmark[-1])
    results.mkdir(parents=True)
    (results / "results.csv").write_text(to_csv(some_rows()), encoding="utf-8")
    (results / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    options = ["--checkpoint", "model.safetensors"]
    for words in apps:
        assert words[:2] == options
    with serving(*options, *(word for words in apps for word in words[2:]), "--device", "cpu") as server:
        with urlopen(f"{server.url}config", timeout=60) as answer:
            config = answer.read().decode()
        for name in ("torch-eager", "openvino", "other.safetensors", "detector"):
            assert name in config
        with urlopen(f"{server.url}benchmark", timeout=60) as answer:
            assert "convnext_tiny" in answer.read().decode()
        assert server.end(signal.SIGTERM) == 0


def test_figures_are_the_defaults() -> None:
    import inspect

    from openfastervit.serving.page.upload import KEPT, WAITING
    from openfastervit_cli.app import app

    defaults = {name: option.default for name, option in inspect.signature(app).parameters.items()}
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"http://{defaults['host']}:{defaults['port']}/" in text
    assert f"`--max-pixels` ({defaults['max_pixels'] // 10**6} million)" in text
    assert f"`--max-body-mb` ({defaults['max_body_mb']})" in text
    assert f"up to {WAITING} wait" in text
    assert KEPT == 3600
