"""timm's own test-suite against our networks at full size."""

from pathlib import Path

import pytest

from tests.contract import timm_suite
from tests.networks import NAMES

needs_timm_tests = pytest.mark.skipif(
    not timm_suite.FOLDER.is_dir(), reason="timm's own tests are not here: `make setup` fetches them"
)
# Every test of timm's that is run for each network by name, less those that download weights.
EACH = (
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
)


def check(selection: str, tests: int, folder: Path) -> None:
    passed, failed, output = timm_suite.run(selection, folder)
    assert failed == 0, output[-6000:]
    # Their sizes are chosen by timm; a network may be too large for some tests, which timm then skips.
    assert passed >= tests, output[-2000:]


@needs_timm_tests
def test_smallest_network(tmp_path: Path) -> None:
    """All of timm's tests for one network; the whole family is `make test-slow`."""
    check("fastervit_0 and not pretrained", len(EACH), tmp_path)


@needs_timm_tests
def test_configurations_of_all(tmp_path: Path) -> None:
    """Configuration, heads and device handling of every network: no memory needed."""
    check("fastervit and test_model_default_cfgs", len(NAMES), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@needs_timm_tests
@pytest.mark.parametrize("name", NAMES)
def test_whole_family(name: str, tmp_path: Path) -> None:
    others = [other for other in NAMES if other.startswith(f"{name}_")]
    check(" and not ".join([name, "pretrained", *others]), len(EACH) - 3, tmp_path)
