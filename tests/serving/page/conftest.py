"""The page as a user starts it: a process of its own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import checkpoint, fails, fastervit
from tests.cli.test_export_dense import detector, upernet
from tests.demo.test_browser import browser
from tests.pocket import picture

__all__ = ["browser", "checkpoint", "detector", "fails", "fastervit", "upernet"]


class Server:
    """``fastervit app`` at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        """What it said on stderr."""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(240), "the page is not there after four minutes"
        told = re.search(r"http://127\.0\.0\.1:\d+/", "".join(self.lines))
        assert told, "".join(self.lines)
        self.url = told[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "the page is at" in line:
                self._ready.set()
        self._ready.set()

    def end(self, number: int) -> int:
        """Send it a signal; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def serving(*args: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "openfastervit_cli", "app", "--port", "0", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the size that the pocket networks take, so that little is lost in scaling it."""
    path = tmp_path_factory.mktemp("photographs") / "photograph.jpg"
    picture(3, (128, 96)).save(path, quality=95)
    return path
