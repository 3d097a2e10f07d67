"""What becomes of requests when a worker dies, when the server is told to end, and when it cannot start."""

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import torch

import openfastervit_cli
from tests.pocket import picture, write_checkpoint
from tests.serving.http.running import PATIENCE_S, Running, running, until


def png() -> bytes:
    file = io.BytesIO()
    picture(0).save(file, "PNG")
    return file.getvalue()


PNG = png()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pocket.safetensors")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    with running(checkpoint, "--engine", "torch-folded", "--timeout-s", 20) as server:
        yield server


def test_a_killed_worker_costs_no_more_than_its_requests(server: Running) -> None:
    """Under load: whoever asks gets an answer, none waits to no end, and soon it is as it was."""
    before = server.http.post("/predict", content=PNG).json()
    worker = server.workers()[0]
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            while not ended.is_set():
                answer = client.post("/predict", content=PNG)
                statuses.append(answer.status_code)
                assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
                if answer.status_code != 200:
                    time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        until(lambda: statuses.count(200) > 20)
        worker.kill()
        until(lambda: 503 in statuses)
        until(lambda: server.http.get("/health").status_code == 200)
        done = statuses.count(200)
        until(lambda: statuses.count(200) > done + 20)
        ended.set()
        for future in asking:
            future.result()
    assert set(statuses) == {200, 503}
    assert worker not in server.workers()
    assert server.http.post("/predict", content=PNG).json() == before
    assert server.metric("fastervit_worker_restarts_total") == 1
    assert server.metric("fastervit_queue_length") == server.metric("fastervit_in_flight") == 0


def test_workers_are_started_again_until_all_are_there(server: Running) -> None:
    """Also where none is left, not even one that stands by."""
    until(lambda: len(server.workers()) == 2)
    for worker in server.workers():
        worker.kill()
    health = until(lambda: (answer := server.http.get("/health")).status_code == 503 and answer)
    assert health.json() == {"status": "recovering"}
    answer = server.http.post("/predict", content=PNG)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    until(lambda: server.http.get("/health").status_code == 200)
    assert server.http.post("/predict", content=PNG).status_code == 200


def test_those_of_a_dead_worker_are_answered_at_once(server: Running) -> None:
    """All that wait when it dies, begun or not: with 503, well before their time is over."""
    with ThreadPoolExecutor(5) as pool:
        with server.stopped() as workers:
            waiting = [pool.submit(server.http.post, "/predict", content=PNG) for _ in range(5)]
            until(lambda: server.metric("fastervit_queue_length") == 5)
            for worker in workers:
                worker.kill()
            answers = [future.result() for future in waiting]
        assert [answer.status_code for answer in answers] == [503] * 5
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    until(lambda: server.http.get("/health").status_code == 200)


def test_what_is_in_flight_is_answered_before_the_end(server: Running) -> None:
    """The last test of this server."""
    children = [child.pid for child in psutil.Process(server.process.pid).children(recursive=True)]
    # Told to end as terminals and service managers do it: everyone gets the signal.
    with ThreadPoolExecutor(3) as pool:
        with server.stopped():
            waiting = [pool.submit(server.http.post, "/predict", content=PNG) for _ in range(3)]
            until(lambda: server.metric("fastervit_queue_length") == 3)
            for pid in [*children, server.process.pid]:
                os.kill(pid, signal.SIGTERM)
            health = until(lambda: (answer := server.http.get("/health")).status_code == 503 and answer)
            assert health.json() == {"status": "draining"}
            late = server.http.post("/predict", content=PNG)
            assert late.status_code == 503
            assert "retry-after" in late.headers
            assert server.process.poll() is None
        assert [future.result().status_code for future in waiting] == [200] * 3
    assert server.process.wait(PATIENCE_S) == 0
    until(lambda: not any(psutil.pid_exists(child) for child in children))
    assert "Traceback" not in server.err


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Start a server that must not start, and return its last line, which says why."""

    def run(*words: object) -> str:
        assert openfastervit_cli.main(["serve", "--port", "0", *map(str, words)]) == 1
        *lines, last = capsys.readouterr().err.splitlines()
        assert last.startswith("fastervit: error: ")
        assert all(line.startswith("fastervit: listening") for line in lines)
        return last

    return run


def test_a_checkpoint_that_runs_commands_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    evil = tmp_path / "evil.pth"
    torch.save({"state_dict": {"x": _Evil(f"touch {trace}")}}, evil)
    assert "evil.pth" in refused("--checkpoint", evil)
    assert not trace.exists()
    torch.load(evil, weights_only=False)
    assert trace.exists()  # it would have


def test_what_is_wrong_is_named_before_it_starts(refused: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("too-short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, says in (
            (("--checkpoint", tmp_path / "none.safetensors"), "none.safetensors"),
            (("--checkpoint", checkpoint, "--api-keys", keys), "line 1: a key of 9 characters"),
            (("--checkpoint", checkpoint, "--api-keys", tmp_path / "no-keys"), "no-keys"),
            (("--checkpoint", checkpoint, "--workers", 0), "--workers 0"),
            (("--checkpoint", checkpoint, "--engine", "openvin"), "--engine openvin"),
            (("--checkpoint", checkpoint, "--port", taken.getsockname()[1]), "in use"),
        ):
            assert says in refused(*words)
