"""Detectors and segmenters from one file: the network, the names of its classes, how its images are prepared."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openfastervit.inference.checkpoint import COMMANDS, check_depth
from openfastervit.inference.exported import is_exported
from openfastervit.models import CheckpointError, read_checkpoint, read_metadata
from openfastervit.models.factory import is_timms
from openfastervit.models.features import STRIDES, Backbone, DenseNetwork, create_backbone
from openfastervit.tasks.detection.networks import HEADS, DetectorPlan, create_detector
from openfastervit.tasks.segmentation.task import SegmenterPlan, create_segmenter


@dataclass(frozen=True)
class Detector:
    """A detector with what is needed to use it."""

    model: DenseNetwork
    """In evaluation mode. Images ``(3, H, W)`` from 0 to 1 in a list, detections of torchvision's form out."""
    plan: DetectorPlan
    classes: tuple[str, ...]
    """Names: label 1 is the first."""
    category_ids: tuple[int, ...]
    """COCO's number of each class."""


@dataclass(frozen=True)
class Segmenter:
    """A segmenter with what is needed to use it."""

    model: DenseNetwork
    """In evaluation mode. Normalised images ``(B, 3, H, W)`` in, scores ``(B, K, H, W)`` out."""
    plan: SegmenterPlan
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_size: tuple[int, int]
    """Of the crops that it was trained on."""
    eval_size: int | None
    """Short side of the images that it was judged on; None for their own size."""


def task_of(path: str | os.PathLike[str]) -> str:
    """What a checkpoint was trained for: "detection", "segmentation", or else "classification".

    Raises:
        FileNotFoundError, CheckpointError: If it cannot be read.
    """
    task = read_metadata(path).get("task")
    return task if task in COMMANDS else "classification"


def load_detector(
    path: str | os.PathLike[str], *, min_size: int | None = None, max_size: int | None = None
) -> Detector:
    """Read a detector that ``fastervit detect train`` left, on the CPU and in evaluation mode.

    Args:
        path: Its checkpoint, or the folder of a run, for its best network.
        min_size: Short side that images are scaled to, instead of the checkpoint's.
        max_size: Longest side.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no detector, or damaged.
        ValueError: If a library is missing, or a size is out of range.
    """
    path = checkpoint_file(path)
    told = _metadata(path, "detection", {"category_ids": list, "head": str, "model": str})
    if told["head"] not in HEADS:
        raise CheckpointError(f"{path}: its metadata asks for the head {told['head']!r}, and there is none such")
    sizes = told["input"]
    shorter, longer = min_size or sizes["min_size"], max_size or sizes["max_size"]
    if shorter < 32 or longer < shorter:
        raise ValueError(f"min_size={shorter} and max_size={longer} must be at least 32, the larger last")
    plan = DetectorPlan(
        model=told["model"],
        head=told["head"],
        num_classes=len(told["classes"]),
        min_sizes=(shorter,),
        max_size=longer,
        mean=sizes["mean"],
        std=sizes["std"],
        head_options=told.get("head_options") or {},
    )

    def build() -> DenseNetwork:
        return create_detector(plan, _backbone(told, HEADS[plan.head].strides))

    model = _built(path, told, build)
    return Detector(model, plan, tuple(map(str, told["classes"])), tuple(map(int, told["category_ids"])))


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """Read a segmenter that ``fastervit segment train`` left, on the CPU and in evaluation mode.

    Args:
        path: Its checkpoint, or the folder of a run, for its best network.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no segmenter, or damaged.
        ValueError: If a library is missing.
    """
    path = checkpoint_file(path)
    told = _metadata(path, "segmentation", {"head": str, "model": str})
    plan = SegmenterPlan(
        model=told["model"],
        head=told["head"],
        num_classes=len(told["classes"]),
        head_options=told.get("head_options") or {},
    )

    def build() -> DenseNetwork:
        return create_segmenter(plan, _backbone(told, STRIDES))

    prepared = told["input"]
    crop = prepared["crop_size"]
    return Segmenter(
        _built(path, told, build),
        plan,
        tuple(map(str, told["classes"])),
        tuple(prepared["mean"]),
        tuple(prepared["std"]),
        (crop[0], crop[-1]),
        prepared.get("eval_size"),
    )


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """A checkpoint, or the best one of a run's folder.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is an exported network.
    """
    path = Path(path)
    if is_exported(path):
        raise CheckpointError(f"{path} is an exported network, which only `predict` runs; give the checkpoint it is of")
    if not path.is_dir():
        return path
    best = path / "best.safetensors"
    if not best.is_file():
        raise FileNotFoundError(f"{path} has no best.safetensors in it; give a checkpoint, or the folder of a run")
    return best


def _backbone(told: Mapping[str, Any], strides: Sequence[int]) -> Backbone:
    """A backbone as ``tasks.first_weights.backbone_plan`` tells of it, with random weights."""
    windows, size = told.get("windows", "pad"), told.get("built_size")
    return create_backbone(
        told["model"],
        options=told.get("overrides") or {},
        strides=strides,
        img_size=size if windows == "fit" or is_timms(told["model"]) else None,
        windows=windows,
    )


def _metadata(path: Path, task: str, expected: Mapping[str, type]) -> dict[str, Any]:
    """What a checkpoint says of itself, once it has the form that training gives it."""
    told = read_metadata(path)
    found = task_of(path)
    if found != task:
        command = " ".join(["fastervit", *([COMMANDS[found]] if found in COMMANDS else []), "predict"])
        raise CheckpointError(f"{path} was trained for {found}, not {task}; use `{command}` with it")
    forms = {**expected, "classes": list, "input": dict}
    numbers = {"detection": ("min_size", "max_size"), "segmentation": ()}[task]
    for key, kind in forms.items():
        if not isinstance(told.get(key), kind):
            raise CheckpointError(f"{path}: its metadata is damaged: {key} is {told.get(key)!r}")
    for key in ("mean", "std"):
        values = told["input"].get(key)
        if not (isinstance(values, list) and len(values) == 3 and all(isinstance(value, float) for value in values)):
            raise CheckpointError(f"{path}: its metadata is damaged: the input {key} is {values!r}")
    for key in numbers:
        if not isinstance(told["input"].get(key), int):
            raise CheckpointError(f"{path}: its metadata is damaged: the input {key} is {told['input'].get(key)!r}")
    if "category_ids" in forms and len(told["category_ids"]) != len(told["classes"]):
        raise CheckpointError(f"{path}: its metadata is damaged: {len(told['category_ids'])} category_ids")
    if task == "segmentation" and not isinstance(told["input"].get("crop_size"), list):
        raise CheckpointError(f"{path}: its metadata is damaged: the input crop_size is missing")
    return told


def _built(path: Path, told: Mapping[str, Any], build: Callable[[], DenseNetwork]) -> DenseNetwork:
    """A network with the weights of a file, in evaluation mode."""
    weights = {name: value for name, value in read_checkpoint(path).items() if isinstance(value, Tensor)}
    try:
        check_depth(weights, told.get("overrides") or {})
        network = build()
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and "pip install" in str(error):  # a library is missing: the file is good
            raise
        raise CheckpointError(f"{path}: its metadata asks for a network that cannot be built: {error}") from error
    own = network.state_dict()
    strange: Sequence[str] = sorted(weights.keys() ^ own.keys())
    if strange:
        where = "is in the file alone" if strange[0] in weights else "is missing"
        raise CheckpointError(f"{path} does not fit its own network: {strange[0]} {where}; it is damaged")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)}, not {list(own[name].shape)}"
            raise CheckpointError(f"{path} does not fit its own network: {name} has shape {shapes}; it is damaged")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity: its training diverged")
    network.load_state_dict(weights)
    return network.eval()
