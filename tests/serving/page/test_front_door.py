"""What of the server can be reached: told from plain HTTP to a stub behind the door."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from openfastervit.serving.page.front_door import LOOPBACK, FrontDoor

UPLOADS = "/nowhere/uploads"


async def _length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.path} {len(await request.body())}")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()


def _behind(hosts: frozenset[str] | None) -> TestClient:
    routes = [Route("/{path:path}", _length, methods=["GET", "POST"]), WebSocketRoute("/gradio_api/info", _socket)]
    app = Starlette(routes=routes)
    app.add_middleware(FrontDoor, max_body=1000, hosts=hosts, uploads=UPLOADS)
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.fixture
def client() -> Iterator[TestClient]:
    with _behind(LOOPBACK) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/benchmark", "/config", "/assets/index-A_b.js", "/gradio_api/file=/a b/c.png", "/gradio_api/upload"]
)
def test_what_the_page_needs_is_open(client: TestClient, path: str):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=https://example.com/x.png", "/gradio_api/file=file:///etc/passwd", "/gradio_api/file=x"),
        *("/gradio_api/proxy=https://example.com", "/gradio_api/component_server", "/gradio_api/vibe-edit/"),
        *("/gradio_api/run/predict", "/gradio_api/call/look", "/monitoring", "/runs", "/docs", "/openapi.json"),
        *("/gradio_api/custom_component/x", "/gradio_api/process_recording", "/assetsx", "//assets/x", "/login"),
    ],
)
def test_all_else_is_not(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_hosts(client: TestClient):
    for host in ("localhost:7860", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert client.get("/", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "[::1", ""):
        assert client.get("/", headers={"host": host}).status_code == 421, host
    with _behind(None) as anywhere:
        assert anywhere.get("/", headers={"host": "evil.example"}).status_code == 200


def test_bodies(client: TestClient):
    def parts(size: int) -> Iterator[bytes]:
        for start in range(0, size, 100):
            yield bytes(min(100, size - start))

    assert client.post("/gradio_api/upload", content=bytes(1000)).text == "/gradio_api/upload 1000"
    assert client.post("/gradio_api/upload", content=bytes(1001)).status_code == 413
    assert client.post("/gradio_api/upload", content=parts(1000)).text == "/gradio_api/upload 1000"
    assert client.post("/gradio_api/upload", content=parts(1001)).status_code == 413, "it does not tell its length"
    for length in ("-1", "1e3", "x"):
        assert client.post("/gradio_api/upload", headers={"content-length": length}).status_code == 400, length


def _told(path: object) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ({"data": [_told("/nowhere/uploads/1/x.png"), "b", 0.5, True]}, 200),
        ({"data": [None, "path", {"x": [1]}]}, 200),
        ({"data": [_told("/nowhere/else.png")]}, 400),
        ({"data": [_told("/nowhere/uploads/../else.png")]}, 400),
        ({"data": [_told("https://example.com/x.png")]}, 400),
        ({"data": ["a", {"deeper": [[_told("http://127.0.0.1/x")]]}]}, 400),
        ({"data": [_told(["/nowhere/uploads/x"])]}, 400),
        ("[" * 900, 400),
        ("not json", 400),
        (" " * 1001, 413),
    ],
)
def test_calls_name_uploads_alone(client: TestClient, call: Any, status: int):
    body = call if isinstance(call, str) else json.dumps(call)
    answer = client.post("/gradio_api/queue/join", content=body)
    assert answer.status_code == status
    if status == 200:
        assert answer.text == f"/gradio_api/queue/join {len(body)}", "it is passed on whole"
    assert client.post("/gradio_api/queue/join", content=iter([body.encode()])).status_code == status


def test_headers_keep_a_browser_at_home(client: TestClient):
    for path in ("/", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_no_websockets(client: TestClient):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/info"):
        pass
