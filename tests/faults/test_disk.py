"""Full disks, failing system calls, kills at any moment, flipped bits: a checkpoint that was saved is never lost."""

import contextlib
import errno
import functools
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from openfastervit.atomic import size_in_words, write_atomically
from openfastervit.training.checkpoint_store import damage
from openfastervit.training.run_folder import RunFolder

SIZE = 40_000


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openfastervit.training.run_folder.describe_start", lambda command: {"command": command})


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one, for flushing to a disk takes long. A kill loses no page of either."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@functools.cache
def content(step: int, name: str) -> bytes:
    """What a file of a step's checkpoint holds: different for each."""
    return random.Random(f"{step} {name}").randbytes(SIZE)


def write(step: int, name: str) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        with path.open("wb") as file:
            for start in range(0, SIZE, SIZE // 4):
                file.write(content(step, name)[start : start + SIZE // 4])
                file.flush()

    return to


FILES = ("model.safetensors", "ema.safetensors", "training_state.pt")


def save(run: RunFolder, step: int, keep: int = 2) -> Path:
    return run.save_checkpoint(step, {name: write(step, name) for name in FILES}, keep)


def newest_step(run: RunFolder) -> int:
    """The step of the newest checkpoint, after comparing each of its bytes with what was to be saved."""
    found = run.newest()
    assert found is not None
    step, path = found
    assert {name: (path / name).read_bytes() for name in FILES} == {name: content(step, name) for name in FILES}
    return step


def leftovers(run: RunFolder) -> list[Path]:
    return [path for path in run.path.rglob(".*") if path.name != ".lock"]


@pytest.fixture
def run(folder: Path) -> Iterator[RunFolder]:
    with RunFolder.create(folder / "run", "a: 1\n", seed=0, command=[]) as run:
        yield run


# --- A full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted here; the limit on file sizes is tested all the same")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """No file can grow larger than that: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignoring = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignoring)


def plain(path: Path) -> None:
    path.write_bytes(bytes(3_000_000))


def tensors(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(750_000)}, path)


def state(path: Path) -> None:
    torch.save({"weight": torch.zeros(750_000)}, path)


def state_by_handle(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"weight": torch.zeros(750_000)}, file)


WRITERS = [plain, tensors, state, state_by_handle]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_while_a_checkpoint_is_written(tiny_disk: Path, writer: Callable[[Path], None]) -> None:
    with RunFolder.create(tiny_disk / "run", "a: 1\n", seed=0, command=[]) as run:
        save(run, 5)
        free = shutil.disk_usage(tiny_disk).free
        with pytest.raises(OSError, match="free on that disk") as caught:
            run.save_checkpoint(6, {"model.safetensors": write(6, "model.safetensors"), "big.pt": writer})
        assert caught.value.filename == str(run.path / "checkpoints" / "step-00000006" / "big.pt")
        assert "what was saved before is whole (step 5)" in caught.value.strerror
        assert caught.value.errno == (errno.EIO if writer is state else errno.ENOSPC)  # torch does not tell
        assert f"({size_in_words(free)} free on that disk before it)" in caught.value.strerror
        assert newest_step(run) == 5
        assert leftovers(run) == []
        del caught  # its traceback holds torch's open file
        gc.collect()
        assert shutil.disk_usage(tiny_disk).free == free
        save(run, 6)  # smaller, it fits
        assert newest_step(run) == 6


def test_tables_on_a_full_disk(tiny_disk: Path) -> None:
    with RunFolder.create(tiny_disk / "run", "a: 1\n", seed=0, command=[]) as run:
        run.append_metrics({"step": 1, "loss": 2.0})
        run.add_skipped([("a.jpg", "broken")], epoch=1, step=1)
        with pytest.raises(OSError, match="No space"):
            (tiny_disk / "ballast").write_bytes(bytes(4_000_000))
        metrics, skipped = run.metrics_csv.read_bytes(), run.skipped_csv.read_bytes()
        with pytest.raises(OSError, match=r"0 bytes free on that disk\); what was there before is whole") as caught:
            run.append_metrics({"step": 2, "loss": 1.0})
        assert caught.value.filename == str(run.metrics_csv)
        with pytest.raises(OSError, match="No space") as caught:
            run.add_skipped([("b.jpg" * 1000, "broken")] * 9, epoch=1, step=1)
        assert caught.value.filename == str(run.skipped_csv)
        assert (run.metrics_csv.read_bytes(), run.skipped_csv.read_bytes()) == (metrics, skipped)
        assert leftovers(run) == []
        (tiny_disk / "ballast").unlink()
        run.append_metrics({"step": 2, "loss": 1.0})
        assert run.metrics_csv.read_bytes() == metrics + b"2,1.0\n"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_grow(run: RunFolder, writer: Callable[[Path], None]) -> None:
    save(run, 5)
    with limited_file_size(1_000_000), pytest.raises(OSError, match=r"whole \(step 5\)") as caught:
        run.save_checkpoint(5, {"model.safetensors": write(6, "model.safetensors"), "big.pt": writer})
    assert caught.value.errno == (errno.EIO if writer is state else errno.EFBIG)
    assert newest_step(run) == 5
    assert leftovers(run) == []


def test_a_run_that_cannot_even_start_leaves_nothing(tmp_path: Path) -> None:
    with limited_file_size(100), pytest.raises(OSError, match="free on that disk"):
        RunFolder.create(tmp_path / "run", "a: 1\n" * 100, seed=0, command=[])
    assert list(tmp_path.iterdir()) == []


# --- System calls that fail -------------------------------------------------------------------------------------------

CALLS = ("replace", "fsync", "link", "rmdir", "mkdir", "unlink")


class Failing:
    """Lets the calls of the operating system pass up to the ``number``-th, which fails; later ones too if it stays."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, error: type[BaseException], *, stays: bool) -> None:
        self.number, self.error, self.stays = number, error, stays
        self.calls = 0
        for name in CALLS:
            patch.setattr(os, name, self.around(name, getattr(os, name)))

    def around(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.number or (self.stays and self.calls > self.number):
                raise (OSError(errno.EIO, "injected", name) if self.error is OSError else self.error())
            return real(*args, **kwargs)

        return call

    @property
    def met(self) -> bool:
        return self.calls >= self.number


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [2, 3], ids=["the same step", "the next step"])
@pytest.mark.parametrize("keep", [1, 2])
def test_any_call_may_fail_while_saving(
    folder: Path, error: type[BaseException], *, stays: bool, step: int, keep: int
) -> None:
    number = 0
    while True:
        number += 1
        run = RunFolder.create(folder / f"run{number}", "a: 1\n", seed=0, command=[])
        save(run, 1)
        save(run, 2)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            failing = Failing(patch, number, error, stays=stays)
            try:
                save(run, step, keep)
                failed = False
            except error:
                failed = True
        if not stays and failed:
            assert newest_step(run) in {2, step}
        run.close()
        with RunFolder.resume(run.path) as run:
            found = newest_step(run)
            assert found in {2, step}, f"call {number}"
            assert failed or found == step
            assert [damage(path) for _, path in run.checkpoints()].count(None) == len(run.checkpoints())
            assert leftovers(run) == []
            save(run, 4, keep=1)
            assert [step for step, _ in run.checkpoints()] == [4]
            assert newest_step(run) == 4
        if not failing.met:
            assert not failed
            assert not warned
            break
        shutil.rmtree(run.path)
    assert number > 10


def test_any_call_may_fail_while_writing_a_file(folder: Path) -> None:
    path = folder / "metrics.csv"
    for error in (OSError, KeyboardInterrupt):
        number = 0
        while True:
            number += 1
            path.write_bytes(b"old")
            with pytest.MonkeyPatch.context() as patch:
                failing = Failing(patch, number, error, stays=False)
                with contextlib.suppress(error):
                    write_atomically(path, b"new")
            assert path.read_bytes() in (b"old", b"new")
            assert list(folder.iterdir()) == [path]
            if not failing.met:
                break
        assert path.read_bytes() == b"new"
        assert number == 4  # the file's fsync, replace, the folder's fsync; then none


def test_a_failing_disk_is_told_with_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(folder / "metrics.csv", b"1")
    assert caught.value.filename == str(folder / "metrics.csv")


def test_any_call_may_fail_while_publishing(run: RunFolder) -> None:
    old, new = (save(run, step) / FILES[0] for step in (1, 2))
    number = 0
    while True:
        number += 1
        run.publish("best.safetensors", old)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, number, OSError, stays=False)
            with contextlib.suppress(OSError):
                run.publish("best.safetensors", new)
        assert (run.path / "best.safetensors").read_bytes() in (content(1, FILES[0]), content(2, FILES[0]))
        if not failing.met:
            break
        if number != 4:  # the removal of the temporary name itself; resuming does it
            assert leftovers(run) == []
    assert number == 5


def test_all_is_on_the_disk_before_it_has_its_name(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut leaves depends on the order: contents first, then the name, then the name flushed too."""
    flushed: list[int] = []
    renamed: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        real_fsync(handle)

    def replace(old: Path, new: Path) -> None:
        if not Path(new).name.startswith("."):
            parts = [Path(old), *Path(old).rglob("*")]
            assert {part.stat().st_ino for part in parts} <= set(flushed)
            renamed.append(Path(new).name)
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = run.save_checkpoint(1, {name: write(1, name) for name in FILES} | {"folder": _folder})
    assert flushed[-1] == path.parent.stat().st_ino
    run.append_metrics({"step": 1})
    assert flushed[-1] == run.path.stat().st_ino
    run.publish("best.safetensors", path / FILES[0])
    assert flushed[-2:] == [run.path.stat().st_ino] * 2
    assert renamed == ["step-00000001", "metrics.csv", "best.safetensors"]


def _folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_bytes(b"1")


# --- A kill -----------------------------------------------------------------------------------------------------------


def _save_for_ever(path: Path, told: int) -> None:
    """Save checkpoints, each now and then twice, until killed; tell of each that is saved."""
    run = RunFolder.resume(path)
    newest = run.newest()
    step = newest[0] if newest else 0
    run.truncate_metrics(step)
    while True:
        step += 1
        run.add_skipped([(f"{step}.jpg", "broken")], epoch=1, step=step)
        run.append_metrics({"step": step, "loss": 1 / step})  # before the checkpoint, so that it lacks no row
        for _ in range(1 + step % 2):
            save(run, step)
            os.write(told, step.to_bytes(8, "little"))
        run.publish("last.safetensors", path / "checkpoints" / f"step-{step:08d}" / FILES[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # later Pythons: on forking with threads
def test_killed_at_random_moments(folder: Path) -> None:
    path = folder / "run"
    RunFolder.create(path, "a: 1\n", seed=0, command=[]).close()
    last = 0
    for _ in range(20):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                _save_for_ever(path, writing)
            finally:
                os._exit(1)
        os.close(writing)
        first = os.read(reading, 8)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        with open(reading, "rb") as pipe:
            told = first + pipe.read()
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child failed by itself"
        last = max(last, int.from_bytes(told[-8:], "little"))
        with RunFolder.resume(path) as run:
            step = newest_step(run)
            assert step in {last, last + 1}
            assert leftovers(run) == []
            run.truncate_metrics(step)
            numbers = range(1, step + 1)
            assert run.metrics_csv.read_text() == "".join(["step,loss\n", *(f"{n},{1 / n!r}\n" for n in numbers)])
            rows = [f"{n}.jpg,broken,train,1,{n}\n" for n in numbers]
            assert run.skipped_csv.read_text() == "".join(["image,reason,split,epoch,step\n", *rows])
            published = path / "last.safetensors"
            if published.exists():
                assert published.read_bytes() in {content(step - back, FILES[0]) for back in range(3)}
    assert last > 20


# --- Damage afterwards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_is_found_and_the_one_before_is_taken(run: RunFolder, name: str) -> None:
    save(run, 1)
    path = save(run, 2) / name
    whole = path.read_bytes()
    rng = random.Random(name)

    def flipped() -> bytes:
        at = rng.randrange(len(whole))
        return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]

    damages = [flipped() for _ in range(20)] + [b"", whole[:-3], whole[: len(whole) // 2], bytes(len(whole))]
    for damaged in damages:
        if name == "manifest.json":
            with contextlib.suppress(ValueError):  # a flip may turn a space into another, or change a letter's case
                if json.loads(damaged) == json.loads(whole):
                    continue
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"step-00000002 is damaged: .*; the checkpoint of step 1 is taken"):
            assert newest_step(run) == 1
    path.unlink()
    with pytest.warns(UserWarning, match=f"{name} is missing"):
        assert newest_step(run) == 1
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_step(run) == 2


def test_going_on_from_an_older_one_replaces_the_damaged(run: RunFolder) -> None:
    save(run, 10)
    (save(run, 20) / FILES[0]).write_bytes(b"")
    save(run, 15, keep=1)
    assert [step for step, _ in run.checkpoints()] == [15]


def test_no_silent_start_from_the_beginning_where_all_are_damaged(run: RunFolder) -> None:
    for step in (1, 2):
        (save(run, step) / FILES[2]).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints is whole \(.*training_state.pt is missing"):
        run.newest()
