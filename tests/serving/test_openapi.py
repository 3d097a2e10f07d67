"""Schemathesis against the OpenAPI page of a real server: what it allows, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pocket import write_checkpoint
from tests.serving.http.running import running


@pytest.mark.timeout(290)
def test_answers_are_those_that_the_page_describes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors")
    with running(tmp_path / "model.safetensors", "--engine", "torch-folded", "--standby", "0") as server:
        command = [
            *(Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json"),
            *("--exclude-checks", "positive_data_acceptance"),  # random bytes are no image
            *("--seed", "1", "--max-examples", "10", "--no-color"),
        ]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, cwd=tmp_path, timeout=240
        )
        assert server.process.poll() is None
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
