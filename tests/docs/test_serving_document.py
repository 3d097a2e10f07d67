"""What docs/serving.md says, typed by a reader: servers in one window, questions in another."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.reader import commands
from tests.pocket import picture, write_checkpoint
from tests.serving.http.running import running

DOCUMENT = REPOSITORY / "docs" / "serving.md"


def test_the_commands_do_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "0.jpg")
    seen = commands(DOCUMENT)
    text = "\n".join(seen).replace("|\n", "| ")
    first, second = (command for command in seen if command.startswith("fastervit serve "))
    before, after = text.split(second)
    answers: list[str] = []
    for command, said in ((first, before.replace(first, "")), (second, after)):
        words = shlex.split(command)[2:]
        port = words[words.index("--port") + 1] if "--port" in words else "8000"
        assert words[:2] == ["--checkpoint", "model.safetensors"]
        with running(tmp_path / "model.safetensors", *words[2:], "--engine", "torch-folded", "--port", 0) as server:
            for line in said.strip().splitlines():
                typed = line.replace(f"http://127.0.0.1:{port}", server.url)
                done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=False, timeout=60)
                assert done.returncode == 0, f"{typed}\n{done.stderr}"
                answers.append(done.stdout)
    body, form, text_, description, health, metrics, key, bearer, header = answers
    assert key == ""
    assert [len(json.loads(answer)["predictions"]) for answer in (body, form, text_, bearer, header)] == [3, 2, 1, 3, 3]
    assert "/predict" in json.loads(description)["paths"]
    assert json.loads(health) == {"status": "ok"}
    assert "fastervit_batch_size_count" in metrics
