"""The engine without a server: images a second, and the time of a batch, in a process as a worker of the server's is.

::

    python -m studies.serving_load.engine < asked.json > found.json
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bare:
    """What the engine does when nothing is around it."""

    engine: str
    batch: int
    batch_s: float
    """Median time of a batch whose images are ready."""
    rate: float
    """Images a second that follow: ``batch / batch_s``."""
    decoding_rate: float
    """Images a second where JPEGs are decoded and scaled meanwhile, by as many threads as the server has."""


def measure(checkpoint: Path, engine: str, batch: int, images: Sequence[Path], seconds: float, threads: int) -> Bare:
    """Measure in a process of its own, with as many threads of the engine as a worker gets."""
    asked = {
        "checkpoint": str(checkpoint),
        "engine": engine,
        "batch": batch,
        "images": [str(path) for path in images],
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "studies.serving_load.engine"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    return Bare(**json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    from openfastervit.data.images import open_image
    from openfastervit.inference.images_in_memory import open_model

    asked = json.load(sys.stdin)
    batch: int = asked["batch"]
    model = open_model(
        asked["checkpoint"],
        engine=asked["engine"],
        batch_size=batch,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    paths = [Path(path) for path in asked["images"]]
    at_once = [paths[i % len(paths)] for i in range(batch)]

    def prepared(path: Path) -> object:
        return model.prepare(open_image(path, model.prepare.mode))

    ready = [model.prepare(open_image(path, model.prepare.mode)) for path in at_once]
    seconds = _times(lambda: model.predict(ready), asked["seconds"])
    batch_s = sorted(seconds)[len(seconds) // 2]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as decoders:
        coming = [decoders.submit(prepared, path) for path in at_once]

        def step() -> None:
            nonlocal coming
            images = [future.result() for future in coming]
            coming = [decoders.submit(prepared, path) for path in at_once]
            model.predict(images)  # type: ignore[arg-type]

        decoding = _times(step, asked["seconds"])
    found = Bare(model.engine_name, batch, batch_s, batch / batch_s, batch * len(decoding) / sum(decoding))
    model.close()
    print(json.dumps(asdict(found)))


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(3):
        call()
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    _main()
