"""A job whose steps run in this process: each image has one row, in whatever order and however often parts arrive."""

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
import ray
from ray.exceptions import NodeDiedError

from openfastervit.inference import JobError
from openfastervit.inference.cluster import ClusterJob, Planned, Progress, ShardFailed, Told, Written
from openfastervit.inference.cluster import job as module
from openfastervit.inference.cluster.decoding import decode
from openfastervit.inference.cluster.job import run
from openfastervit.inference.cluster.predicting import EngineSettings, Predict
from openfastervit.inference.cluster.resources import Placement, place
from openfastervit.inference.cluster.store import Store
from tests.inference.cluster.data import (
    job,
    local_rows,
    rows_in,
    same_rows,
    unpacked,
    unreadable_in,
    write_folder,
    write_shards,
    write_tar,
)
from tests.pocket import CLASSES

Stream = Callable[..., Iterator[pa.Table]]
RESOURCES = {"CPU": 2.0}


def steps(
    work: list[dict[str, Any]], network: Any, settings: EngineSettings, placement: Placement, preparation: Any, *_: Any
) -> Iterator[pa.Table]:
    """What Ray Data does, a block at a time."""
    predict = Predict(network, settings)
    for row in work:
        for parts in decode(pa.Table.from_pylist([row]), preparation=preparation, batch_size=settings.batch_size):
            yield predict(parts)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stream], None]:
    """Ray's store is this process's memory, and the steps are what is given."""
    monkeypatch.setattr(ray, "put", pickle.dumps)
    monkeypatch.setattr(ray, "get", pickle.loads)
    monkeypatch.setattr(ray, "cluster_resources", lambda: RESOURCES)

    def use(stream: Stream) -> None:
        monkeypatch.setattr(module, "stream", stream)

    use(steps)
    return use


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "photos", 23)


@pytest.fixture(scope="module")
def expected(photos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return local_rows(photos, checkpoint, tmp_path_factory.mktemp("local") / "rows.parquet")


@pytest.mark.parametrize("shard_size", [1, 8, 100])
@pytest.mark.usefixtures("in_process")
def test_rows_are_those_of_the_local_predictor(
    photos: Path, expected: pd.DataFrame, checkpoint: Path, tmp_path: Path, shard_size: int
):
    events = list(run(job(photos, tmp_path / "out", checkpoint, shard_size=shard_size)))
    found = rows_in(tmp_path / "out")
    same_rows(found, expected, expected["image"])
    if shard_size == 8:  # a whole number of batches: the same images share one
        assert found.equals(expected)
    bad = {"image": f"{photos}/003.png", "reason": "it does not decode (image file is truncated)"}
    assert unreadable_in(tmp_path / "out") == [bad]
    shards = -(-23 // shard_size)
    assert events[0] == Planned(shards, 0, 23, 0)
    assert sum(event.images for event in events if isinstance(event, Progress)) == 23
    written = [event for event in events if isinstance(event, Written)]
    assert sorted(event.shard for event in written) == [f"images-{number:06}" for number in range(shards)]
    assert [event.failures for event in written if event.failures] == [[tuple(bad.values())]]


def test_shards_of_webdataset_give_a_row_an_image(
    in_process: Callable[[Stream], None], checkpoint: Path, tmp_path: Path
):
    shards = write_shards(tmp_path / "set", 11, 4)
    expected = local_rows(unpacked(shards, tmp_path / "flat"), checkpoint, tmp_path / "rows.parquet")
    list(run(job(shards, tmp_path / "out", checkpoint)))
    assert sorted(path.name for path in (tmp_path / "out" / "rows").iterdir()) == [
        f"some-{number:04}.tar.parquet" for number in range(3)
    ]
    names = [f"some-{number // 4:04}.tar/in/{number:03}" for number in range(11) if number != 3]
    same_rows(rows_in(tmp_path / "out"), expected, names)
    bad = {"image": "some-0000.tar/in/003", "reason": "it does not decode (image file is truncated)"}
    assert unreadable_in(tmp_path / "out") == [bad]


@pytest.mark.parametrize("seed", range(4))
def test_parts_count_once_in_whatever_order_they_come(
    in_process: Callable[[Stream], None],
    photos: Path,
    expected: pd.DataFrame,
    checkpoint: Path,
    tmp_path: Path,
    seed: int,
):
    def shuffled(*args: Any) -> Iterator[pa.Table]:
        rows = [row for block in steps(*args) for row in block.to_pylist()]
        draw = random.Random(seed)
        rows += draw.choices(rows, k=len(rows))
        draw.shuffle(rows)
        while rows:
            block, rows = rows[:3], rows[3:]
            yield pa.Table.from_pylist(block, next(iter(steps(*args))).schema)

    in_process(shuffled)
    events = list(run(job(photos, tmp_path, checkpoint, shard_size=8)))
    assert rows_in(tmp_path).equals(expected)
    assert sum(event.images for event in events if isinstance(event, Progress)) == 23
    assert len([event for event in events if isinstance(event, Written)]) == 3


def test_what_is_lost_is_done_again_and_complete_shards_are_not(
    in_process: Callable[[Stream], None], photos: Path, expected: pd.DataFrame, checkpoint: Path, tmp_path: Path
):
    asked: list[list[int]] = []

    def losing(work: list[dict[str, Any]], *args: Any) -> Iterator[pa.Table]:
        asked.append([row["shard"] for row in work])
        for count, block in enumerate(steps(work, *args)):
            if len(asked) <= 2 and count == 5:
                raise NodeDiedError("a node is gone")
            yield block

    in_process(losing)
    events = list(run(job(photos, tmp_path, checkpoint, shard_size=8, replicas=2)))
    assert asked == [[0, 1, 2], [1, 2], [2]]
    assert rows_in(tmp_path).equals(expected)
    told = [event.line for event in events if isinstance(event, Told)]
    assert len(told) == 2
    assert all("a node is gone" in line and "going on with those that are left" in line for line in told)


def test_a_cluster_that_loses_everything_again_and_again_is_given_up(
    in_process: Callable[[Stream], None], photos: Path, checkpoint: Path, tmp_path: Path
):
    def losing(*args: Any) -> Iterator[pa.Table]:
        yield next(steps(*args))
        raise NodeDiedError("a node is gone")

    in_process(losing)
    with pytest.raises(ValueError, match=r"lost its workers 3 times in a row \(a node is gone\); the same command"):
        list(run(job(photos, tmp_path, checkpoint)))
    assert Store(str(tmp_path)).complete() == set()


def test_a_job_goes_on_by_shards(
    in_process: Callable[[Stream], None], photos: Path, expected: pd.DataFrame, checkpoint: Path, tmp_path: Path
):
    settings = job(photos, tmp_path, checkpoint, shard_size=8)
    seen = []
    for event in run(settings, stop=lambda: len(seen) > 3):
        seen.append(event)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert 0 < len(before) < 3
    first, *events = run(settings)
    assert first == Planned(3, len(before), 23, 1)
    assert len([event for event in events if isinstance(event, Written)]) == 3 - len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rows_in(tmp_path).equals(expected)
    in_process(lambda *args: pytest.fail("all is done"))
    assert list(run(settings)) == [Planned(3, 3, 23, 1)]
    with pytest.raises(JobError, match="other settings"):
        list(run(job(photos, tmp_path, checkpoint, shard_size=9)))


def test_closing_the_events_leaves_whole_shards(
    in_process: Callable[[Stream], None], photos: Path, checkpoint: Path, tmp_path: Path
):
    events = run(job(photos, tmp_path, checkpoint, shard_size=8))
    for event in events:
        if isinstance(event, Written):
            break
    events.close()
    assert all(not path.name.startswith(".") for path in tmp_path.rglob("*"))
    assert {len(pd.read_parquet(path)) for path in (tmp_path / "rows").iterdir()} <= {7, 8}


@pytest.mark.usefixtures("in_process")
def test_a_shard_that_cannot_be_read_is_left_to_another_run(checkpoint: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "set", 9, 3)
    hidden = tmp_path / "hidden.tar"
    settings = job(shards, tmp_path / "out", checkpoint)
    events = run(settings)
    assert isinstance(next(events), Planned)
    (shards / "some-0001.tar").rename(hidden)  # after it was listed
    failed = [event for event in events if isinstance(event, ShardFailed)]
    assert [event.shard for event in failed] == ["some-0001.tar"]
    assert failed[0].reason.startswith("FileNotFoundError: ")
    assert Store(settings.out).complete() == {"some-0000.tar", "some-0002.tar"}
    hidden.rename(shards / "some-0001.tar")
    assert [event.shard for event in run(settings) if isinstance(event, Written)] == ["some-0001.tar"]
    assert len(rows_in(tmp_path / "out")) == 8


@pytest.mark.usefixtures("in_process")
def test_a_damaged_shard_gives_what_came_before_the_damage(checkpoint: Path, tmp_path: Path):
    shards = write_shards(tmp_path / "set", 3, 3)
    content = (shards / "some-0000.tar").read_bytes()
    end = content.index(b"in/002.png")
    (shards / "some-0000.tar").write_bytes(content[:end])
    list(run(job(shards, tmp_path / "out", checkpoint)))
    assert rows_in(tmp_path / "out")["image"].tolist() == ["some-0000.tar/in/000", "some-0000.tar/in/001"]
    (told,) = unreadable_in(tmp_path / "out")
    assert told["image"] == "some-0000.tar"
    assert "the shard is damaged" in told["reason"]


@pytest.mark.usefixtures("in_process")
def test_from_a_store_to_a_store(photos: Path, expected: pd.DataFrame, checkpoint: Path):
    store = fsspec.filesystem("memory")
    for path in photos.rglob("*.png"):
        store.pipe_file(f"/job/photos/{path.relative_to(photos)}", path.read_bytes())
    list(run(job("memory://job/photos", "memory://job/out", checkpoint, shard_size=8)))
    frames = [pd.read_parquet(f"memory://{path}") for path in sorted(store.find("/job/out/rows"))]
    found = pd.concat(frames, ignore_index=True)
    names = [image.replace(str(photos), "memory:///job/photos") for image in expected["image"]]
    assert found.equals(expected.assign(image=names))
    (name,) = store.find("/job/out/unreadable")
    assert b"image file is truncated" in store.cat_file(name)


@pytest.mark.usefixtures("in_process")
def test_an_empty_shard_is_an_empty_file(checkpoint: Path, tmp_path: Path):
    write_tar(tmp_path / "a.tar", [("notes.txt", b"nothing to see")])
    list(run(job(tmp_path / "a.tar", tmp_path / "out", checkpoint, topk=9)))
    found = rows_in(tmp_path / "out")
    assert len(found) == 0
    assert found.columns.tolist()[-1] == f"score_{len(CLASSES)}"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("settings", "says"),
    [({"engine": "none-such"}, "none-such"), ({"precision": "int8"}, "needs images"), ({"device": "mps"}, "mps")],
)
def test_what_no_worker_can_do_is_told(
    photos: Path, checkpoint: Path, tmp_path: Path, settings: dict[str, Any], says: str
):
    with pytest.raises(ValueError, match=says):
        list(run(job(photos, tmp_path / "out", checkpoint, **settings)))


def test_numbers_below_one_are_refused(photos: Path, checkpoint: Path):
    for name in ("topk", "batch_size", "replicas", "workers", "shard_size"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            job(photos, "out", checkpoint, **{name: 0})


def test_engines_are_placed_where_the_devices_are():
    assert place("auto", None, {"CPU": 8.0}) == Placement("cpu", 8, 0)
    assert place("auto", None, {"CPU": 64.0, "GPU": 8.0}) == Placement("cuda", 8, 1)
    assert place("cpu", 3, {"CPU": 64.0, "GPU": 8.0}) == Placement("cpu", 3, 0)
    assert place("cuda", 2, {"CPU": 64.0, "GPU": 8.0}).options == {"num_cpus": 0.01, "num_gpus": 1, "max_restarts": 0}
    assert "max_restarts" not in place("cpu", 1, {"CPU": 1.0}).options
    for replicas, gpus in ((1, 0.0), (None, 0.0), (3, 2.0)):
        with pytest.raises(ValueError, match="the cluster has"):
            place("cuda", replicas, {"CPU": 8.0, "GPU": gpus})


def test_a_job_can_be_sent_to_another_process(photos: Path, checkpoint: Path):
    sent = pickle.loads(pickle.dumps(job(photos, "out", checkpoint)))
    assert isinstance(sent, ClusterJob)
    assert {name: content.tobytes() for name, content in sent.network.files.items()} == {
        checkpoint.name: checkpoint.read_bytes()
    }
