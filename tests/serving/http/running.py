"""A server in a process of its own, as people start it, and tiny networks for it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from openfastervit.models.checkpoints import write_safetensors
from tests.inference.lively_dense import (
    BACKBONE,
    CATEGORY_IDS,
    CLASSES,
    COLOURS,
    RCNN_OPTIONS,
    SEGMENTER_OPTIONS,
    rcnn,
    segmenter,
)

PATIENCE_S = 120.0
"""For what takes seconds, on a machine that has much else to do."""


class Running:
    """A server that runs."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, lines: list[str]) -> None:
        self.process, self.url, self.lines = process, url, lines
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    @property
    def err(self) -> str:
        """What it said on stderr until now."""
        return "".join(self.lines)

    def workers(self) -> list[psutil.Process]:
        """The processes that have the model, the oldest first: of those that the server began with, it takes images,
        and the others stand by. The server's other children are started in other ways.
        """
        children = psutil.Process(self.process.pid).children()
        found = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
        return sorted(found, key=lambda child: child.create_time())

    @contextlib.contextmanager
    def stopped(self) -> Iterator[list[psutil.Process]]:
        """The workers do nothing for a while, as one that has a long batch."""
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        try:
            yield workers
        finally:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.resume()

    def metric(self, name: str, **headers: str) -> float:
        """A figure of /metrics, with its labels if it has some."""
        text = self.http.get("/metrics", headers=headers).text
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


def until(holds: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What ``holds`` gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def running(checkpoint: Path, *words: object) -> Iterator[Running]:
    """``fastervit serve`` on a free port of its choice."""
    command = [sys.executable, "-m", "openfastervit_cli", "serve", "--checkpoint", checkpoint, "--port", "0", *words]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    lines: list[str] = []
    with subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        stream = process.stderr
        reader = threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True)
        reader.start()
        try:

            def said(what: str) -> str | None:
                assert process.poll() is None, "".join(lines)
                return next((line for line in lines if what in line), None)

            url = until(lambda: said("listening on ")).split("listening on ")[1].strip()
            server = Running(process, url, lines)
            until(lambda: said("ready: "))
            yield server
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join()


def write_detector(path: Path) -> Path:
    """A detector with masks whose boxes and classes are spread."""
    sizes = {"min_size": 96, "max_size": 128}
    told = {"head": "cascade-mask-rcnn", "head_options": RCNN_OPTIONS, "category_ids": list(CATEGORY_IDS)}
    write_safetensors(rcnn().state_dict(), path, json.dumps(_metadata("detection", list(CLASSES), sizes) | told))
    return path


def write_segmenter(path: Path) -> Path:
    """A segmenter of 4 classes."""
    sizes = {"crop_size": [64, 64], "eval_size": None}
    told = {"head": "upernet", "head_options": SEGMENTER_OPTIONS["upernet"]}
    metadata = _metadata("segmentation", ["ground", *CLASSES], sizes) | told
    write_safetensors(segmenter("upernet").state_dict(), path, json.dumps(metadata))
    return path


def _metadata(task: str, classes: list[str], sizes: dict[str, Any]) -> dict[str, Any]:
    backbone = {name: list(value) if isinstance(value, tuple) else value for name, value in BACKBONE.items()}
    return {
        "task": task,
        "model": "fastervit_0",
        "overrides": backbone,
        "windows": "pad",
        "built_size": [64, 64],
        "classes": classes,
        "input": {**COLOURS, **sizes},
    }
