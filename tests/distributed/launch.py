"""Starting processes that train together, and the small data set and recipe they train on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY
from tests.pocket import TRAINED, picture, write_broken

BIN = Path(sys.executable).parent
RECIPE: dict[str, Any] = {
    "model": "fastervit_0",
    "model_options": TRAINED,
    "img_size": [64],
    "device": "cpu",
    "workers": 0,
    "epochs": 2,
    "lr_batch": None,
    "auto_augment": "rand-m5-mstd0.5",
    "ema_decay": 0.9,
    "mesa": 0.1,
    "clip_grad": 1.0,
    "log_every": 100,
    "save_steps": 3,
    "keep_checkpoints": 100,
}
"""Nothing in it is drawn a process: no mixup, no drop path. 33 images make 4 updates of 8 in an epoch."""
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_", "MASTER_"))},
    "OMP_NUM_THREADS": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}


def write_data(folder: Path, *, train: int = 33, val: int = 17, broken: Sequence[int] = ()) -> Path:
    """Images of three classes; those of the validation set that ``broken`` names by their place cannot be read."""
    classes = ("ant", "bee", "cat")
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for index in range(count):
            place = folder / split / classes[index * 3 // count] / f"{index:03}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if split == "val" and index in broken:
                write_broken(place, "jpg")
            else:
                picture(first + index, size=(72, 66)).save(place)
    return folder


def write_recipe(path: Path, data: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**RECIPE, "data": str(data), **changes}))
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def started(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [os.fspath(part) for part in command],
        env={**ENVIRONMENT, **options.pop("environment", {})},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **{"cwd": REPOSITORY, **options},
    )
    try:
        yield process
    finally:
        children = descendants(process.pid)
        for pid in (process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def descendants(pid: int) -> list[int]:
    """The processes that come from one; torchrun starts its workers in sessions of their own."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def run(command: Sequence[str | os.PathLike[str]], *, seconds: float = 120, code: int = 0, **options: Any) -> str:
    """What a command prints; it must end in time, with this exit code."""
    with started(command, **options) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not done in {seconds} seconds: {(error.output or b'').decode()}") from error
        assert process.returncode == code, printed
    return printed


def torchrun(processes: int, *more: str) -> list[str]:
    return ["torchrun", "--standalone", "--nproc-per-node", str(processes), *more]


def run_jobs(folder: Path, processes: int, jobs: Sequence[Mapping[str, Any]], *, seconds: float = 500) -> list[Any]:
    """Do jobs, one after the other, on processes that are started once; see ``child``. Returns the results of each
    job: a list of what each process came to.
    """
    request = folder / f"jobs-{processes}-{len(list(folder.glob('jobs-*')))}.json"
    request.write_text(json.dumps(list(jobs)))
    launcher = [sys.executable] if processes == 1 else torchrun(processes)
    run([*launcher, "-m", "tests.distributed.child", request], seconds=seconds)
    told = [json.loads(request.with_suffix(f".{rank}").read_text()) for rank in range(processes)]
    return [list(each) for each in zip(*told, strict=True)]
