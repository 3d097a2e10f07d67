"""The folder of rows: whole files or none, on disks and on stores, and for one job alone."""

import itertools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from openfastervit.inference import JobError
from openfastervit.inference.cluster.store import Store

SETTINGS = {"topk": 5, "paths": "sha256:0123456789abcdef", "img_size": (64, 96)}
VERSIONS = {"torch": "2"}
_NUMBERS = itertools.count()


class Renaming(LocalFileSystem):
    """A file system that is no object store and not on this machine, such as SFTP."""

    protocol = "renaming"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("renaming://"))


fsspec.register_implementation("renaming", Renaming, clobber=True)


@pytest.fixture(params=["path", "file", "memory", "renaming"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "path": str(tmp_path / "out"),
        "file": f"file://{tmp_path}/out",
        "memory": f"memory://store-{next(_NUMBERS)}/out",
        "renaming": f"renaming://{tmp_path}/out",
    }[request.param]


def begun(location: str) -> Store:
    store = Store(location)
    store.write_manifest(SETTINGS, VERSIONS, {"engine": "openvino"})
    return store


def test_a_shard_is_complete_when_it_is_written(location: str):
    store = begun(location)
    with store.held():
        assert store.complete() == set()
        store.write("a/0.tar", b"rows", b"")
        store.write("images-000001", b"more", b'{"image": "x", "reason": "y"}\n')
        assert store.complete() == {"a/0.tar", "images-000001"}
        assert store.unreadable() == ["images-000001"]
        store.write("images-000001", b"again", b"")  # with what was unreadable mended
        assert store.unreadable() == []
    assert Store(location).complete() == {"a/0.tar", "images-000001"}
    files, root = fsspec.core.url_to_fs(location)
    assert files.cat_file(f"{root}/rows/images-000001.parquet") == b"again"


def test_a_job_goes_on_with_its_own_settings_alone(location: str):
    assert Store(location).begin(SETTINGS, VERSIONS, overwrite=False) == {}
    store = begun(location)
    store.write("0", b"rows", b"failures")
    assert store.begin(SETTINGS, VERSIONS, overwrite=False) == {"engine": "openvino"}
    with pytest.raises(JobError, match=r"other settings \(topk: 5 there, 3 here, torch: 2 there, 3 here\); give those"):
        store.begin({**SETTINGS, "topk": 3}, {"torch": "3"}, overwrite=False)
    assert store.complete() == {"0"}
    assert store.begin({**SETTINGS, "topk": 3}, VERSIONS, overwrite=True) == {}
    assert store.complete() == set()
    assert store.unreadable() == []


def test_a_folder_of_somebody_else_is_left_alone(location: str):
    files, root = fsspec.core.url_to_fs(location)
    files.makedirs(root, exist_ok=True)
    files.pipe_file(f"{root}/thesis.txt", b"years of work")
    for overwrite in (False, True):
        with pytest.raises(JobError, match=r"holds files that no job wrote \(job.json is missing\)"):
            Store(location).begin(SETTINGS, VERSIONS, overwrite=overwrite)
    files.pipe_file(f"{root}/job.json", b"{}")
    with pytest.raises(JobError, match=r"job.json is none of ours"):
        Store(location).begin(SETTINGS, VERSIONS, overwrite=True)
    files.pipe_file(f"{root}/job.json", b"{")
    with pytest.raises(JobError, match=r"job.json is damaged"):
        Store(location).begin(SETTINGS, VERSIONS, overwrite=True)
    assert files.cat_file(f"{root}/thesis.txt") == b"years of work"


@pytest.mark.parametrize("kind", ["path", "renaming"])
def test_what_fails_on_the_way_leaves_no_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    store = begun(str(tmp_path / "out") if kind == "path" else f"renaming://{tmp_path}/out")

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if kind == "path":
            patch.setattr(os, "replace", fails)
        else:
            patch.setattr(Renaming, "mv", fails)
        with pytest.raises(OSError, match="No space left"):
            store.write("0", b"rows", b"")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["job.json", "rows"]
    assert store.complete() == set()


def test_what_a_kill_left_half_written_does_not_count_and_is_cleared_away(tmp_path: Path):
    store = begun(str(tmp_path))
    with store.held():
        store.write("a/0", b"rows", b"")
    left = tmp_path / "rows" / "a" / ".1.parquet.0123abcd.tmp"
    left.write_bytes(b"ro")
    assert store.complete() == {"a/0"}
    with store.held():
        assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "rows"]


def hold(folder: str, held: Any, enough: Any) -> None:
    with Store(folder).held():
        held.set()
        enough.wait(60)


def test_one_process_at_a_time_writes_on_a_disk(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    held, enough = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), held, enough))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(JobError, match="in use by another process"), Store(str(tmp_path)).held():
            pass
    finally:
        enough.set()
        other.join()
    with Store(str(tmp_path)).held():
        pass


def test_a_job_that_does_not_begin_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError), Store(str(tmp_path / "new")).held():
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_can_be_read_by_people(tmp_path: Path):
    begun(str(tmp_path))
    content = json.loads((tmp_path / "job.json").read_text())
    assert content == {
        "settings": {**SETTINGS, "img_size": [64, 96]},
        "versions": VERSIONS,
        "chosen": {"engine": "openvino"},
    }
