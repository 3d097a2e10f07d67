"""What is measured, each figure by a process of its own."""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from openfastervit.data.images import find_images
from openfastervit.inference import Predictor
from openfastervit.inference.cluster import ClusterJob, Progress, read_network, run_on

FROM, TO = 0.2, 0.9
"""Of a cluster's images, those that are timed."""
SHARDS = 16
"""Files of rows that the images make: no worker is idle for long before the others are done."""


@dataclass(frozen=True)
class Case:
    """What a process measures."""

    what: str
    workers: int
    device: str
    engine: str
    batch_size: int
    checkpoint: Path
    images: Path

    @property
    def cores(self) -> int:
        """That it may use: a GPU may have all."""
        return self.workers if self.device == "cpu" else os.cpu_count() or 1


def in_a_process(case: Case) -> float:
    """Images a second, found by a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(measure, case).result()


def measure(case: Case) -> float:
    """Images a second, found by this process and what it starts, on as many cores as the case has."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.cores])
    torch.set_num_threads(case.cores)
    return MEASURES[case.what](case)


def decoding(case: Case) -> float:
    """Reading, decoding and scaling, in as many threads as there are workers."""
    load, images = read_network([case.checkpoint]).preparation.load, find_images(case.images)
    load(images[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(case.workers) as threads:
        count = sum(1 for _ in threads.map(load, images))
    return count / (time.perf_counter() - started)


def engine(case: Case) -> float:
    """Batches that lie in memory, through one engine: on a GPU, one GPU."""
    with Predictor.from_checkpoint(
        case.checkpoint, device=case.device, engine=case.engine, batch_size=case.batch_size
    ) as predictor:
        images = find_images(case.images)
        pixels = [predictor.preparation.load(image) for image in images[: case.batch_size]]
        batch = [found for found in pixels if isinstance(found, torch.Tensor)]
        for _ in range(2):
            predictor._classify(batch, 1)
        batches = max(3, len(images) // len(batch))
        started = time.perf_counter()
        for _ in range(batches):
            predictor._classify(batch, 1)
        return batches * len(batch) / (time.perf_counter() - started)


def local(case: Case) -> float:
    """``fastervit predict`` without a cluster."""
    with Predictor.from_checkpoint(
        case.checkpoint, device=case.device, engine=case.engine, batch_size=case.batch_size
    ) as predictor:
        images = find_images(case.images)
        times: list[float] = []
        for _ in predictor.predict(images, batch_size=case.batch_size, workers=case.cores):
            times.append(time.perf_counter())
        return steady([(when, 1) for when in times])


def cluster(case: Case) -> float:
    """``fastervit predict --cluster local``."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # the others run at that
    count = sum(1 for _ in case.images.iterdir())
    with tempfile.TemporaryDirectory() as out:
        job = ClusterJob(
            str(case.images),
            str(Path(out, "rows")),
            read_network([case.checkpoint]),
            "",
            batch_size=case.batch_size,
            device=case.device,
            engine=case.engine,
            replicas=case.workers,
            shard_size=-(-count // SHARDS),
        )
        events = run_on("local", job)
        return steady([(time.perf_counter(), event.images) for event in events if isinstance(event, Progress)])


def steady(arrivals: list[tuple[float, int]]) -> float:
    """Images a second in the middle of a run, from the time at which so many were done."""
    total = sum(images for _, images in arrivals)
    done, began, before = 0, 0.0, 0
    for when, images in arrivals:
        done += images
        if not before and done >= FROM * total:
            began, before = when, done
        elif before and done >= TO * total:
            return (done - before) / (when - began)
    raise ValueError(f"{total} images in {len(arrivals)} parts are too few to tell a rate; give more with --images")


MEASURES = {"decoding alone": decoding, "engine alone": engine, "local predictor": local, "cluster": cluster}
