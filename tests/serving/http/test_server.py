"""A classifier behind the real server: what it takes, what it answers, what it refuses.

Where a batch has to take long, the worker is held up from outside.
"""

import base64
import contextlib
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from PIL import Image

import openfastervit_cli
from tests.pocket import CLASSES, picture, write_checkpoint
from tests.serving.http.running import PATIENCE_S, Running, running, until

KEY = "a-key-for-this-test-0123456789"
TIMEOUT_S = 6
MAX_QUEUE = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "pocket.safetensors")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    keys = checkpoint.with_name("keys")
    keys.write_text(f"# of this test\n{KEY}\nanother-key-of-this-test\n")
    engine = ("--engine", "torch-folded", "--standby", 0)
    limits = ("--max-body-mb", 0.5, "--max-pixels", 400_000, "--receive-s", 1.5, "--max-queue", MAX_QUEUE)
    batches = ("--max-batch", 4, "--batch-wait-ms", 30, "--timeout-s", TIMEOUT_S)
    with running(checkpoint, *engine, "--api-keys", keys, *limits, *batches, "--drain-s", 0.5) as server:
        server.http.headers["X-API-Key"] = KEY
        yield server


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def post(server: Running, data: bytes, kind: str = "image/png", **options: Any) -> httpx.Response:
    return server.http.post("/predict", content=data, headers={"Content-Type": kind}, **options)


def predicted(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """What ``fastervit predict`` says of the images of a folder, by name."""
    capsys.readouterr()
    asked = ["predict", str(folder), "--checkpoint", str(checkpoint), "--format", "jsonl", *words]
    assert openfastervit_cli.main(asked) == 0
    return [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [(row["class"], row["index"]) for row in found] == [(row["class"], row["index"]) for row in expected]
    # What shares a batch changes the last digits.
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


# --- What it answers --------------------------------------------------------------------------------------------------


def test_answers_are_those_of_predict_in_every_form(
    server: Running, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "1.jpg": encoded(picture(1), "JPEG"),
        "2.png": encoded(picture(2)),
        "3.webp": encoded(picture(3), "WEBP"),
        "4.jpg": encoded(picture(4), "JPEG", exif=exif),
        "5.png": encoded(picture(5).convert("RGBA")),
        "6.png": encoded(picture(6).convert("P")),
        "7.jpg": encoded(picture(7).convert("CMYK"), "JPEG"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    expected = predicted(checkpoint, tmp_path, capsys)
    for (name, data), rows in zip(files.items(), expected, strict=True):
        for answer in (
            post(server, data),  # the content counts, not what it is called
            post(server, data, "application/octet-stream"),
            server.http.post("/predict", content=data),  # no type at all
            server.http.post("/predict", files={"image": (name, data, "text/plain")}),
            server.http.post("/predict", json={"image": base64.b64encode(data).decode()}),
        ):
            assert answer.status_code == 200, answer.text
            assert answer.json()["task"] == "classification"
            same(answer.json()["predictions"], rows)


def test_as_many_classes_as_are_asked_for(server: Running) -> None:
    data = encoded(picture(1))
    text = base64.b64encode(data).decode()
    assert len(post(server, data).json()["predictions"]) == len(CLASSES)
    assert len(post(server, data, params={"topk": 2}).json()["predictions"]) == 2
    assert len(post(server, data, params={"topk": 10**30}).json()["predictions"]) == 3
    answer = server.http.post("/predict?topk=3", json={"image": text, "topk": 1, "score_threshold": 0.5})
    assert len(answer.json()["predictions"]) == 1


def test_requests_at_once_share_batches_and_keep_to_themselves(
    server: Running, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged image in between fails alone; so do those that ask for something else."""
    for seed in range(5):
        (tmp_path / f"{seed}.png").write_bytes(encoded(picture(seed)))
    expected = predicted(checkpoint, tmp_path, capsys)
    batches = server.metric("fastervit_batch_size_count")
    images = server.metric("fastervit_batch_size_sum")
    with ThreadPoolExecutor(6) as pool, server.stopped():
        asked = [pool.submit(post, server, encoded(picture(seed)), params={"topk": 1 + seed % 3}) for seed in range(5)]
        broken = pool.submit(post, server, encoded(picture(9))[:500])
        until(lambda: server.metric("fastervit_queue_length") == 5)
        assert broken.result().status_code == 422
    answers = [future.result() for future in asked]  # the worker is at work again
    for seed, (answer, rows) in enumerate(zip(answers, expected, strict=True)):
        assert answer.status_code == 200, answer.text
        same(answer.json()["predictions"], rows[: 1 + seed % 3])
    assert server.metric("fastervit_batch_size_sum") - images == 5
    assert server.metric("fastervit_batch_size_count") - batches < 5


# --- What it refuses --------------------------------------------------------------------------------------------------

GIF = encoded(picture(0), "GIF")
PNG = encoded(picture(0))


@pytest.mark.parametrize(
    ("status", "says", "ask"),
    [
        (415, "no JPEG", {"content": GIF}),
        (415, "no JPEG", {"content": b"<html><img src=x></html>"}),
        (415, "no JPEG", {"files": {"image": GIF}}),
        (415, "content type", {"content": PNG, "headers": {"Content-Type": "text/html"}}),
        (415, "content type", {"data": {"image": "x"}}),
        (422, "damaged", {"content": PNG[:-300]}),
        (422, "empty", {"content": b""}),
        (422, "field named image", {"files": {"picture": PNG}}),
        (422, "field named image", {"files": {"x": b""}, "data": {"image": "text"}}),
        (400, "boundary", {"content": PNG, "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "Too many files", {"files": [("image", PNG), ("image", PNG)]}),
        (400, "not valid JSON", {"content": b'{"image": ', "headers": {"Content-Type": "application/json"}}),
        (400, "not valid JSON", {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
        (422, "", {"json": [1, 2]}),
        (422, "image", {"json": {}}),
        (422, "not base64", {"json": {"image": "not/base64!"}}),
        (422, "image", {"json": {"image": 5}}),
        (422, "extra", {"json": {"image": "aGVsbG8=", "extra": 1}}),
        (415, "no JPEG", {"json": {"image": "aGVsbG8="}}),
        (422, "topk", {"json": {"image": "aGVsbG8=", "topk": 0}}),
        (422, "topk", {"content": PNG, "params": {"topk": "x"}}),
        (422, "score_threshold", {"content": PNG, "params": {"score_threshold": "nan"}}),
        (422, "masks", {"content": PNG, "params": {"masks": "all"}}),
        (422, "thin a strip", {"content": encoded(Image.new("RGB", (400_000, 1)))}),
        (413, "more than 400000 pixels", {"content": encoded(Image.new("L", (1000, 1000)))}),
        (413, "more than 524288 bytes", {"content": bytes(600_000)}),
        (413, "more than 524288 bytes", {"content": (bytes(1000) for _ in range(600))}),
    ],
)
def test_what_it_cannot_answer_it_refuses_in_one_form(
    server: Running, status: int, says: str, ask: dict[str, Any]
) -> None:
    answer = server.http.post("/predict", **ask)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert says in answer.json()["detail"]
    assert "openfastervit" not in answer.text
    assert "Traceback" not in answer.text
    assert post(server, PNG).status_code == 200


def test_there_is_nothing_else(server: Running) -> None:
    for path in (
        "/",
        "/info",
        "/shutdown",
        "/redoc",
        "/mcp",
        "/predict/",
        "/docs/oauth2-redirect",
        "/%2e%2e/etc/passwd",
    ):
        for method in ("GET", "POST"):
            assert server.http.request(method, path).status_code == 404, path
    answer = server.http.get("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "server" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": ""},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer another-key-of-this-tesT"},
    ],
)
def test_without_a_key_there_is_only_health(server: Running, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as stranger:
        for method, path in (("POST", "/predict"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json")):
            answer = stranger.request(method, path, content=PNG if method == "POST" else None)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert stranger.post("/predict", content=bytes(3_000_000)).status_code == 401
        assert stranger.get("/anything").status_code == 401
        assert stranger.get("/health").json() == {"status": "ok"}


def test_both_headers_bring_a_key_and_none_is_told(server: Running) -> None:
    for headers in ({"X-API-Key": KEY}, {"Authorization": "Bearer another-key-of-this-test"}):
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as friend:
            assert friend.post("/predict", content=PNG).status_code == 200
            assert friend.get("/openapi.json").status_code == 200
    assert KEY not in server.err
    assert KEY not in server.http.get("/metrics").text


# --- What it says of itself -------------------------------------------------------------------------------------------


def test_the_description_holds(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/health", "/metrics"}
    predict = described["paths"]["/predict"]["post"]
    assert {"image/jpeg", "image/png", "image/webp", "multipart/form-data", "application/json"} <= set(
        predict["requestBody"]["content"]
    )
    assert {"topk", "score_threshold", "masks", "format"} == {row["name"] for row in predict["parameters"]}
    assert set(predict["responses"]) == {
        *("200", "400", "401", "408", "413", "415", "422", "500", "503", "504"),
    }
    assert len(predict["security"]) == 2
    for answer in (post(server, PNG), post(server, GIF), post(server, PNG, params={"topk": 0})):
        schema = predict["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": described["components"]})
    assert "swagger" in server.http.get("/docs").text.lower()


def test_metrics_count(server: Running) -> None:
    name = 'fastervit_requests_total{path="/predict",status="415"}'
    before = server.metric(name)
    post(server, GIF)
    assert server.metric(name) == before + 1
    assert server.metric("fastervit_workers_ready") == 1
    assert server.metric('fastervit_request_seconds_count{path="/predict"}') > 0
    server.http.get("/some-path-that-nobody-knows")
    assert "nobody-knows" not in server.http.get("/metrics").text


# --- Those who are slow, and those who leave --------------------------------------------------------------------------


@contextlib.contextmanager
def connection(server: Running) -> Iterator[socket.socket]:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connected:
        yield connected


def head(length: int) -> bytes:
    return f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n".encode()


def gone(server: Running) -> Callable[[], float]:
    return lambda: server.metric('fastervit_requests_total{path="/predict",status="499"}')


def test_a_body_that_drips_is_refused(server: Running) -> None:
    with connection(server) as slow:
        slow.sendall(head(1000))
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(0.1):
                    slow.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = slow.recv(4096)
        finally:
            ended.set()
            dripping.join()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer


def test_an_upload_that_breaks_off_is_forgotten(server: Running) -> None:
    before = gone(server)()
    with connection(server) as leaving:
        leaving.sendall(head(len(PNG)) + PNG[: len(PNG) // 2])
    until(lambda: gone(server)() == before + 1)
    assert post(server, PNG).status_code == 200
    assert "Traceback" not in server.err


def test_who_leaves_before_the_batch_begins_is_not_worked_for(server: Running) -> None:
    before, images = gone(server)(), server.metric("fastervit_batch_size_sum")
    with server.stopped():
        with connection(server) as leaving:
            leaving.sendall(head(len(PNG)) + PNG)
            until(lambda: server.metric("fastervit_queue_length") == 1)
        until(lambda: gone(server)() == before + 1)
        assert server.metric("fastervit_queue_length") == 0
    assert post(server, PNG).status_code == 200  # after it in the queue
    assert server.metric("fastervit_batch_size_sum") == images + 1


def test_too_many_are_sent_away_and_the_others_are_answered(server: Running) -> None:
    with ThreadPoolExecutor(MAX_QUEUE) as pool:
        with server.stopped():
            waiting = [pool.submit(post, server, PNG) for _ in range(MAX_QUEUE)]
            until(lambda: server.metric("fastervit_queue_length") == MAX_QUEUE)
            answer = post(server, PNG)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert server.http.get("/health").status_code == 200
        assert [future.result().status_code for future in waiting] == [200] * MAX_QUEUE


def test_an_answer_that_does_not_come_in_time_is_not_waited_for(server: Running) -> None:
    with server.stopped():
        started = time.monotonic()
        answer = post(server, PNG)
        assert time.monotonic() - started >= TIMEOUT_S
        assert answer.status_code == 504
        assert f"{TIMEOUT_S} seconds" in answer.json()["detail"]
    assert post(server, PNG).status_code == 200


def test_what_is_not_answered_in_time_at_the_end_is_given_up(server: Running) -> None:
    """The last test of this server."""
    with ThreadPoolExecutor(1) as pool, server.stopped():
        waiting = pool.submit(post, server, PNG)
        until(lambda: server.metric("fastervit_queue_length") == 1)
        server.process.send_signal(signal.SIGINT)
        assert waiting.result().status_code == 503
        assert server.process.wait(PATIENCE_S) == 0
    assert "1 requests were not answered" in server.err
    assert "Traceback" not in server.err
