"""A classifier from one file: the network, the names of its classes, how its images are prepared.

What ``save_checkpoint`` kept beside the weights (``metadata``) says all of it. Other files hold weights alone: then the
network must be named, classes and channels are read from the shapes, and images are prepared as the released network's.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from torch import nn

from openfastervit.models import (
    CheckpointError,
    FasterViT,
    UnknownModelError,
    create_model,
    load_checkpoint,
    read_checkpoint,
    read_metadata,
)
from openfastervit.models.checkpoints import check_is_fastervit, convert_state_dict, unwrap
from openfastervit.models.factory import TIMM_OPTIONS, is_timms, resolve_name
from openfastervit.tasks.networks import fit_timms, input_options, timms_classifier, timms_weights

_INPUT = {
    "size": "input_size",
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
    "crop_pct": "crop_pct",
    "crop_mode": "crop_mode",
}
"""Our metadata's names of what timm's ``create_transform`` takes."""


_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


COMMANDS = {"detection": "detect", "segmentation": "segment"}
"""The group of commands for each of the other tasks."""


MAX_SIDE = 16384
"""Of images that a file may ask for."""


class Classifier(NamedTuple):
    """A network with what is needed to use it."""

    model: nn.Module
    """A FasterViT, or a network of timm's that was trained by us."""
    classes: tuple[str, ...]
    """Names, in the order of the logits."""
    preparation: dict[str, Any]
    """Arguments of ``timm.data.create_transform``."""


def load_classifier(
    path: str | os.PathLike[str], model: str | None = None, img_size: Sequence[int] | None = None
) -> Classifier:
    """Read a classifier, on the CPU and in evaluation mode.

    Args:
        path: A checkpoint in any layout; one of timm's networks in timm's.
        model: The network's name; needed where the checkpoint does not tell it.
        img_size: Side or (height, width) that images are scaled to, instead of the checkpoint's.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it cannot be read safely, does not fit the network, or holds no classifier.
        ValueError: If the network is unknown, or not named where that is needed, or the size below 32.
    """
    weights, metadata = read_checkpoint(path), read_metadata(path)
    size = None if img_size is None else [img_size[0], img_size[0]] if len(img_size) == 1 else list(img_size)
    network: nn.Module
    try:
        _check(metadata)
        options = dict(metadata.get("overrides") or {})
        check_depth(unwrap(weights), options)
        name = _architecture(metadata, model)
        if name is not None and is_timms(name):
            network, channels = _build_timms(weights, name, options, size), options.get("in_chans", 3)
        else:
            check_is_fastervit(weights)
            network = _build(weights, name, options)
            load_checkpoint(network, weights)
            channels = network.in_chans
            if size is not None:
                network.set_input_size(size[0] if len(img_size or ()) == 1 else size)
        _check_finite(network)
        classes = _class_names(metadata, int(network.num_classes))  # type: ignore[arg-type]  # all of timm's have it
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Classifier(network.eval(), classes, _preparation(metadata, network, channels, size))


_NO_OPTIONS = frozenset(
    {"name", "model_name", "pretrained", "checkpoint", "checkpoint_path", "device", "dtype", *TIMM_OPTIONS}
)
"""What a file may not say of its network: where weights come from, where they go, what is wrapped around them."""


def _check(metadata: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` unless the metadata is a classifier's, as ``save_checkpoint`` documents it."""
    task = metadata.get("task")
    if task in COMMANDS:
        raise CheckpointError(f"it was trained for {task}; use `fastervit {COMMANDS[task]} predict` with it")
    expected = {"model": str, "overrides": dict, "classes": list, "input": dict}
    for key, kind in expected.items():
        if metadata.get(key) is not None and not isinstance(metadata[key], kind):
            raise CheckpointError(f"its metadata is damaged: {key} is {metadata[key]!r}")
    foreign = set(metadata.get("overrides") or {}) & _NO_OPTIONS
    if foreign:
        raise CheckpointError(f"its metadata is damaged: {min(foreign)!r} is no option of a network")
    told = metadata.get("input") or {}
    channels = len(told["mean"]) if isinstance(told.get("mean"), list) else 3
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "size": (
            f"[channels, height, width] of at most {MAX_SIDE}",
            lambda v: isinstance(v, list) and len(v) == 3 and all(isinstance(n, int) and 0 < n <= MAX_SIDE for n in v),
        ),
        "mean": ("a list of numbers", lambda v: isinstance(v, list) and len(v) > 0 and all(map(_is_number, v))),
        "std": (
            f"{channels} numbers above 0",
            lambda v: isinstance(v, list) and len(v) == channels and all(_is_number(n) and n > 0 for n in v),
        ),
        "crop_pct": ("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1),
        "crop_mode": (f"one of {', '.join(_CROP_MODES)}", lambda v: v in _CROP_MODES),
        "interpolation": (f"one of {', '.join(_INTERPOLATIONS)}", lambda v: v in _INTERPOLATIONS),
    }
    for key, (form, holds) in rules.items():
        if told.get(key) is not None and not holds(told[key]):
            raise CheckpointError(f"its metadata is damaged: the input {key} is {told[key]!r}, not {form}")


def _check_finite(network: nn.Module) -> None:
    """Raise ``CheckpointError`` where training went astray: kernels may make numbers of what is none."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} holds NaN or infinity: its training diverged; take an earlier checkpoint")


def check_depth(weights: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` where the metadata asks for more blocks than there are weights.

    Even without memory for its weights, a network of a hundred million blocks takes all that there is.
    """
    for key in ("depths", "depth", "layers"):
        told = options.get(key)
        counts = told if isinstance(told, list | tuple) else [told]
        if sum(count for count in counts if isinstance(count, int | float)) > len(weights):
            raise CheckpointError(
                "its metadata asks for a network that cannot be built: "
                f"{key}={told}, and it holds {len(weights)} weights"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _architecture(metadata: Mapping[str, Any], asked: str | None) -> str | None:
    """The network's name, or None where its options alone define it."""
    told = metadata.get("model")
    if told is not None:
        try:
            _full_name(told)
        except UnknownModelError as error:
            raise CheckpointError(f"its metadata asks for a network that cannot be built: {error}") from error
    if asked is not None:
        asked = _full_name(asked)
        if told is not None and _full_name(told).partition(".")[0] != asked.partition(".")[0]:
            raise CheckpointError(f"this is a {told}, not a {asked}; leave the model's name out")
        return asked
    if told is None and not metadata.get("overrides"):
        raise CheckpointError(
            "the file does not tell which network it holds; name it, for instance --model fastervit_0 "
            "(`fastervit list` shows all)"
        )
    return told


def _full_name(name: str) -> str:
    return name if is_timms(name) else resolve_name(name)


def _build_timms(
    weights: Mapping[str, Any], name: str, options: dict[str, Any], size: Sequence[int] | None
) -> nn.Module:
    """One of timm's networks, with as many classes as the weights have, and these in it."""
    tensors = timms_weights(weights)
    heads = [tensors[f"{layer}.weight"] for layer in timms_classifier(name) if f"{layer}.weight" in tensors]
    if heads:
        options = {"num_classes": len(heads[0]), **options}
    options |= input_options(name, size)

    def build(device: str) -> nn.Module:
        try:
            with torch.device(device):
                network: nn.Module = timm.create_model(name, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError, MemoryError) as error:
            raise CheckpointError(f"its metadata asks for a network that cannot be built: {error}") from error
        return network

    fitting = fit_timms(build("meta"), tensors)  # without memory first, as below
    network = build("cpu")
    network.load_state_dict(fitting)
    return network


def _build(weights: Mapping[str, Any], name: str | None, options: dict[str, Any]) -> FasterViT:
    """The network that the weights belong to, with as many classes and channels as they have; weights not loaded."""

    def build(options: dict[str, Any], device: str) -> FasterViT:
        try:
            with torch.device(device):
                network: nn.Module = FasterViT(**options) if name is None else create_model(name, **options)
        except (TypeError, ValueError, RuntimeError, AssertionError, MemoryError) as error:
            raise CheckpointError(f"its metadata asks for a network that cannot be built: {error}") from error
        assert isinstance(network, FasterViT)
        return network

    # Without memory first: whatever the metadata asks for, no more is allocated than the file holds.
    network = build(options, "meta")
    ours = convert_state_dict(weights, network, skip=("head.fc.", "stem.conv1."))
    if "head.fc.weight" not in ours:
        raise CheckpointError("this is a backbone without a classifier; there are no classes to predict")
    found = {"num_classes": ours["head.fc.weight"].shape[0], "in_chans": ours["stem.conv1.weight"].shape[1]}
    # What the metadata tells is not adapted to the weights: where they differ, an error says so.
    shapes = {key: count for key, count in found.items() if key not in options and count != getattr(network, key)}
    options = {**options, **shapes}
    convert_state_dict(weights, build(options, "meta"))
    return build(options, "cpu")


def _class_names(metadata: Mapping[str, Any], count: int) -> tuple[str, ...]:
    names = metadata.get("classes")
    if names is not None:
        if len(names) != count:
            raise CheckpointError(f"its metadata names {len(names)} classes, its classifier has {count}")
        return tuple(str(name) for name in names)
    if count == 1000:
        imagenet = ImageNetInfo()
        return tuple(imagenet.index_to_description(index) for index in range(count))
    return tuple(str(index) for index in range(count))


def _preparation(
    metadata: Mapping[str, Any], network: nn.Module, channels: int, img_size: Sequence[int] | None
) -> dict[str, Any]:
    """How images are prepared: as the metadata tells, else as the released network's, at ``img_size`` if given."""
    told = metadata.get("input") or {}
    preparation: dict[str, Any] = resolve_model_data_config(network)
    preparation |= {theirs: told[ours] for ours, theirs in _INPUT.items() if told.get(ours) is not None}
    height, width = img_size or preparation["input_size"][1:]
    preparation["input_size"] = (channels, height, width)
    for key in ("mean", "std"):
        values = preparation[key]
        if len(values) != channels:  # colour statistics for a network that takes grayscale
            values = [sum(values) / len(values)] * channels
        preparation[key] = tuple(values)
    return preparation
