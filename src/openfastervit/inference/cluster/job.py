"""A job on a cluster: from its settings to the last file of rows."""

import collections
import importlib.metadata
import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from openfastervit.inference.cluster.checkpoint import Network
from openfastervit.inference.cluster.predicting import EngineSettings, from_bytes
from openfastervit.inference.cluster.resources import Placement, place
from openfastervit.inference.cluster.sources import Shard, find_source
from openfastervit.inference.cluster.store import Store
from openfastervit.inference.cluster.stream import choose_engine, losses, stream
from openfastervit.inference.engines import Precision
from openfastervit.inference.output import columns
from openfastervit.inference.parquet import row_schema
from openfastervit.inference.predictor import check_numbers

WRITERS = 4
"""Files that are written at once: a store takes its time to answer."""
ATTEMPTS = 3
"""How often in a row the cluster may lose what it was working on before a shard is complete."""
TOLD_FAILURES = 20
"""Of a shard's images that cannot be read, those that are named."""


@dataclass(frozen=True)
class ClusterJob:
    """What a job does.

    Raises:
        ValueError: If a number is below 1.
    """

    source: str
    """What ``sources.find_source`` takes."""
    out: str
    """The folder of rows: a path, or a URL of fsspec's."""
    network: Network
    digest: str
    """Of the checkpoint: a job goes on with no other."""
    topk: int = 5
    batch_size: int = 32
    device: str = "auto"
    engine: str = "auto"
    precision: Precision = "fp32"
    replicas: int | None = None
    """Engines at once; by default one for each GPU, or for each processor where there is none."""
    workers: int | None = None
    """Tasks that decode at once; by default as many as there are processors."""
    shard_size: int = 10_000
    """Images of a folder in one file of rows."""
    overwrite: bool = False
    """Begin anew, whatever was done."""

    def __post_init__(self) -> None:
        check_numbers(
            topk=self.topk,
            batch_size=self.batch_size,
            replicas=self.replicas,
            workers=self.workers,
            shard_size=self.shard_size,
        )


@dataclass(frozen=True)
class Planned:
    """What there is to do."""

    shards: int
    complete: int
    """Of these, done by an earlier run."""
    images: int | None
    """In all; None where tar files do not tell before they are read."""
    unreadable: int
    """Complete shards that hold unreadable images."""


@dataclass(frozen=True)
class Progress:
    """Images that were classified or found unreadable; those of a shard that is lost are told once more."""

    images: int


@dataclass(frozen=True)
class Written:
    """A shard is complete."""

    shard: str
    images: int
    """Those without a row among them."""
    unreadable: int
    failures: list[tuple[str, str]]
    """The first of the unreadable images, each with the reason."""


@dataclass(frozen=True)
class ShardFailed:
    """A shard could not be read, and is left to another run."""

    shard: str
    reason: str


@dataclass(frozen=True)
class Told:
    """A line for the user."""

    line: str


Event = Planned | Progress | Written | ShardFailed | Told


def run(job: ClusterJob, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Do a job on the cluster that this process is connected to. Complete shards are left alone.

    Closing the iterator ends the job: files that are being written are finished, nothing else is begun.

    Args:
        job: What to do.
        stop: Asked now and then whether to end before all is done.

    Raises:
        JobError: If ``job.out`` holds another job, or another process is at work on it.
        FileNotFoundError: If there is nothing at ``job.source``.
        ValueError: If there are no images, the device or the engine is not to be had, the engine gives numbers that
            are not finite, or the cluster loses its workers again and again.
        OSError: If rows cannot be written, or the images not be listed.
    """
    import ray

    store = Store(job.out)
    source = find_source(job.source, job.shard_size)
    placement = place(job.device, job.replicas, ray.cluster_resources())
    settings = {
        "checkpoint": job.digest,
        "model": job.network.model,
        "shards": len(source.shards),
        "images": source.images,
        "paths": source.digest,
        "shard_size": job.shard_size,
        "img_size": job.network.img_size,
        "topk": job.topk,
        "batch_size": job.batch_size,
        "device": placement.device,
        "engine": job.engine,
        "precision": job.precision,
    }
    versions = {name: importlib.metadata.version(name) for name in ("openfastervit", "torch")}
    with store.held():
        chosen = store.begin(settings, versions, overwrite=job.overwrite)
        complete = store.complete() if chosen else set()
        todo = {number: shard for number, shard in enumerate(source.shards) if shard.name not in complete}
        yield Planned(len(source.shards), len(source.shards) - len(todo), source.images, len(store.unreadable()))
        if not todo:
            return
        network = ray.put(job.network)
        engine = chosen.get("engine", job.engine)
        if engine == "auto":
            engine, lines = choose_engine(network, _engine_settings(job, placement, engine), placement)
            yield from map(Told, lines)
        if not chosen:
            store.write_manifest(settings, versions, {"engine": engine})
        yield from _work(job, store, todo, network, engine, placement, stop)


def _engine_settings(job: ClusterJob, placement: Placement, engine: str) -> EngineSettings:
    return EngineSettings(placement.device, engine, job.precision, job.batch_size, job.topk)


def _work(
    job: ClusterJob,
    store: Store,
    todo: dict[int, Shard],
    network: Any,
    engine: str,
    placement: Placement,
    stop: Callable[[], bool],
) -> Iterator[Event]:
    """All shards, whatever the cluster loses on the way."""
    import ray

    todo = dict(todo)
    numbers = {shard.name: number for number, shard in todo.items()}
    attempts = 0
    while todo:
        try:
            settings = _engine_settings(job, placement, engine)
            blocks = stream(_work_rows(todo), network, settings, placement, job.network.preparation, job.workers)
            for event in _collect(blocks, store, todo, min(job.topk, job.network.classes), stop):
                if isinstance(event, Written | ShardFailed):
                    del todo[numbers[event.shard]]
                    attempts = 0
                yield event
        except losses() as error:
            attempts += 1
            reason = " ".join(str(error).split())[:300]
            if attempts >= ATTEMPTS:
                raise ValueError(
                    f"the cluster lost its workers {attempts} times in a row ({reason}); the same command goes on"
                ) from error
            yield Told(f"workers were lost ({reason}); going on with those that are left")
            placement = place(job.device, None, ray.cluster_resources())
            if job.replicas is not None:
                placement = replace(placement, replicas=min(job.replicas, placement.replicas))
        else:
            return


def _work_rows(todo: Mapping[int, Shard]) -> list[dict[str, Any]]:
    return [{"shard": number, "work": pickle.dumps(shard)} for number, shard in todo.items()]


@dataclass
class _Collected:
    """Parts of a shard that have arrived."""

    parts: dict[int, tuple[bytes | None, bytes]] = field(default_factory=dict)
    total: int | None = None
    images: int = 0
    failed: int = 0

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take a part; False if it has been there before."""
        if row["parts"] is not None:
            self.total = row["parts"]
            return True
        if row["part"] in self.parts:
            return False
        self.parts[row["part"]] = (row["rows"], row["unreadable"])
        self.images += row["images"]
        self.failed += row["failed"]
        return True

    @property
    def complete(self) -> bool:
        return self.total == len(self.parts)

    def parquet(self, schema: pa.Schema) -> bytes:
        """The shard's rows, in its images' order, as a file."""
        tables = [from_bytes(rows) for _, (rows, _) in sorted(self.parts.items()) if rows is not None]
        file = io.BytesIO()
        parquet.write_table(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks(), file)
        return file.getvalue()

    def unreadable(self) -> bytes:
        """Its images without a row, as lines of JSON."""
        return b"".join(lines for _, (_, lines) in sorted(self.parts.items()))


def _collect(
    blocks: Iterator[pa.Table], store: Store, shards: Mapping[int, Shard], topk: int, stop: Callable[[], bool]
) -> Iterator[Event]:
    """Blocks of ``predicting.ROWS`` to files: each shard's is written when all of its parts are there."""
    schema = row_schema(columns(topk))
    collected: dict[int, _Collected] = collections.defaultdict(_Collected)
    ended: set[int] = set()
    writing: collections.deque[Future[Written]] = collections.deque()

    def write(name: str, shard: _Collected) -> Written:
        unreadable = shard.unreadable()
        store.write(name, shard.parquet(schema), unreadable)
        told = [json.loads(line) for line in unreadable.splitlines()[:TOLD_FAILURES]]
        return Written(name, shard.images, shard.failed, [(line["image"], line["reason"]) for line in told])

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as writers:
        lost = None
        try:
            for block in blocks:
                for row in block.to_pylist():
                    number = row["shard"]
                    if number in ended:
                        continue
                    if row["wrong"] is not None:
                        raise ValueError(row["wrong"])
                    name = shards[number].name
                    if row["error"] is not None:
                        ended.add(number)
                        collected.pop(number, None)
                        yield ShardFailed(name, row["error"])
                        continue
                    shard = collected[number]
                    if shard.add(row) and row["images"]:
                        yield Progress(row["images"])
                    if shard.complete:
                        ended.add(number)
                        writing.append(writers.submit(write, name, collected.pop(number)))
                while writing and (writing[0].done() or len(writing) > 2 * WRITERS):
                    yield writing.popleft().result()
                if stop():
                    break
        except losses() as error:
            lost = error
        for future in writing:
            yield future.result()
    if lost is not None:
        raise lost
