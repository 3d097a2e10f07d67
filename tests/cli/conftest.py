"""The command, run in this process, and what it is run on."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import openfastervit_cli
from tests.pocket import write_checkpoint, write_photos


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def names(folder: Path) -> list[str]:
    """Of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads for a network of this size wait for one another longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fastervit(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> Outcome:
        code = openfastervit_cli.main([str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def fails(fastervit: Run) -> Callable[..., str]:
    """Run a command that must fail, and return its error once it is one that a person can act on."""

    def run(*args: object, code: int = 1, says: Sequence[str]) -> str:
        outcome = fastervit(*args)
        assert outcome.code == code
        assert outcome.out == ""
        assert outcome.err.startswith("fastervit: error: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.endswith("\n")
        assert "Traceback" not in outcome.err
        for part in says:
            assert part in outcome.err
        return outcome.err

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "pocket.safetensors")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five images, to be left as it is."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder
