"""Signals still have a stack when OpenVINO has come and gone; and its threads may go where there is room."""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13

from openfastervit.inference.engines.engine import Settings
from openfastervit.inference.engines.openvino import build
from openfastervit.inference.exported import About, _open_openvino
from openfastervit.inference.graphs import to_openvino
from openfastervit.inference.openvino_core import kept_signal_stack, openvino_core
from tests.networks import tiny

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' plugins leave it alone")


def signal_stack() -> tuple[int, int]:
    """Address and size, as the kernel tells them: ``stack_t`` is three words, the second of them flags."""
    words = (ctypes.c_size_t * 3)()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(words)) == 0
    return words[0], words[2]


@pytest.fixture
def handled() -> list[int]:
    """A handler of the signal that a child has ended, which Python runs on that stack; those that it was called for."""
    seen: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGCHLD, before)


def double() -> openvino.Model:
    x = opset13.parameter([2], np.float32)
    return openvino.Model([opset13.multiply(x, np.float32(2))], [x])


def test_a_core_leaves_the_stack(handled: list[int]) -> None:
    before = signal_stack()
    cores = [openvino_core.__wrapped__() for _ in range(2)]
    compiled = [core.compile_model(double(), "CPU") for core in cores]
    assert signal_stack() == before
    assert [one(np.float32([1, 3]))[0].tolist() for one in compiled] == [[2, 6]] * 2
    del compiled
    while cores:  # the first one goes first
        del cores[0]
        gc.collect()
        assert signal_stack() == before
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert handled


def test_there_is_one_core() -> None:
    assert openvino_core() is openvino_core()


def test_what_others_load_leaves_the_stack() -> None:
    before = signal_stack()
    with kept_signal_stack():
        models = [openvino.compile_model(double(), "CPU") for _ in range(2)]
    assert signal_stack() == before
    while models:
        del models[0]
        gc.collect()
        assert signal_stack() == before


def test_it_is_kept_where_something_fails() -> None:
    before = signal_stack()
    with pytest.raises(RuntimeError, match="nowhere"), kept_signal_stack():
        openvino.Core().compile_model(double(), "nowhere")
    assert signal_stack() == before


def places_while(work: Callable[[], object], seconds: float) -> set[frozenset[int]]:
    """Processors that threads of this process may use, looked at again and again while something works."""
    until = time.monotonic() + seconds
    seen: set[frozenset[int]] = set()
    with ThreadPoolExecutor(1) as thread:
        while time.monotonic() < until:
            working = thread.submit(work)
            while not working.done():
                for task in Path("/proc/self/task").iterdir():
                    with contextlib.suppress(OSError):  # it has ended
                        seen.add(frozenset(os.sched_getaffinity(int(task.name))))
            working.result()
    return seen


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor leaves no choice")
@pytest.mark.parametrize("exported", [False, True])
def test_fewer_threads_than_processors_may_move(exported: bool, tmp_path: Path) -> None:
    """Else those of two processes would be bound to the same processor: each had half of it, and the other was idle."""
    network = tiny("fastervit_0").eval()
    images = torch.zeros(8, 3, 64, 64)
    if exported:
        openvino.save_model(to_openvino(network, (64, 64)), tmp_path / "network.xml")
        about = About("openvino", "fp32", ("a",), {"input_size": (3, 64, 64)}, (64, 64), preprocessing=False)
        engine = _open_openvino(tmp_path / "network.xml", about, "cpu", 1)
    else:
        engine = build(network, Settings(size=(64, 64), batch_size=8, threads=1))
    engine(images)
    assert places_while(lambda: engine(images), 2) == {frozenset(os.sched_getaffinity(0))}
