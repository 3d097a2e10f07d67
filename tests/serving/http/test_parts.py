"""The parts of a server that need no server."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openfastervit.serving.http import listener
from openfastervit.serving.http.answers import Reply
from openfastervit.serving.http.keys import Keys
from openfastervit.serving.http.room import UnavailableError, WaitingRoom
from openfastervit.serving.http.settings import Settings
from openfastervit.serving.http.uploads import RefusedError, decode
from tests.pocket import picture

KEY = "0123456789abcdef"


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize(
    "brought",
    [
        {"x_api_key": KEY},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"authorization": "Basic eDp5", "x_api_key": KEY},
    ],
)
def test_a_key_lets_in(brought: dict[str, str]) -> None:
    assert Keys(["another key-----", KEY]).allow(headers(**brought))


@pytest.mark.parametrize(
    "brought",
    [
        {},
        {"x_api_key": ""},
        {"x_api_key": KEY[:-1]},
        {"x_api_key": KEY + "0"},
        {"x_api_key": KEY.upper()},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer{KEY}"},
        {"cookie": KEY},
    ],
)
def test_what_is_no_key_does_not(brought: dict[str, str]) -> None:
    assert not Keys([KEY]).allow(headers(**brought))


@given(st.binary(max_size=40))
def test_no_other_bytes_do(value: bytes) -> None:
    assert not Keys([KEY]).allow([(b"x-api-key", value), (b"authorization", value)])


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  {KEY}\nfedcba9876543210\r\n")
    keys = Keys.read(file)
    assert keys.allow(headers(x_api_key=KEY))
    assert keys.allow(headers(x_api_key="fedcba9876543210"))
    assert not keys.allow(headers(x_api_key="# ours"))
    assert KEY not in repr(vars(keys))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"{KEY}\nshort-one\n", ["line 2", "9 characters", "openssl"]),
        ("# nothing\n", ["no key"]),
        ("", ["no key"]),
        (f"{KEY} and more\n", ["line 1", "spaces"]),
        ("schlüssel-schlüssel\n", ["ASCII"]),
    ],
)
def test_bad_files_of_keys_are_refused_without_telling_keys(tmp_path: Path, content: str, says: list[str]) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ValueError, match="keys") as caught:
        Keys.read(file)
    for part in says:
        assert part in str(caught.value)
    assert "short-one" not in str(caught.value)


def run(test: Callable[[WaitingRoom], None], most: int = 2) -> None:
    """In an event loop, which places belong to."""

    async def inside() -> None:
        test(WaitingRoom(most))

    asyncio.run(inside())


def test_no_more_wait_than_may() -> None:
    def test(room: WaitingRoom) -> None:
        with room.place() as first, room.place():
            with pytest.raises(UnavailableError, match="waiting"), room.place():
                pass
            room.begun(first.uid, 0)  # makes room for one more
            assert room.waiting == 1
            with room.place():
                assert room.waiting == 2
        assert room.waiting == 0

    run(test)


def test_whoever_would_wait_in_vain_is_told() -> None:
    """Of a dead worker's, and of those that it may have taken out of the queue; not of another worker's."""

    def test(room: WaitingRoom) -> None:
        places = [room.place() for _ in range(4)]
        dead, alive, queued, decoding = (place.__enter__() for place in places)
        for place in (dead, alive, queued):
            place.queued = True
        room.begun(dead.uid, 0)
        room.begun(alive.uid, 1)
        room.give_up(UnavailableError("gone"), worker=0)
        assert [place.answer.done() for place in (dead, alive, queued, decoding)] == [True, False, True, False]
        room.answered(dead.uid, Reply("", b""))  # too late, and no error
        room.answered("nobody's", Reply("", b""))
        room.answered(alive.uid, Reply("a/b", b"x"))
        assert alive.answer.result().body == b"x"
        room.give_up(UnavailableError("the end"))
        assert decoding.answer.done()
        for place in places:
            place.__exit__(None, None, None)

    run(test, most=4)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


@pytest.mark.parametrize(("format", "lossy"), [("PNG", False), ("WEBP", True), ("JPEG", True)])
def test_three_formats_are_decoded(format: str, lossy: bool) -> None:
    image = picture(0, (40, 30))
    found = decode(encoded(image, format), "RGB", 10_000)
    assert found.size == (40, 30)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(image)).mean() < (12 if lossy else 1e-9)


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "PPM", "ICO", "TGA", "PDF", "EPS", "AVIF"])
def test_others_are_not(format: str) -> None:
    with pytest.raises(RefusedError, match="no JPEG") as caught:
        decode(encoded(picture(0, (32, 32)), format), "RGB", 10_000)
    assert caught.value.status == 415


def test_the_camera_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    found = decode(encoded(picture(0, (40, 30)), "JPEG", exif=exif), "RGB", 10_000)
    assert found.size == (30, 40)


def test_pixels_are_counted_before_they_are_decoded() -> None:
    data = encoded(Image.new("RGB", (3000, 3000)), "PNG")
    cut = data[:60]  # the header alone: decoding would fail in another way
    for content in (data, cut):
        with pytest.raises(RefusedError, match="more than 1000000 pixels") as caught:
            decode(content, "RGB", 1_000_000)
        assert caught.value.status == 413


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(picture(0, (64, 64)), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff\xc4", start)] if b"\xff\xc4" in data[start:] else data[start:-2]
    with pytest.raises(RefusedError, match="scans"):
        decode(data[:-2] + scan * 300 + data[-2:], "RGB", 10_000)
    assert decode(data, "RGB", 10_000).size == (64, 64)


@pytest.mark.parametrize("place", range(20, 400, 40))
def test_damaged_images_are_refused_in_words_that_tell_nothing(place: int) -> None:
    data = encoded(picture(0), "PNG")
    with pytest.raises(RefusedError) as caught:
        decode(data[:place], "RGB", 10_000)
    assert caught.value.status == 422
    assert "0x" not in caught.value.detail
    assert "/" not in caught.value.detail


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", 0),
        ("max_batch", 0),
        ("max_queue", 0),
        ("topk", 0),
        ("port", 70000),
        ("timeout_s", 0.0),
        ("timeout_s", float("nan")),
        ("drain_s", -1.0),
        ("max_body_mb", float("inf")),
        ("batch_wait_ms", 40_000.0),
        ("max_pixels", 10**9),
    ],
)
def test_wrong_settings_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}"):
        Settings(Path("x"), "classification", **{option: value})


def test_a_request_whose_head_does_not_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_HEAD_S", 0.2)

    async def app(scope: dict[str, object], receive: object, send: Callable[..., object]) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[misc]
            await send({"type": "http.response.body", "body": b""})  # type: ignore[misc]

    async def talk(*pieces: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        return answer

    async def main() -> None:
        nonlocal port
        config = uvicorn.Config(
            app, port=0, http=listener.Protocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert await talk() == b""  # not a byte
        assert await talk(b"GET / HT", b"TP/1.1\r\n") == b""
        assert b" 204 " in await talk(whole)
        answer = await talk(whole, b"GET / HTTP/1.1\r\nX-")  # the second of a connection
        assert answer.count(b" 204 ") == 1
        server.should_exit = True
        await task

    port = 0
    asyncio.run(main())
