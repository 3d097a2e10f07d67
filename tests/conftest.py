"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Tests run in one process a core, on tiny networks: more threads would only wait for one another.
torch.set_num_threads(1)

# Before anything imports Triton: where there is no GPU, its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("ci", deadline=None, print_blob=True)
settings.load_profile("ci")


def shared_folder() -> Path:
    """Where the reference files and the sample data lie: beside a checkout, or where the variable says."""
    return Path(os.environ.get("OPENFASTERVIT_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture
def sample_data() -> Path:
    """Real photographs, unpacked; see CONTRIBUTING."""
    folder = os.environ.get("OPENFASTERVIT_SAMPLE_DATA")
    if not folder:
        pytest.skip("OPENFASTERVIT_SAMPLE_DATA does not name the folder of sample photographs")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that is marked ``early`` come first.

    Each process of pytest-xdist starts with its share of the tests as they lie, and one that has nothing left takes the
    later half of what another one has still to do. So what those files' tests share is made by the first process alone,
    and towards the end there are short tests to be given away.
    """
    early = {item.path for item in items if item.get_closest_marker("early")}
    items.sort(key=lambda item: item.path not in early)


def pytest_runtest_setup() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
