"""Numbers that are none are an error, not a confident answer: some kernels would make numbers of them."""

import pytest
import torch

from openfastervit.inference import fold, load_classifier
from openfastervit.models import CheckpointError
from tests.networks import tiny
from tests.pocket import pocket, write_checkpoint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_of_weights(tmp_path, value):
    network = pocket()
    with torch.no_grad():
        network.stem.conv1.weight[0, 0, 0, 0] = value
    write_checkpoint(tmp_path / "diverged.safetensors", network)
    with pytest.raises(
        CheckpointError, match=r"diverged.safetensors.*stem.conv1.weight holds NaN or infinity.*earlier"
    ):
        load_classifier(tmp_path / "diverged.safetensors")


def test_sizes_and_norms_that_cannot_be_folded():
    for size in ((-3, 64), 31, (64,), (64, 64.0)):
        with pytest.raises(ValueError, match=r"at least 32|neither a side nor \(height, width\)"):
            fold(tiny(), size)
    network = tiny()
    network.stem.norm1 = torch.nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(ValueError, match="track_running_stats"):
        fold(network, 64)
