"""A checkpoint for all tests of the cluster."""

from pathlib import Path

import pytest

from tests.pocket import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "pocket.safetensors")
