"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Tests run in one process a core, on tiny networks: more threads would only wait for one another.
torch.set_num_threads(1)

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


def pytest_runtest_setup() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
