"""Networks by name."""

import pytest
import torch

import openfastervit
from openfastervit import UnknownModelError


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fastervit_7", "fastervit_6"),
        ("fastervit-0", "fastervit_0"),
        ("faster_vit_4_21k_300", "faster_vit_4_21k_"),
        ("FasterViT_2", "fastervit_"),
        ("resnet50", "fastervit_"),
        ("", "fastervit_"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=near) as caught:
        openfastervit.create_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "hint"),
    [("ct_size", "carrier_size"), ("in_dim", "stem_dim"), ("num_class", "num_classes"), ("zzz", "options are")],
)
def test_unknown_options_suggest_the_nearest(option: str, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        openfastervit.create_model("fastervit_0", **{option: 1})


def test_overrides_reach_the_network() -> None:
    with torch.device("meta"):
        model = openfastervit.create_model(
            "faster_vit_2_224", num_classes=3, in_chans=4, drop_path_rate=0.1, drop_rate=0.2
        )
    assert (model.num_classes, model.in_chans, model.drop_rate) == (3, 4, 0.2)
    assert model.stages[3].attention.blocks[-1].window.drop_path.drop_prob == pytest.approx(0.1)


def test_version_and_public_names() -> None:
    from importlib.metadata import version

    assert openfastervit.__version__ == version("openfastervit")
    assert all(hasattr(openfastervit, name) for name in openfastervit.__all__)
