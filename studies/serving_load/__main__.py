"""Load and faults for ``fastervit serve``, on loopback.

::

    python -m studies.serving_load --out serving_load.csv

First the engine by itself, in a process as the server's workers are: its rate and the time of a batch are what all else
is compared with. Then the server, asked by a client in a process of its own that does as little as it can: always two
batches, four fifths of the engine's rate, four times it for ``--seconds``; with its worker killed, clients that leave,
bodies that come byte by byte, and SIGTERM, all of them under load; last another one on a disk that is full.

Engine, server and client share the machine's cores. ``--threads`` are the engine's; by default half of the cores, so
that HTTP, decoding and the client have the others.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write a row for each phase as soon as it is done.

    Returns:
        0 if everything holds, 1 if not, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m studies.serving_load", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--seconds", type=float, default=300.0, help="of four times the engine's rate (default: 300)")
    parser.add_argument("--checkpoint", type=Path, help="by default a small FasterViT with random weights")
    parser.add_argument("--img-size", type=int, default=224, help="of that one (default: 224)")
    parser.add_argument("--engine", default="auto", help="as of fastervit serve (default: auto)")
    parser.add_argument("--threads", type=int, help="of the engine (default: half of the cores)")
    parser.add_argument("--max-batch", type=int, default=8, help="images a batch (default: 8)")
    parser.add_argument("--max-queue", type=int, help="images that may wait (default: as of fastervit serve)")
    parser.add_argument("--receive-s", type=float, default=5.0, help="the server's patience with bodies (default: 5)")
    parser.add_argument(
        "--phases", nargs="+", metavar="NAME", help="only these functions of studies.serving_load.phases"
    )
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds:g} must be above 0")
    if options.threads is None:
        options.threads = max(1, len(os.sched_getaffinity(0)) // 2)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="serving-load-") as folder:
            _measure(options, Path(folder), rows)
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
        return 130
    finally:
        _show(rows)
    return 0 if all(row["met"] in ("", "yes", "not tried") for row in rows) else 1


def _measure(options: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]) -> None:
    from openfastervit import environment
    from studies.common.table import write_table
    from studies.serving_load import engine, phases, subject
    from studies.serving_load.server import Server

    about = {
        "max_batch": options.max_batch,
        "max_queue": options.max_queue or "default",
        "threads": options.threads,
        **environment.hardware(),
        **environment.versions(("torch", "litserve", "uvicorn", "fastapi", "openvino", "onnxruntime")),
        "command": _command(options),
    }

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
        columns = [*dict.fromkeys(name for row in rows for name in row if name not in ("detail", "criteria", "met"))]
        table = [{**{name: _cell(value) for name, value in row.items()}, **about} for row in rows]
        write_table(options.out, table, [*columns, "detail", "criteria", "met", *about])

    checkpoint = options.checkpoint or subject.make_checkpoint(folder / "small.safetensors", options.img_size)
    size = (options.img_size, options.img_size) if options.checkpoint is None else subject.size_of(checkpoint)
    images = subject.write_images(folder / "images", size)
    alone_s = min(20.0, max(1.0, options.seconds / 10))
    bare = engine.measure(checkpoint, options.engine, options.max_batch, images, alone_s, options.threads)
    add(phases.bare_row(bare))
    words: list[object] = ["--checkpoint", checkpoint, "--engine", bare.engine, "--max-batch", options.max_batch]
    words += ["--receive-s", options.receive_s]
    if options.max_queue is not None:
        words += ["--max-queue", options.max_queue]

    def start(**around: Any) -> Server:
        return Server(words, folder / "log", options.threads, **around)

    def wanted(phase: Any) -> bool:
        return not options.phases or phase.__name__ in options.phases

    server = start()
    bench = phases.Bench(server, bare, tuple(images), options.seconds, _TIMEOUT_S, options.receive_s)
    try:
        for phase in filter(wanted, phases.PHASES):
            add(phase(bench))
    finally:
        server.kill()
        said = server.said()
        if "Traceback" in said:
            print(said, file=sys.stderr)
    if wanted(phases.full_disk):
        add(phases.full_disk(bench, start, folder / "disk"))


_TIMEOUT_S = 30.0
"""The server's patience for an answer, by default."""


def _command(options: argparse.Namespace) -> str:
    words = ["python -m studies.serving_load --out serving_load.csv"]
    given = {"seconds": 300.0, "img_size": 224, "engine": "auto", "max_batch": 8, "max_queue": None, "receive_s": 5.0}
    for name, usual in given.items():
        value = getattr(options, name)
        if value != usual:
            words.append(
                f"--{name.replace('_', '-')} {value:g}"
                if isinstance(value, float)
                else f"--{name.replace('_', '-')} {value}"
            )
    if options.checkpoint is not None:
        words.append(f"--checkpoint {options.checkpoint.name}")
    if options.phases:
        words.append(f"--phases {' '.join(options.phases)}")
    return " ".join([*words, f"--threads {options.threads}"])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


def _line(row: dict[str, Any]) -> str:
    shown = {name: value for name, value in row.items() if value not in (0, "")}
    return ", ".join(f"{name} {_cell(value)}" for name, value in shown.items())


def _show(rows: list[dict[str, Any]]) -> None:
    columns = ("answered_per_second", "share_of_offered", "share_of_engine", "p50_ms", "p99_ms", "p99_batches", "met")
    print(" | ".join(("phase", *columns)))
    for row in rows:
        print(" | ".join([row["phase"], *(_cell(row.get(name, "")) for name in columns)]))


if __name__ == "__main__":
    sys.exit(main())
