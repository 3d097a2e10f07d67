"""A citizen of timm and Hugging Face: what their users call, as they call it."""

import copy
import fnmatch
import subprocess
import sys
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.models._manipulate import group_parameters
from torch import nn

import openfastervit
from openfastervit.models.fastervit import ALIASES, VARIANTS
from tests.networks import HAT, KINDS, NAMES, TINY, images, tiny

every_variant = pytest.mark.parametrize("name", NAMES)
every_kind = pytest.mark.parametrize("name", KINDS)


def test_registered_on_import() -> None:
    assert timm.list_models(module="fastervit") == sorted(NAMES, key=timm.list_models("fastervit*").index)
    assert set(timm.list_models("fastervit*")) == set(NAMES) == set(openfastervit.list_models())
    tagged = set(timm.list_pretrained("fastervit*"))
    assert tagged == {f"{n}.{'in21k_ft_in1k' if '_w' in n else 'in1k'}" for n in NAMES}
    assert openfastervit.list_models("*_w*") == [n for n in NAMES if "_w" in n]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_aliases(alias: str, name: str) -> None:
    with torch.device("meta"):
        ours, theirs = openfastervit.create_model(alias), timm.create_model(alias)
    assert ours.default_cfg["architecture"] == theirs.default_cfg["architecture"] == name


def test_alias_table_is_complete() -> None:
    released = [f"faster_vit_{i}_224" for i in range(7)] + [f"faster_vit_4_21k_{s}" for s in (224, 384, 512, 768)]
    assert set(released) <= set(ALIASES)
    assert {f"{name}_any_res" for name in released} <= set(ALIASES)


# The table of the specification, typed in again.
SPECIFIED = {
    "fastervit_0": ((2, 3, 6, 5), 64, 64, (2, 4, 8, 16), 0.2, None, 0.875, 31_404_840, 3.492),
    "fastervit_1": ((1, 3, 8, 5), 80, 32, (2, 4, 8, 16), 0.2, None, 1.0, 53_366_696, 5.503),
    "fastervit_2": ((3, 3, 8, 5), 96, 64, (2, 4, 8, 16), 0.2, None, 1.0, 75_923_816, 8.975),
    "fastervit_3": ((3, 3, 12, 5), 128, 64, (2, 4, 8, 16), 0.3, 1e-5, 1.0, 159_547_944, 18.708),
    "fastervit_4": ((3, 3, 12, 5), 196, 64, (4, 8, 16, 32), 0.3, 1e-5, 1.0, 365_555_712, 43.228),
    "fastervit_5": ((3, 3, 12, 5), 320, 64, (4, 8, 16, 32), 0.3, 1e-5, 1.0, 957_520_552, None),
    "fastervit_6": ((3, 3, 16, 8), 320, 64, (4, 8, 16, 32), 0.5, 1e-5, 1.0, 1_360_328_872, None),
    "fastervit_4_w14_224": ((3, 3, 12, 5), 196, 64, (4, 8, 16, 32), 0.42, 1e-5, 0.95, 271_944_224, 41.590),
    "fastervit_4_w24_384": ((3, 3, 12, 5), 196, 64, (4, 8, 16, 32), 0.42, 1e-5, 1.0, 271_944_224, 126.565),
    "fastervit_4_w32_512": ((3, 3, 12, 5), 196, 64, (4, 8, 16, 32), 0.42, 1e-5, 1.0, 271_944_224, None),
    "fastervit_4_w48_768": ((3, 3, 12, 5), 196, 64, (4, 8, 16, 32), 0.42, 1e-5, 0.93, 271_944_224, None),
}


@every_variant
def test_the_family_is_as_specified(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    depths, dim, stem_dim, heads, drop_path, layer_scale, crop, parameters, gmacs = SPECIFIED[name]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    attention = [stage.attention for stage in list(model.stages)[2:]]
    assert tuple(len(stage.blocks) for stage in list(model.stages)[:2]) == depths[:2]
    assert tuple(len(stage.blocks) for stage in attention) == depths[2:]
    assert (model.stem.conv1.out_channels, model.stem.conv2.out_channels) == (stem_dim, dim)
    assert tuple(stage.blocks[0].window.attn.num_heads for stage in attention) == heads[2:]
    assert attention[1].blocks[-1].window.drop_path.drop_prob == pytest.approx(drop_path)
    hierarchical = "_w" not in name
    assert (attention[0].carrier_init is not None) == hierarchical
    assert attention[1].carrier_init is None
    assert attention[0].blocks[-1].propagate_carriers == (layer_scale is not None and hierarchical)
    assert getattr(attention[0].blocks[0].window.scale1, "init_value", None) == layer_scale
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    cfg = model.default_cfg
    size = int(name.rsplit("_", 1)[1]) if "_w" in name else 224
    assert cfg["input_size"] == (3, size, size)
    assert cfg["crop_pct"] == crop
    assert (cfg["crop_mode"] == "squash") == ("_w" in name)
    assert cfg["interpolation"] == "bicubic"
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    assert cfg["hf_hub_id"] == "ahatamiz/FasterViT"
    if "_w" in name:
        window = int(name.split("_w")[1].split("_")[0])
        assert [stage.window_size for stage in attention] == [(window, window), (window // 2, window // 2)]
        assert cfg["hf_hub_filename"] == f"fastervit_4_21k_{size}_w{window}.pth.tar"
    else:
        assert [stage.window_size for stage in attention] == [(7, 7), (7, 7)]
        assert [stage.carrier_size for stage in attention] == [2, 0]
        assert cfg["hf_hub_filename"] == f"{name}_224_1k.pth.tar"
    if gmacs is not None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=5.01e-4)


@every_kind
def test_features_only(name: str) -> None:
    base = {**TINY, "drop_path_rate": 0.0}
    model = timm.create_model(name, features_only=True, **base).eval()
    assert model.feature_info.channels() == [16, 32, 64, 128]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for size in ((224, 224), (97, 161)):
        maps = model(images(*size))
        assert [m.shape[1:] for m in maps] == [
            (c, -(-size[0] // r), -(-size[1] // r)) for c, r in zip((16, 32, 64, 128), (4, 8, 16, 32), strict=True)
        ]
    some = timm.create_model(name, features_only=True, out_indices=(1, 3), **base).eval()
    assert [m.shape[1] for m in some(images(64, 64))] == [32, 128]
    getter = openfastervit.create_model(name, features_only=True, feature_cls="getter", **base).eval()
    assert [m.shape[1] for m in getter(images(64, 64))] == [16, 32, 64, 128]


@every_kind
def test_features_are_the_network_s_own(name: str, tmp_path: Any) -> None:
    """features_only from a checkpoint gives exactly the maps of the network with those weights."""
    model = tiny(name).eval()
    path = openfastervit.save_checkpoint(model, tmp_path / "weights.safetensors")
    features = openfastervit.create_model(
        name, checkpoint=path, features_only=True, out_indices=(0, 2, 3), **{**TINY, "num_classes": 0}
    ).eval()
    x = images(130, 224)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[0, 2, 3], intermediates_only=True)
        for one, other in zip(features(x), expected, strict=True):
            assert torch.equal(one, other)


@every_kind
def test_classifier(name: str) -> None:
    model = tiny(name).eval()
    x = images(96, 96)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 3, 3)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(pre_logits, features.mean((2, 3)))
    assert model.get_classifier() is model.head.fc
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == 3
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(4, "catavgmax")
    assert model(x).shape == (2, 4)
    assert model.head_hidden_size == 2 * model.num_features
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_input_channels(channels: int) -> None:
    model = tiny(HAT, in_chans=channels).eval()
    assert model(images(64, 64, channels=channels)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"takes {channels}"):
        model(images(64, 64, channels=channels + 1))


@every_kind
def test_forward_intermediates(name: str) -> None:
    model = tiny(name).eval()
    x = images(96, 128)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        assert len(maps) == 4
        assert torch.equal(model.forward_intermediates(x, indices=1, intermediates_only=True)[0], maps[3])
        assert torch.equal(model.forward_intermediates(x, indices=[-2], intermediates_only=True)[0], maps[2])
        early, taken = model.forward_intermediates(x, indices=[1], stop_early=True)
        assert torch.equal(early, maps[1])
        assert torch.equal(taken[0], maps[1])
        normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
        torch.testing.assert_close(normed[3], final)
        assert torch.equal(normed[2], maps[2])
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@every_kind
def test_pruned_to_a_stage(name: str) -> None:
    model = tiny(name).eval()
    x = images(128, 128)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        for i in range(4):
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([i], prune_norm=True) == [i]
            torch.testing.assert_close(pruned.forward_features(x), maps[i])
            assert pruned.num_features == maps[i].shape[1]
            assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


@every_variant
def test_parameter_groups(name: str) -> None:
    """Layer-wise learning rates see the network's depth; no weight decay names parameters that exist."""
    model = tiny(name, depths=(1, 2, 3, 2))
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = [key for key, _ in model.named_parameters()]
    assert set(groups) == set(names)
    assert groups["stem.conv1.weight"] == 0
    order = [
        groups[key]
        for key in (
            "stages.0.blocks.0.conv1.weight",
            "stages.1.blocks.1.conv1.weight",
            "stages.2.attention.blocks.0.window.attn.qkv.weight",
            "stages.2.attention.blocks.2.window.attn.qkv.weight",
            "stages.3.attention.blocks.1.window.attn.qkv.weight",
        )
    ]
    assert order == sorted(order)
    assert len(set(order)) == 5
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) <= 6
    skipped = model.no_weight_decay()
    assert skipped
    assert all(any(fnmatch.fnmatch(key, pattern) for key in names) for pattern in skipped)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 5


@every_variant
def test_unknown_options_raise(name: str) -> None:
    with torch.device("meta"):
        for create in (timm.create_model, openfastervit.create_model):
            with pytest.raises(TypeError, match="not_an_option"):
                create(name, not_an_option=1)
    with pytest.raises(TypeError, match="carrier_size"):
        openfastervit.create_model(name, ct_size=2)


def test_ema_and_timm_utilities() -> None:
    from timm.utils import ModelEmaV3

    model = tiny(HAT)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update(model)
    torch.testing.assert_close(ema.module.stem.conv1.weight, model.stem.conv1.weight - 0.5, rtol=1e-5, atol=1e-5)
    ema.module.eval()(images(64, 64))


@every_kind
@pytest.mark.parametrize(("size", "windows"), [((256, 320), "pad"), ((256, 320), "fit"), ((96, 96), "fit")])
def test_timm_hub_round_trip(name: str, size: tuple[int, int], windows: str, tmp_path: Any) -> None:
    """Resized, exported the way timm pushes to a hub, created again: the same function."""
    from timm.models import save_for_hf

    model = timm.create_model(name, **TINY).eval()
    model.set_input_size(size, windows=windows)
    save_for_hf(model, tmp_path)
    restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(*size)
    with torch.no_grad():
        assert torch.equal(restored(x), model(x))


def test_sync_batch_norm_conversion() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(tiny(HAT))
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == 2 + 4 + 1


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def backbone_config(**options: Any) -> Any:
    from transformers import TimmBackboneConfig

    return TimmBackboneConfig(
        backbone="fastervit_0", out_indices=[0, 1, 2, 3], use_pretrained_backbone=False, **options
    )


def test_upernet_takes_the_backbone() -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(backbone_config=backbone_config(), num_labels=5, hidden_size=32, auxiliary_in_channels=256)
    model = UperNetForSemanticSegmentation(config).train()
    x = images(128, 160)
    out = model(x, labels=torch.randint(0, 5, (2, 128, 160)))
    assert out.logits.shape == (2, 5, 128, 160)
    out.loss.backward()
    backbone = {key: p for key, p in model.named_parameters() if key.startswith("backbone.")}
    assert backbone
    assert all(p.grad is not None for p in backbone.values())


def test_rt_detr_takes_the_backbone() -> None:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    config = RTDetrConfig(
        backbone_config=backbone_config(),
        backbone=None,
        encoder_in_channels=[128, 256, 512],
        num_labels=5,
        d_model=32,
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_layers=1,
        num_queries=10,
        num_denoising=0,
        decoder_attention_heads=4,
        encoder_attention_heads=4,
    )
    config.backbone_config.out_indices = [1, 2, 3]
    model = RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        out = model(images(160, 128))
    assert out.logits.shape == (2, 10, 5)
    assert out.pred_boxes.isfinite().all()


def test_hugging_face_round_trip(tmp_path: Any) -> None:
    """save_pretrained and from_pretrained: equal outputs, so no table is lost on the way."""
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(backbone_config=backbone_config(), num_labels=5, hidden_size=32, use_auxiliary_head=False)
    model = UperNetForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    x = images(160, 224)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model(x).logits, rtol=1e-5, atol=1e-6)


def test_hugging_face_backbone_options() -> None:
    from transformers import TimmBackbone

    model = TimmBackbone(backbone_config(freeze_batch_norm_2d=True)).eval()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    with torch.no_grad():
        out = model(images(160, 224))
    expected = [(64, 40, 56), (128, 20, 28), (256, 10, 14), (512, 5, 7)]
    assert [tuple(m.shape[1:]) for m in out.feature_maps] == expected


# --- Importing ------------------------------------------------------------------------------------------------------


def test_import_reads_no_network() -> None:
    """Importing opens no socket, and loads nothing of the optional packages."""
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import openfastervit
heavy = [m for m in ("sklearn", "matplotlib", "transformers", "accelerate", "rich", "jsonargparse") if m in sys.modules]
assert not heavy, heavy
print(len(openfastervit.list_models()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(VARIANTS))
