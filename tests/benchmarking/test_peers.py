"""Names of peers, and peers for sizes."""

import pytest
import timm
import torch

from openfastervit import FasterViT
from openfastervit.benchmarking.peers import DEFAULT_PEERS, build_network, resolve_peer
from openfastervit.models.factory import UnknownModelError


def test_short_names_are_of_timms_networks() -> None:
    assert all(timm.is_model(resolve_peer(name)) for name in DEFAULT_PEERS)
    assert resolve_peer("swin_tiny") == "swin_tiny_patch4_window7_224"
    assert resolve_peer("resnet50.a1_in1k") == "resnet50.a1_in1k"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swin_base", "swin_base_patch4_window12_384, swin_base_patch4_window7_224"),
        ("convnext_tyni", "convnext_tiny"),
        ("resnet50.mine", "'mine'"),
        ("zzzzzzzz", "list_models"),
    ],
)
def test_other_names_are_refused(name: str, says: str) -> None:
    with pytest.raises(UnknownModelError, match="peers: ") as error:
        resolve_peer(name)
    assert says in str(error.value)


@pytest.mark.parametrize("name", DEFAULT_PEERS)
def test_all_default_peers_take_other_sizes(name: str) -> None:
    size = (256, 320)
    with torch.device("meta"):
        network = build_network(resolve_peer(name), size, peer=True)
        assert network(torch.empty(1, 3, *size)).shape == (1, 1000)
    assert not network.training


def test_ours_take_options() -> None:
    network = build_network("fastervit_0", (64, 64), peer=False, options={"dim": 8})
    assert isinstance(network, FasterViT)
    assert network.stem.conv2.out_channels == 8
