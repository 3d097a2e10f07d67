"""Requests that were made to harm: images in every form in which they can be sent, and forms that are none."""

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from studies.hostile_input.images import IMAGES, encoded, good, picture

FORM, JSON = "multipart/form-data; boundary=edge", "application/json"
TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")


@dataclass(frozen=True)
class Body:
    """What is posted."""

    data: bytes
    content_type: str = ""
    query: str = ""
    raw: bool = False
    """Whether it is all that is sent, in place of a request of HTTP's."""


Make = Callable[[random.Random], Body]


def bodies(count: int, seed: int) -> Iterator[tuple[str, Body]]:
    """So many, of each kind in turn, with the kind's name. The same seed gives the same ones."""
    for number in range(count):
        kind = tuple(KINDS)[number % len(KINDS)]
        yield kind, KINDS[kind](random.Random(f"{seed} {kind} {number // len(KINDS)}"))


def _in_some_form(image: Callable[[random.Random], bytes]) -> Make:
    def make(draw: random.Random) -> Body:
        data = image(draw)
        form = draw.random()
        if form < 0.1:
            return Body(json.dumps({"image": base64.b64encode(data).decode()}).encode(), JSON)
        if form < 0.2:
            return Body(_multipart(data), FORM)
        return Body(data, draw.choice(TYPES) if form < 0.95 else "", draw.choice(["", "", "topk=2"]))

    return make


def _multipart(data: bytes, head: str = 'name="image"; filename="a.png"', more: bytes = b"") -> bytes:
    return (
        b"--edge\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n--edge--\r\n" + more
    )


def wrong_content_type(draw: random.Random) -> Body:
    """A sound image called something else, or a type of no meaning."""
    kinds = [
        *("text/html", "text/plain", "application/zip", "image/svg+xml", "image/tiff", "application/xml"),
        *("multipart/form-data", "multipart/form-data; boundary=", "application/json; charset=utf-7", "image/*"),
        *("image/png; charset=" + "x" * 3000, "*/*", ";", "/", "application/x-www-form-urlencoded", "IMAGE/PNG"),
        *(
            "application/x-python-pickle",
            "multipart/mixed; boundary=edge",
            "multipart/form-data; boundary=" + "-" * 300,
        ),
    ]
    return Body(good(draw), draw.choice(kinds))


def multipart_nonsense(draw: random.Random) -> Body:
    """Forms with parts that are damaged, too many, nested, or named as files of the server's."""
    image = encoded(picture(0), "PNG")
    part = b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n'
    forms = [
        _multipart(image, 'name="image"; filename="../../../../etc/passwd"'),
        _multipart(image, 'name="image"; filename="\x00\x01"'),
        _multipart(image, 'name="image"; filename="' + "a" * 10_000 + '"'),
        _multipart(image, 'name="picture"; filename="a"'),
        _multipart(image, 'name="image"'),
        _multipart(image, "name=image; filename=a; name=other"),
        _multipart(image, "filename*=utf-8''%ff%fe; name=\"image\""),
        _multipart(image)[:-12],
        _multipart(image)[: draw.randrange(20, 200)],
        _multipart(image, more=_multipart(image)),
        part * draw.choice([5, 17, 5000]) + _multipart(image),
        b"--edge\r\n" + b"X-Header: y\r\n" * 5000 + b"\r\n\r\n--edge--\r\n",
        _multipart(base64.b64encode(image), 'name="image"; filename="a"\r\nContent-Transfer-Encoding: base64'),
        b"--edge--\r\n",
        b"\r\n" * 1000,
        draw.randbytes(500),
        b"",
    ]
    return Body(draw.choice(forms), FORM)


def base64_nonsense(draw: random.Random) -> Body:
    """Strings that are not quite base64."""
    text = base64.b64encode(good(draw)).decode()
    cut = draw.randrange(len(text))
    forms = [
        text[:cut],
        text[:cut] + "\n" + text[cut:],
        text[:cut] + "=" + text[cut:],
        text[:cut] + draw.choice("*\0é✓") + text[cut:],
        text.replace("+", "-").replace("/", "_"),
        "data:image/png;base64," + text,
        text + "====",
        base64.b64encode(text.encode()).decode(),
        base64.b85encode(good(draw)).decode(),
        "=" * draw.choice([1, 4, 10_000]),
        "A" * draw.choice([1, 2, 3, 10**6]),
        "",
    ]
    return Body(json.dumps({"image": draw.choice(forms)}).encode(), JSON)


def json_nonsense(draw: random.Random) -> Body:
    """Nested without end, numbers beyond all bounds, keys twice, text that is no Unicode."""
    image = '"image": "' + base64.b64encode(encoded(picture(0), "PNG")).decode() + '"'
    deep = draw.choice([100, 10_000, 1_000_000])
    values = [
        "NaN",
        "Infinity",
        "-1",
        "0",
        "1e400",
        "1" * 5000,
        "null",
        "true",
        '"5"',
        "[]",
        "{}",
        "2.5",
        "-0.0",
        "1e2",
    ]
    forms: list[str | bytes] = [
        "[" * deep,
        "[" * deep + "]" * deep,
        '{"image":' * deep + '""' + "}" * deep,
        f"{{{image}, {image}}}",
        *[f'{{{image}, "topk": {value}}}' for value in values],
        *[f'{{{image}, "score_threshold": {value}}}' for value in values],
        f'{{{image}, "__class__": "os.system"}}',
        f'{{{image}, "masks": "all", "format": "exe"}}',
        '{"image": "\\ud800"}',
        '{"image": "\\u0000"}',
        f'{{"{"k" * 100_000}": 1, {image}}}',
        "{" + ",".join(f'"k{number}": {number}' for number in range(20_000)) + "}",
        "null",
        "0",
        '"text"',
        "",
        " " * 100_000,
        f"{{{image}".encode("utf-16"),
        b"\xff\xfe\x00",
        b'{"image": "\xff"}',
        draw.randbytes(300),
    ]
    chosen = draw.choice(forms)
    return Body(chosen if isinstance(chosen, bytes) else chosen.encode(), JSON)


def option_nonsense(draw: random.Random) -> Body:
    """A sound image with options of no meaning."""
    values = [
        "0",
        "-1",
        "nan",
        "inf",
        "1e999",
        "9" * 400,
        "",
        "%00",
        "%ff",
        "../etc",
        "1;2",
        "[]",
        "true",
        "%F0%9F%98%80",
        "1.5",
    ]
    names = ["topk", "score_threshold", "masks", "format", "engine", "checkpoint", "__class__", "topk[]", "%00"]
    pairs = [f"{draw.choice(names)}={draw.choice(values)}" for _ in range(draw.choice([1, 2, 200]))]
    return Body(encoded(picture(0), "PNG"), "image/png", "&".join(pairs))


def no_http(draw: random.Random) -> Body:
    """What is no request, or two in one. The sender closes its side when all is sent."""
    image = encoded(picture(0), "PNG")
    post = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    size = str(len(image)).encode()
    forms = [
        draw.randbytes(200) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: y\r\n" * 5000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"GET /health\r\n\r\n",
        b"DELETE /predict HTTP/1.1\r\nHost: x\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + draw.randbytes(200),
        b"GET /predict HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        post + b"Content-Length: -5\r\n\r\n" + image,
        post + b"Content-Length: 99999999999999999999999\r\n\r\n" + image,
        post + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + image,
        post + b"Content-Length: 0x10\r\n\r\n" + image,
        post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + image,
        post + b"Content-Length: " + size + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + image,
        post + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n" + image,
        post + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n" + image,
        post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        post + b"Content-Encoding: gzip\r\nContent-Length: " + size + b"\r\n\r\n" + image,
        post + b"Content-Length: " + size + b"\r\n\r\n" + image[: draw.randrange(len(image))],
        post + b"Expect: 100-continue\r\nContent-Length: " + size + b"\r\n\r\n" + image,
        post + b"X: \xff\xfe\x00\r\n\r\n",
    ]
    return Body(draw.choice(forms), raw=True)


_REQUESTS = (wrong_content_type, multipart_nonsense, base64_nonsense, json_nonsense, option_nonsense, no_http)
KINDS: Mapping[str, Make] = MappingProxyType(
    {
        **{name: _in_some_form(make) for name, make in IMAGES.items()},
        **{make.__name__: make for make in _REQUESTS},
    }
)
"""Each kind, by name."""
