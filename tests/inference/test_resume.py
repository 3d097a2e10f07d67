"""Jobs that are ended anywhere, and whose files are damaged anywhere, end as those that never were."""

import contextlib
import errno
import io
import itertools
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfastervit.inference import Job, JobError, journal
from openfastervit.inference.resume import GrowingRows

SETTINGS: dict[str, Any] = {"topk": 5, "size": [64, 64], "model": None}
IMAGES, BATCH = 23, 4
BROKEN = frozenset({0, 5, 6, 7, 13, 22})


class Ended(Exception):  # noqa: N818
    """Whatever ends a process."""


def row(image: int) -> bytes:
    return f'"{image}\n.png",{"x" * (image % 7)}\n'.encode()


def work(rows: GrowingRows, end_at: int | None = None) -> None:
    """The images that are not done; before image ``end_at`` something happens."""
    for image in range(rows.done, IMAGES):
        if image == end_at:
            raise Ended
        if image in BROKEN:
            rows.fail(f"{image}.png", "broken")
        else:
            rows.add(row(image))
        if (image + 1) % BATCH == 0:
            rows.mark(image + 1)
    if end_at == IMAGES:
        raise Ended
    rows.finish(IMAGES)


def run(path: Path, end_at: int | None = None, overwrite: bool = False, **changes: Any) -> int:
    """One process; how many images were done when it began."""
    with Job(path, {**SETTINGS, **changes}).begin(header=b"header\n", overwrite=overwrite) as rows:
        done = rows.done
        work(rows, end_at)
    return done


def end(path: Path, at: int, **changes: Any) -> None:
    with pytest.raises(Ended):
        run(path, at, **changes)


WHOLE = b"header\n" + b"".join(row(image) for image in range(IMAGES) if image not in BROKEN)


def check(path: Path) -> None:
    """The job is complete, and nothing else is there."""
    assert path.read_bytes() == WHOLE
    told = [json.loads(line) for line in path.with_name("rows.csv.unreadable.jsonl").read_text().splitlines()]
    assert told == [{"image": f"{image}.png", "reason": "broken"} for image in sorted(BROKEN)]
    record = json.loads(path.with_name("rows.csv.json").read_text())
    assert (record["images"], record["unreadable"], record["settings"]) == (IMAGES, len(BROKEN), SETTINGS)
    assert names(path.parent) == ["rows.csv", "rows.csv.json", "rows.csv.unreadable.jsonl"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


@pytest.mark.parametrize("end_at", range(IMAGES + 1))
def test_no_batch_that_was_done_is_lost(out: Path, end_at: int):
    end(out, end_at)
    assert not out.exists()
    assert out.with_name("rows.csv.part").exists() == (end_at >= BATCH)
    assert run(out) == end_at // BATCH * BATCH
    check(out)


@settings(max_examples=200)
@given(
    ends=st.lists(st.integers(0, IMAGES), min_size=1, max_size=4),
    damages=st.lists(
        st.tuples(
            st.sampled_from(["rows", "unreadable.jsonl", "journal.jsonl"]),
            st.sampled_from(["cut", "garble", "append", "blank", "remove"]),
            st.floats(0, 1, exclude_max=True),
            st.binary(min_size=1, max_size=40),
        ),
        max_size=4,
    ),
)
def test_whatever_is_damaged_is_made_again(ends: list[int], damages: list[tuple[str, str, float, bytes]]):
    """Power cuts leave files short, with blocks of zeros, or with what was there before."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):  # which takes long, and changes nothing here
        out = Path(folder) / "rows.csv"
        for number, end_at in enumerate(ends):
            with contextlib.suppress(Ended):
                if Job(out, SETTINGS).look() is None:
                    run(out, end_at)
            for name, kind, place, data in damages[number :: len(ends)]:
                damage(out.with_name("rows.csv.part") / name, kind, place, data)
        if Job(out, SETTINGS).look() is None:
            run(out)
        check(out)


def damage(path: Path, kind: str, place: float, data: bytes) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    at = int(place * (len(content) + 1))
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": content[:at],
                "garble": content[:at] + data + content[at + len(data) :],
                "append": content + data,
                "blank": content[:at] + bytes(len(content) - at),
            }[kind]
        )


def test_failures_of_earlier_processes_are_told(out: Path):
    end(out, 15)
    with contextlib.suppress(Ended), Job(out, SETTINGS).begin() as rows:
        assert rows.done == 12
        assert rows.failed == 4
        assert list(rows.failures()) == [(f"{image}.png", "broken") for image in (0, 5, 6, 7)]
        raise Ended
    run(out)
    assert [image for image, _ in Job(out, SETTINGS).failures()] == [f"{image}.png" for image in sorted(BROKEN)]


def test_a_complete_job_is_known(out: Path):
    job = Job(out, SETTINGS)
    assert job.look() is None
    run(out)
    assert job.look() == (IMAGES, len(BROKEN))
    with pytest.raises(JobError, match="is complete"):
        run(out)
    check(out)


def test_what_an_unfinished_job_was_begun_with_is_held(out: Path):
    end(out, 15)
    before = (out.with_name("rows.csv.part") / "rows").read_bytes()
    with pytest.raises(
        JobError, match=r"unfinished job with other settings \(topk: 5 there, 3 here, extra: None there"
    ):
        run(out, topk=3, extra=True)
    with pytest.raises(JobError, match=r"torch: None there, 2 here"):
        Job(out, SETTINGS, {"torch": "2"}).look()
    assert (out.with_name("rows.csv.part") / "rows").read_bytes() == before
    assert run(out) == 12


def test_versions_count_for_an_unfinished_job_alone(out: Path):
    with Job(out, SETTINGS, {"torch": "1"}).begin(header=b"header\n") as rows:
        work(rows)
    assert Job(out, SETTINGS, {"torch": "2"}).look() == (IMAGES, len(BROKEN))


def test_overwriting_keeps_the_old_file_until_the_new_one_is_complete(out: Path):
    out.write_text("old")
    with pytest.raises(JobError, match="is there already"):
        run(out)
    end(out, 15, overwrite=True)
    assert out.read_text() == "old"
    assert run(out) == 12  # the same, without --overwrite
    check(out)
    end(out, 15, overwrite=True)
    assert out.read_bytes() == WHOLE
    assert run(out, overwrite=True) == 0
    check(out)


def test_overwriting_drops_an_unfinished_job_of_other_settings(out: Path):
    end(out, 15, topk=3)
    assert run(out, overwrite=True) == 0
    check(out)


def test_a_file_that_was_changed_is_not_taken_for_the_complete_one(out: Path):
    run(out)
    with out.open("ab") as file:
        file.write(b"mine\n")
    with pytest.raises(JobError, match="is there already"):
        run(out)


@pytest.mark.parametrize(("converts", "overwrites"), [(False, True), (True, False)])
def test_killed_at_any_step_of_finishing(out: Path, converts: bool, overwrites: bool):
    """After each call that changes something on the disk, in turn, the process is gone."""
    options: dict[str, Any] = {"header": b"header\n", "convert": shutil.copyfile if converts else None}
    gone, number = True, 0
    while gone:
        path = out.parent / str(number) / "rows.csv"
        if overwrites:
            run(path, topk=3)
        with pytest.raises(Ended), Job(path, SETTINGS).begin(**options, overwrite=overwrites) as rows:
            work(rows, IMAGES)
        child = os.fork()
        if child == 0:
            try:
                die_after(number)
                with Job(path, SETTINGS).begin(**options) as rows:
                    work(rows)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        gone = os.waitstatus_to_exitcode(status) == 9
        assert gone or status == 0
        if Job(path, SETTINGS).look() is None:
            with Job(path, SETTINGS).begin(**options) as rows:
                assert rows.done >= 20  # nothing is classified again but the last batch
                work(rows)
        check(path)
        number += 1
    assert number > 10


def die_after(number: int) -> None:
    """Have this process gone at the end of the call of that number which changes something on the disk."""
    calls = itertools.count()

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                if next(calls) == number:
                    os._exit(9)

        return call

    for owner, name in ((os, "replace"), (journal, "_write"), (shutil, "copyfile")):
        setattr(owner, name, dying(getattr(owner, name)))
    for name in ("write_text", "rmdir", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))


def test_one_process_at_a_time(out: Path):
    with contextlib.suppress(Ended), Job(out, SETTINGS).begin() as rows:
        rows.add(b"1\n")
        rows.mark(1)
        with pytest.raises(JobError, match="in use by another process"):
            Job(out, SETTINGS).look()
        for overwrite in (False, True):
            with pytest.raises(JobError, match="in use by another process"):
                run(out, overwrite=overwrite)
        raise Ended
    with Job(out, SETTINGS).begin() as rows:
        assert rows.done == 1


def test_a_full_disk_names_the_file_and_keeps_what_is_done(out: Path, monkeypatch: pytest.MonkeyPatch):
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 60 and str(self.name).endswith("rows"):
                if len(data) > 3:
                    return super().write(data[:3])  # the last of the space
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "FileIO", Full)
        with pytest.raises(OSError, match="No space left") as error:
            run(out)
    assert error.value.filename == str(out.with_name("rows.csv.part") / "rows")
    assert run(out) >= BATCH
    check(out)


def test_damaged_settings_are_told(out: Path):
    end(out, 15)
    (out.with_name("rows.csv.part") / "settings.json").write_text("{")
    with pytest.raises(JobError, match=r"settings.json is damaged; give --overwrite"):
        run(out)
    assert run(out, overwrite=True) == 0
    check(out)


def test_what_is_not_ours_in_the_folder_is_not_removed(out: Path):
    mine = out.with_name("rows.csv.part") / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(OSError, match="not empty"):
        run(out, overwrite=True)
    assert mine.read_text() == "precious"
    assert out.read_bytes() == WHOLE


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "rows.csv").symlink_to(tmp_path / "there" / "real.csv")
    run(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").is_symlink()
    assert (tmp_path / "there" / "real.csv").read_bytes() == WHOLE


def test_a_file_in_the_way_is_named(out: Path):
    out.with_name("rows.csv.part").write_text("of an older version")
    with pytest.raises(JobError, match=r"rows.csv.part is in the way: remove it"):
        run(out)
    assert out.with_name("rows.csv.part").read_text() == "of an older version"


def test_folders_are_made(tmp_path: Path):
    run(tmp_path / "new" / "folder" / "rows.csv")
    check(tmp_path / "new" / "folder" / "rows.csv")
