"""Sends the real server thousands of hostile requests, and counts what it answers.

::

    python -m studies.hostile_input --out hostile_input.csv

What is asked of it: only answers of 2xx and 4xx (503, by which a full queue asks to come again, is obeyed and counted
apart); the same processes throughout; nothing of the server's files or program in any answer; memory that does not grow
from one half of the run to the other; 401 for keys that are missing, wrong or malformed. One row a kind.
"""

import argparse
import collections
import contextlib
import csv
import random
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import torch

from openfastervit import environment
from studies.hostile_input.images import good
from studies.hostile_input.requests import Body, bodies
from studies.serving_load.server import Server, memory_of
from studies.serving_load.subject import make_checkpoint

SIZE = 64
TELLING = ("Traceback", "site-packages", "/usr/", "/home/", "/root/", "/tmp/", ".py", "Error(", "openfastervit.")
"""What no answer may hold, beside names of exceptions."""
_EXCEPTION = re.compile(r"\b[A-Z]\w+(?:Error|Exception|Warning)\b")
NO_HTTP = "no_http"
"""The kind that may find its connection closed without an answer: status 0."""
MOST_GROWTH = 0.05
KEY = "a-key-of-enough-characters"


def main(arguments: list[str] | None = None) -> int:
    """Run it, write the table, and say whether all held: 0, or 1."""
    parser = argparse.ArgumentParser(prog="python -m studies.hostile_input", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--images", type=int, default=5000, help="bodies")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = _run(Path(folder), options.images, options.seed)
    about = {
        **environment.hardware(),
        **environment.versions(("torch", "pillow", "litserve", "starlette", "uvicorn")),
        "command": f"python -m studies.hostile_input --out hostile_input.csv --images {options.images} "
        f"--seed {options.seed}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    for row in rows:
        print(f"{row['kind']:28} {row['requests']:6} {row['statuses']:40} {row['verdict']}")
    return int(any(row["verdict"] != "held" for row in rows))


def _run(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    checkpoint = make_checkpoint(folder / "model.safetensors", SIZE)
    keys = folder / "keys.txt"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    words = ["--checkpoint", checkpoint, "--engine", "torch-folded", "--api-keys", keys, "--standby", "0"]
    server = Server(words, folder / "log", torch.get_num_threads())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            _asked(client, Body(good(random.Random(seed)), "image/jpeg"))  # what comes with a first request has come
            pids = server.pids
            rows, memory = _hostile(client, server, count, seed)
            rows += _wrong_keys(client, seed)
            health = client.get("/health").status_code
        growth = memory[-1] / memory[0] - 1
        held = server.pids == pids and health == 200 and (growth < MOST_GROWTH or count < 1000)
        told = f"health {health}, memory {growth:+.1%} over the second half"
        rows.append(
            {
                "kind": "the server's processes",
                "requests": sum(row["requests"] for row in rows),
                "statuses": told,
                "answers_that_tell": 0,
                "verdict": "held" if held else f"not held: {told}, processes {pids} then {server.pids}",
            }
        )
        code = server.end()
        rows[-1]["verdict"] = rows[-1]["verdict"] if code == 0 else f"not held: exit code {code}"
    finally:
        server.kill()
    return rows


def _hostile(client: httpx.Client, server: Server, count: int, seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """A row a kind, and the server's memory half-way and at the end."""
    statuses: dict[str, collections.Counter[int]] = {}
    telling: collections.Counter[str] = collections.Counter()
    memory = []
    for number, (kind, body) in enumerate(bodies(count, seed)):
        status, text, again = _asked(client, body)
        found = statuses.setdefault(kind, collections.Counter())
        found[status] += 1
        found[503] += again
        telling[kind] += _tells(text)
        if number + 1 in (count // 2, count):
            memory.append(memory_of(server.pids))
        if (number + 1) % 500 == 0:
            print(f"{number + 1} of {count} sent", file=sys.stderr, flush=True)
    return [_row(kind, found, telling[kind]) for kind, found in statuses.items()], memory


def _tells(text: str) -> bool:
    return any(word in text for word in TELLING) or _EXCEPTION.search(text) is not None


def _sent(port: int, data: bytes) -> tuple[int, str, int]:
    """The same of bytes that need be no request."""
    found = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        # With a key, so that it comes as far as it can.
        connection.sendall(data.replace(b"Host: x\r\n", b"Host: x\r\nX-API-Key: " + KEY.encode() + b"\r\n"))
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(2**16):
            found += piece
    # What comes first may be 100: then the answer follows, unless the end of what is sent counts as leaving.
    told = re.search(rb"^HTTP/1\.[01] ([2-5]\d\d) ", found, re.MULTILINE)
    return int(told[1]) if told else 0, found.decode(errors="replace"), 0


def _asked(client: httpx.Client, body: Body) -> tuple[int, str, int]:
    """Status (0 where the connection was cut), what it said, and how often it asked to come again."""
    if body.raw:
        return _sent(client.base_url.port or 80, body.data)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": body.content_type.encode()}
    path = f"/predict?{quote(body.query, safe='=&%')}" if body.query else "/predict"
    for again in range(50):
        try:
            answer = client.post(path, content=body.data, headers=headers)  # type: ignore[arg-type]
        except httpx.HTTPError:
            return 0, "", again
        if answer.status_code != 503 or "retry-after" not in answer.headers:
            return answer.status_code, answer.text, again
        time.sleep(0.1)
    return 503, "", again


def _wrong_keys(client: httpx.Client, seed: int) -> list[dict[str, Any]]:
    """401 for all of them, and for every page but that of health."""
    image = good(random.Random(seed))
    wrong: list[dict[str, bytes]] = [
        {},
        {"Authorization": b"Bearer wrong-but-long-enough"},
        {"Authorization": b"Bearer"},
        {"Authorization": KEY.encode()},
        {"Authorization": b"Basic " + KEY.encode()},
        {"Authorization": b"Bearer " + KEY.encode() + b"x"},
        {"Authorization": b"Bearer " + KEY[:-1].encode()},
        {"Authorization": b"Bearer \xff\xfe\x80"},
        {"X-API-Key": b"x" * 8000},
        {"X-API-Key": b""},
    ]
    found: collections.Counter[int] = collections.Counter()
    telling = 0
    for headers in wrong:
        for method, path in (("POST", "/predict"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs")):
            content = image if method == "POST" else None
            answer = client.request(method, path, headers=headers, content=content)  # type: ignore[arg-type]
            found[answer.status_code] += 1
            telling += _tells(answer.text)
    row = _row("wrong keys", found, telling)
    if set(found) != {401}:
        row["verdict"] = f"not held: {row['statuses']}"
    return [row]


def _row(kind: str, statuses: collections.Counter[int], telling: int) -> dict[str, Any]:
    told = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()) if count)
    allowed = {*range(200, 300), *range(400, 500), 503, *([0] if kind == NO_HTTP else [])}
    fine = all(status in allowed for status, number in statuses.items() if number)
    return {
        "kind": kind,
        "requests": sum(count for status, count in statuses.items() if status != 503),
        "statuses": told,
        "answers_that_tell": telling,
        "verdict": "held" if fine and not telling else "not held",
    }


if __name__ == "__main__":
    sys.exit(main())
