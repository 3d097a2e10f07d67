"""Checkpoints: both layouts, every wrapper, and every way a file can be wrong."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import openfastervit
from openfastervit.models import checkpoints
from openfastervit.models.checkpoints import CheckpointError, read_metadata, released_state_dict
from tests.networks import HAT, KINDS, NAMES, SCALED, images, tiny

TORCH = "weights.pth.tar"
SAFE = "weights.safetensors"
SMALL: dict[str, Any] = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["openfastervit", "released"])
@pytest.mark.parametrize("file", [TORCH, SAFE])
def test_round_trip(name: str, layout: Any, file: str, tmp_path: Path) -> None:
    model = tiny(name)
    path = openfastervit.save_checkpoint(model, tmp_path / "new" / file, layout=layout)
    other = tiny(name, seed=4)
    assert openfastervit.load_checkpoint(other, path) == ([], [])
    assert same(model, other)
    again = openfastervit.create_model(
        name, checkpoint=path, dim=16, stem_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4), num_classes=10
    )
    assert same(model, again)
    assert [entry.name for entry in path.parent.iterdir()] == [file]


@pytest.mark.parametrize("name", KINDS)
def test_wrappers_and_stale_tables(name: str) -> None:
    """Data-parallel and compiled prefixes, containers, cached tables, training scripts' extra entries."""
    model = tiny(name)
    released = released_state_dict(model)
    stale = {
        "levels.2.blocks.0.pos_embed.relative_bias": torch.full((1, 49, 64), 100.0),
        "levels.2.blocks.0.attn.pos_emb_funct.relative_coords_table": torch.zeros(1, 13, 13, 2),
        "levels.2.blocks.0.attn.pos_emb_funct.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
    }
    for weights in (released, {**released, **stale}, model.state_dict()):
        for prefix in ("", "module.", "encoder.", "module.encoder.", "encoder.module.", "_orig_mod."):
            prefixed = {prefix + key: value for key, value in weights.items()}
            for source in (prefixed, {"state_dict": prefixed, "epoch": 3}, {"model": prefixed, "optimizer": {}}):
                other = tiny(name, seed=4)
                openfastervit.load_checkpoint(other, source)
                assert same(model, other)


def test_carrier_convolution_under_one_name_or_two() -> None:
    model = tiny(HAT)
    released = released_state_dict(model)
    first = "levels.2.global_tokenizer.pos_embed."
    second = "levels.2.global_tokenizer.to_global_feature.pos."
    for dropped in (first, second):
        other = tiny(HAT, seed=4)
        openfastervit.load_checkpoint(other, {k: v for k, v in released.items() if not k.startswith(dropped)})
        assert same(model, other)
    differing = {**released, f"{second}weight": released[f"{first}weight"] + 1}
    with pytest.raises(CheckpointError, match=r"to_global_feature\.pos\.weight .* differ"):
        openfastervit.load_checkpoint(tiny(HAT), differing)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_missing_or_renamed_key_is_named(data: st.DataObject) -> None:
    model = tiny(SCALED)
    released = data.draw(st.booleans())
    weights = dict(released_state_dict(model) if released else model.state_dict())
    key = data.draw(st.sampled_from([k for k in weights if "num_batches" not in k and "global_tokenizer" not in k]))
    value = weights.pop(key)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        openfastervit.load_checkpoint(tiny(SCALED), weights)
    lenient = openfastervit.load_checkpoint(tiny(SCALED), weights, strict=False)
    assert len(lenient.missing) == 1
    with pytest.raises(CheckpointError, match=r"strange\.key"):
        openfastervit.load_checkpoint(tiny(SCALED), {**weights, key: value, "strange.key": value})
    extra = openfastervit.load_checkpoint(tiny(SCALED), {**weights, key: value, "strange.key": value}, strict=False)
    assert extra == ([], ["strange.key"])
    wrong = value.new_zeros((*value.shape, 2))
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.") + r" has shape"):
        openfastervit.load_checkpoint(tiny(SCALED), {**weights, key: wrong})
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.") + r" is a str"):
        openfastervit.load_checkpoint(tiny(SCALED), {**weights, key: "text"})


@pytest.mark.parametrize("layout", ["openfastervit", "released"])
def test_another_number_of_classes(layout: Any, tmp_path: Path) -> None:
    """An error unless a number is asked for; then a fresh classifier, the rest loaded."""
    model = tiny(HAT, num_classes=10)
    path = openfastervit.save_checkpoint(model, tmp_path / SAFE, layout=layout)
    arguments: dict[str, Any] = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4)}
    with pytest.raises(CheckpointError, match=r"10 classes.*num_classes=10"):
        openfastervit.create_model(HAT, checkpoint=path, **arguments)
    with pytest.raises(CheckpointError, match="10 classes"):
        openfastervit.load_checkpoint(tiny(HAT, num_classes=7), path)
    for classes in (0, 7, 10):
        new = openfastervit.create_model(HAT, checkpoint=path, num_classes=classes, **arguments).eval()
        assert torch.equal(new.stages[3].attention.blocks[0].window.attn.qkv.weight,
                           model.stages[3].attention.blocks[0].window.attn.qkv.weight)  # fmt: skip
        assert new(images(64, 64)).shape == (2, classes or 128)
        if classes == 10:
            assert same(model, new)


def test_input_channels_are_adapted_when_asked_for(tmp_path: Path) -> None:
    """As timm does: gray is the sum of the three kernels, so gray images give what their RGB copies gave."""
    model = tiny(HAT).eval()
    path = openfastervit.save_checkpoint(model, tmp_path / SAFE)
    gray = openfastervit.create_model(
        HAT, checkpoint=path, in_chans=1, dim=16, stem_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4),
        num_classes=10,
    ).eval()  # fmt: skip
    x = images(64, 64, channels=1)
    with torch.no_grad():
        torch.testing.assert_close(gray(x), model(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


# --- Files that are not what they should be -------------------------------------------------------------------------


class _Code:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch '{self.path}'",)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    weights = released_state_dict(tiny(HAT))
    for i, content in enumerate(({"state_dict": weights, "args": _Code(trace)}, _Code(trace))):
        path = tmp_path / f"{i}.pth"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"refused: loading it would run code \(posix\.system\)"):
            openfastervit.load_checkpoint(tiny(HAT), path)
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps(_Code(trace), protocol=2))
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        openfastervit.load_checkpoint(tiny(HAT), bare)
    assert not trace.exists()
    torch.load(tmp_path / "1.pth", weights_only=False)
    assert trace.exists(), "the file would not have run code, so the test showed nothing"


def test_plain_training_leftovers_are_read(tmp_path: Path) -> None:
    """What training scripts put beside the weights: their arguments and a NumPy score."""
    model = tiny(HAT)
    path = tmp_path / TORCH
    content = {
        "state_dict": released_state_dict(model),
        "args": argparse.Namespace(lr=0.1, opt="adamw"),
        "metric": np.float64(82.1),
        "epoch": 3,
    }
    torch.save(content, path)
    other = tiny(HAT, seed=3)
    openfastervit.load_checkpoint(other, path)
    assert same(model, other)


@pytest.mark.parametrize("file", [TORCH, SAFE])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated(file: str, share: float, tmp_path: Path) -> None:
    path = openfastervit.save_checkpoint(tiny(HAT), tmp_path / file)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    model = tiny(HAT)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"damaged or truncated|neither a safetensors nor a torch"):
        openfastervit.load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300), head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10" + b"\0" * 7 + b"{"])
)
def test_any_bytes_are_refused(content: bytes, head: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(head + content)
    with pytest.raises(CheckpointError):
        openfastervit.load_checkpoint(tiny(HAT), path)


def test_foreign(tmp_path: Path) -> None:
    path = tmp_path / SAFE
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3), "layer1.0.bn1.bias": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"not a FasterViT checkpoint: it holds conv1\.weight"):
        openfastervit.load_checkpoint(tiny(HAT), path)
    with pytest.raises(CheckpointError, match="it holds nothing"):
        openfastervit.load_checkpoint(tiny(HAT), {})
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("hello", "there")
    with pytest.raises(CheckpointError, match="damaged"):
        openfastervit.load_checkpoint(tiny(HAT), archive)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        openfastervit.load_checkpoint(tiny(HAT), tmp_path / "list.pth")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere\.pth"):
        openfastervit.load_checkpoint(tiny(HAT), tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        openfastervit.load_checkpoint(tiny(HAT), tmp_path)


def test_another_network_s_weights() -> None:
    with pytest.raises(CheckpointError, match="lacks"):
        openfastervit.load_checkpoint(tiny(HAT), tiny("fastervit_4_w14_224").state_dict())
    with pytest.raises(CheckpointError, match=r"has keys unknown|lacks"):
        openfastervit.load_checkpoint(tiny(HAT), released_state_dict(tiny(SCALED)))


def test_wrapped_networks(tmp_path: Path) -> None:
    """Data-parallel and compiled wrappers are looked through; what is no FasterViT is named."""
    model = tiny(HAT)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        for layout in ("openfastervit", "released"):
            path = openfastervit.save_checkpoint(wrapped, tmp_path / SAFE, layout=layout)
            other = tiny(HAT, seed=4)
            openfastervit.load_checkpoint(nn.DataParallel(other), path)
            assert same(model, other)
    features = openfastervit.create_model(HAT, features_only=True, **SMALL)
    for wrong in (features, nn.Linear(1, 1)):
        with pytest.raises(CheckpointError, match="is not a FasterViT"):
            openfastervit.save_checkpoint(wrong, tmp_path / SAFE)
        with pytest.raises(CheckpointError, match="is not a FasterViT"):
            openfastervit.load_checkpoint(wrong, tmp_path / SAFE)


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    weights = {**tiny(HAT).state_dict(), 0: torch.zeros(1)}
    torch.save(weights, tmp_path / TORCH)
    with pytest.raises(CheckpointError, match="the key 0"):
        openfastervit.load_checkpoint(tiny(HAT), tmp_path / TORCH)


# --- Writing --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = openfastervit.save_checkpoint(tiny(HAT), tmp_path / SAFE)
    before = path.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for file in (SAFE, TORCH):
        with pytest.raises(OSError, match="No space"):
            openfastervit.save_checkpoint(tiny(HAT, seed=8), tmp_path / file)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [SAFE]


def test_metadata(tmp_path: Path) -> None:
    model = tiny(HAT)
    path = openfastervit.save_checkpoint(model, tmp_path / SAFE, metadata={"model": HAT, "classes": ["a", "b"]})
    found = read_metadata(path)
    assert (found["model"], found["classes"]) == (HAT, ["a", "b"])
    other = openfastervit.create_model(found["model"], **found["overrides"])
    openfastervit.load_checkpoint(other, path)
    assert same(model, other)
    model.reset_classifier(3)
    model.set_input_size((256, 320), windows="fit")
    found = read_metadata(openfastervit.save_checkpoint(model, tmp_path / "resized.safetensors"))
    other = openfastervit.create_model(
        found["model"], checkpoint=tmp_path / "resized.safetensors", **found["overrides"]
    )
    assert same(model, other)
    assert [stage.attention.window_size for stage in list(other.stages)[2:]] == [(8, 5), (8, 5)]
    bare = openfastervit.FasterViT(dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4))
    assert read_metadata(openfastervit.save_checkpoint(bare, tmp_path / "bare.safetensors")) == {}
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~checkpoints._umask())
    torch_path = openfastervit.save_checkpoint(model, tmp_path / TORCH)
    assert read_metadata(torch_path) == {}
    with pytest.raises(ValueError, match=r"metadata needs a \.safetensors"):
        openfastervit.save_checkpoint(model, tmp_path / TORCH, metadata={"model": HAT})
    with pytest.raises(ValueError, match="layout='timm'"):
        openfastervit.save_checkpoint(model, tmp_path / SAFE, layout="timm")  # type: ignore[arg-type]
