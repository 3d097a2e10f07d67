"""Recipes: typed settings of a training run, as YAML files, on the command line, and in code.

A recipe joins the settings of a task with those of the loop. ``read_recipe`` reads one, ``recipe.to_yaml()`` writes it
back whole. Unknown names and values out of range are errors before anything starts.
"""

import dataclasses
import difflib
import math
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from timm.optim import list_optimizers

from openfastervit.tasks.classification_settings import ClassificationSettings
from openfastervit.tasks.detection.settings import DetectionSettings
from openfastervit.tasks.network_settings import NetworkSettings
from openfastervit.tasks.segmentation.settings import SegmentationSettings

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "constant")


@dataclass(kw_only=True)
class LoopSettings:
    """How long, how fast, in what precision, on how many processes; what is kept of it."""

    # --- Length and batches
    epochs: int = 300
    """Passes over the data in which the learning rate falls, warm-up included."""
    cooldown_epochs: int = 0
    """Further passes at the lowest learning rate."""
    batch_size: int = 128
    """Images of one step on one process (a GPU, or the CPU)."""
    accumulate: int = 1
    """Steps whose gradients make one update."""
    seed: int = 0
    """Of the first weights, the order of images, their augmentation and everything else that is drawn."""

    # --- Optimiser
    optimizer: str = "adamw"
    """timm's name: adamw, lamb, sgd, ..."""
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    """Other options of it, such as betas or momentum; on GPUs fused steps are taken where it has them, fused: false
    for none."""
    lr: float = 5e-3
    """Learning rate, for a global batch of lr_batch."""
    lr_batch: int | None = 4096
    """The global batch lr is meant for; the real rate is scaled to the real batch. None: lr is used as it is."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How the rate grows with the batch."""
    weight_decay: float = 0.05
    """Not applied to biases, norms and other vectors, and what the network excepts."""
    layer_decay: float | None = None
    """Each layer's rate over the next one's, towards the input: below 1 for fine-tuning."""
    clip_grad: float | None = None
    """Largest norm of the gradients."""

    # --- Learning rate over time
    schedule: str = "cosine"
    """timm's name: cosine, tanh, step, poly, constant."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from warmup_lr."""
    warmup_lr: float = 1e-6
    """Rate of the first step, scaled as lr is."""
    min_lr: float = 0.0
    """Lowest rate, scaled as lr is."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which schedule multistep lowers the rate."""
    decay_rate: float = 0.1
    """What schedules step and multistep multiply the rate by; the power of schedule poly."""

    # --- Average of the weights, and what learns from it
    ema_decay: float | None = None
    """Decay of the exponential moving average of the weights; it is then evaluated and kept as the result."""
    ema_warmup: bool = False
    """Let the decay grow from 0 with the steps: for short runs."""
    mesa: float = 0.0
    """Weight of MESA, the loss that pulls the network to its average (arXiv 2205.14083); needs ema_decay."""
    mesa_start: float = 0.25
    """Share of the epochs after which MESA begins."""

    # --- Precision and speed
    device: str = "auto"
    """cpu, cuda, or auto."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; weights are kept in float32."""
    channels_last: bool = False
    """Lay images out with channels innermost: faster convolutions."""
    compile: bool = False
    """Compile the network with torch.compile."""
    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    """How: by rules of thumb, or with kernels that are chosen by measuring, which takes minutes more."""
    attention_kernels: bool = False
    """Attention by Triton kernels, forward and backward, where the device has them; see docs/training.md."""
    workers: int | None = None
    """Processes that decode images, for each training process; None for as many as there are cores, at most 8."""
    deterministic: bool | None = None
    """Same numbers, bit for bit, on each run; None for yes on a CPU."""

    # --- Many processes
    sharding: Literal["none", "fsdp2"] = "none"
    """Copies of the network on all processes (DDP), or one shared out among them (FSDP2)."""
    sync_batch_norm: bool = False
    """Batch norm with the statistics of all processes' images; without it each uses its own, and their average is
    kept."""
    find_unused_parameters: bool = False
    """For networks with parameters that a step may leave unused: DDP then looks for them."""

    # --- What is kept
    eval_every: int = 1
    """Epochs between evaluations; the last one is always evaluated."""
    save_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; there is one at the end of each epoch too."""
    save_steps: int | None = None
    """Updates between checkpoints, as well."""
    keep_checkpoints: int = 2
    """How many of the newest are kept."""
    log_every: int = 50
    """Updates between lines of the log."""
    max_unreadable: float = 0.01
    """Share of images that cannot be read above which the run stops."""
    wandb: bool = False
    """Log to Weights & Biases too, where it is installed."""

    def check_loop(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        for name, least in (
            ("epochs", 1),
            ("cooldown_epochs", 0),
            ("batch_size", 1),
            ("accumulate", 1),
            ("seed", 0),
            ("eval_every", 1),
            ("keep_checkpoints", 1),
            ("log_every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name, least in (("lr_batch", 1), ("save_steps", 1), ("workers", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("lr", "save_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number above 0")
        for name in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "mesa"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number of at least 0")
        for name in ("mesa_start", "max_unreadable"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share, from 0 to 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be at least 0, below 1")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad={self.clip_grad} must be above 0; leave it out for no clipping")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0, at most 1")
        if self.mesa > 0 and self.ema_decay is None:
            raise ValueError(f"mesa={self.mesa} needs the weight average that teaches; set ema_decay, such as 0.9998")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}; lower it")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; there is {', '.join(SCHEDULES)}")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                f"schedule={self.schedule!r} with milestones={self.milestones}: milestones belong to multistep, and it "
                "needs some"
            )
        if not 0 < self.decay_rate < math.inf:
            raise ValueError(f"decay_rate={self.decay_rate} must be a number above 0")
        if self.optimizer.lower() not in list_optimizers():
            near = difflib.get_close_matches(self.optimizer.lower(), list_optimizers(), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; timm.optim.list_optimizers() shows all"
            raise ValueError(f"optimizer={self.optimizer!r} is unknown{hint}")
        if self.compile_mode != "default" and not self.compile:
            raise ValueError(f"compile_mode={self.compile_mode} says how to compile; set compile too, or leave it out")
        if self.sharding == "fsdp2" and self.precision == "fp16":
            raise ValueError("sharding=fsdp2 does not scale fp16 gradients; take precision bf16")

    @property
    def total_epochs(self) -> int:
        """Passes over the data, the cooldown included."""
        return self.epochs + self.cooldown_epochs


@dataclass(kw_only=True)
class Recipe(NetworkSettings, LoopSettings):
    """Everything about a training run: what recipes of all tasks have. A subclass adds a task's settings."""

    task: ClassVar[str]

    def check(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        self.check_task()
        self.check_loop()
        if self.freeze_backbone and self.layer_decay is not None:
            raise ValueError("layer_decay has no layers to act on where freeze_backbone leaves the head alone")

    def check_task(self) -> None:
        """Raise ``ValueError`` where the task's settings are out of range."""
        raise NotImplementedError

    @property
    def downloads(self) -> bool:
        """Whether opening the data may download it."""
        return False

    @classmethod
    def implied(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that follow from settings that are given, by name."""
        return {}

    def for_data(self, images: int, processes: int) -> Self:
        """The recipe for so many training images and processes."""
        return self

    def to_yaml(self) -> str:
        """All settings, those with their defaults too."""
        return yaml.safe_dump({"task": self.task, **dataclasses.asdict(self)}, sort_keys=False, width=120)


@dataclass(kw_only=True)
class ClassificationRecipe(ClassificationSettings, Recipe):
    """Everything about a training run of a classifier."""

    task: ClassVar[str] = "classification"

    def check(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        super().check()
        if (self.mixup > 0 or self.cutmix > 0) and self.batch_size % 2:
            raise ValueError(f"batch_size={self.batch_size}: mixup and CutMix pair images; take an even number")
        if self.windows == "fit" and self.img_size is None:
            raise ValueError("windows=fit chooses windows for another size of images; give img_size too")

    @property
    def downloads(self) -> bool:
        """Whether opening the data may download it."""
        return self.download


@dataclass(kw_only=True)
class DenseRecipe(Recipe):
    """What recipes of detection and segmentation have in common."""

    batch_size: int = 16
    lr: float = 1e-4
    lr_batch: int | None = 16
    drop_path: float = 0.2

    def check(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        super().check()
        if self.mesa > 0:
            raise ValueError(f"mesa={self.mesa} is for classifiers; leave it out")
        if self.sharding == "fsdp2":
            raise ValueError(f"sharding=fsdp2 is for classifiers; leave it out: {self.task} trains in copies (DDP)")


@dataclass(kw_only=True)
class DetectionRecipe(DetectionSettings, DenseRecipe):
    """Everything about a training run of a detector: AdamW and the 3x schedule, as published for FasterViT."""

    task: ClassVar[str] = "detection"

    epochs: int = 36
    schedule: str = "multistep"
    milestones: list[int] = field(default_factory=lambda: [27, 33])
    warmup_epochs: float = 0.07

    @classmethod
    def implied(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Another schedule has no milestones; those of a shorter run come as early in it."""
        if settings.get("schedule", "multistep") != "multistep":
            return {"milestones": []}
        epochs = settings.get("epochs")
        if not isinstance(epochs, int) or epochs < 1:
            return {}
        stones = sorted({max(1, round(epochs * share)) for share in (27 / 36, 33 / 36)})
        return {"milestones": stones, "warmup_epochs": min(cls.warmup_epochs, epochs / 2)}


@dataclass(kw_only=True)
class SegmentationRecipe(SegmentationSettings, DenseRecipe):
    """Everything about a training run of a segmenter: AdamW and a linear decay, as published for FasterViT."""

    task: ClassVar[str] = "segmentation"

    def check(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        super().check()
        if self.head == "upernet" and self.batch_size < 2 and 1 in self.head_options.get("pool_scales", [1]):
            raise ValueError(
                f"batch_size={self.batch_size}: UPerNet pools an image to one cell, and batch norm learns nothing from "
                "one value; take two or more, or head_options.pool_scales without 1"
            )

    epochs: int = 127
    lr: float = 6e-5
    weight_decay: float = 0.01
    schedule: str = "poly"
    decay_rate: float = 1.0
    warmup_epochs: float = 1.2

    @classmethod
    def implied(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A short run warms up shortly."""
        epochs = settings.get("epochs")
        if not isinstance(epochs, int) or epochs < 1:
            return {}
        return {"warmup_epochs": min(cls.warmup_epochs, epochs / 20)}


@dataclass(kw_only=True)
class FinetuneRecipe(ClassificationRecipe):
    """Defaults for a small data set on one machine, from released or other weights."""

    pretrained: bool = True
    epochs: int = 30
    batch_size: int = 32
    lr: float = 7e-4
    lr_batch: int | None = 256
    # A few photographs make few updates of a small batch: its rate is not cut in proportion.
    lr_scaling: Literal["linear", "sqrt"] = "sqrt"
    weight_decay: float = 0.05
    layer_decay: float | None = 0.75
    clip_grad: float | None = 5.0
    warmup_epochs: float = 3.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    drop_path: float = 0.1
    crop_scale: list[float] = field(default_factory=lambda: [0.35, 1.0])
    auto_augment: str | None = "rand-m7-mstd0.5-inc1"
    random_erasing: float = 0.1
    ema_decay: float | None = 0.999
    ema_warmup: bool = True
    channels_last: bool = True

    @classmethod
    def implied(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Given weights are not downloaded; a classifier alone learns faster; a short run warms up shortly."""
        found: dict[str, Any] = {}
        if settings.get("weights") is not None:
            found["pretrained"] = False
        if settings.get("freeze_backbone") is True:
            found |= {"layer_decay": None, "lr": 5e-3}
        epochs = settings.get("epochs")
        if isinstance(epochs, int) and epochs < cls.epochs:
            found["warmup_epochs"] = epochs * cls.warmup_epochs / cls.epochs
        return found

    def for_data(self, images: int, processes: int) -> Self:
        """With a smaller batch where the images do not fill one."""
        fits = images // (processes * self.accumulate)
        if self.mixup > 0 or self.cutmix > 0:
            fits -= fits % 2
        if fits >= self.batch_size or fits < 1:
            return self
        return dataclasses.replace(self, batch_size=fits)


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def read_recipe(path: str | os.PathLike[str], kind: type[AnyRecipe], **settings: Any) -> AnyRecipe:
    """Read a recipe.

    Args:
        path: A YAML file: the names and values of settings.
        kind: The recipe's class.
        **settings: Settings in place of the file's; a name such as "model_options.dim" changes one entry.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown, of a wrong type, out of range, or contradicts another.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}; check the path")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping):
        text = f"{path} holds no settings; a recipe is a YAML file of `name: value` lines"
        raise ValueError(text)  # noqa: TRY004  # of the file, whoever reads it
    try:
        return make_recipe(_merged(found, settings), kind)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path}: {error}") from error


def make_recipe(settings: Mapping[str, Any], kind: type[AnyRecipe]) -> AnyRecipe:
    """A recipe from settings by name; what is not named has its default, which may follow from what is.

    Args:
        settings: Names and values; a name such as "model_options.dim" sets one entry.
        kind: The recipe's class.

    Raises:
        ValueError: If a setting is unknown, of a wrong type, out of range, or contradicts another.
    """
    settings = _merged({}, settings)
    if (task := settings.pop("task", kind.task)) != kind.task:
        raise ValueError(f"task={task!r}: this is a recipe for another task than {kind.task}")
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `fastervit train --help` shows all"
            raise ValueError(f"unknown setting {name!r}{hint}")
    for name, value in settings.items():
        if value is None and not _is_optional(hints[name]):
            raise ValueError(_wrong_type(name, value, hints[name]))
        if _is_list(hints[name]) and isinstance(value, int | float) and not isinstance(value, bool):
            settings[name] = [value]  # img_size: 128
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, nested_key=None)
    try:
        parsed = parser.parse_object({**kind.implied(settings), **settings}, defaults=True)
    except ArgumentError as error:
        message = " ".join(str(error).split())
        found = re.match(r'Parser key "(\w+)', message)
        if found is None or found[1] not in settings:
            raise ValueError(message) from error
        raise ValueError(_wrong_type(found[1], settings[found[1]], hints[found[1]])) from error
    recipe = kind(**parser.instantiate(parsed).as_dict())
    recipe.check()
    return recipe


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; one named "model_options.dim" changes an entry and leaves the others."""
    merged = dict(settings)
    for name, value in changes.items():
        outer, dot, key = name.partition(".")
        if dot:
            before = merged.get(outer)
            merged[outer] = {**(before if isinstance(before, Mapping) else {}), key: value}
        else:
            merged[name] = value
    return merged


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(kind) is list for kind in (hint, *typing.get_args(hint)))


def _wrong_type(name: str, value: Any, hint: Any) -> str:
    """An error that says in plain words what a setting may be."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if _is_optional(hint) else [hint]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    told = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            told.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        elif typing.get_origin(kind) is list:
            told.append("a list of " + ("whole numbers" if typing.get_args(kind)[0] is int else "numbers"))
        else:
            told.append(words.get(kind, "names and values"))
    return f"{name}={value!r} must be {' or '.join(told)}{', or null' if _is_optional(hint) else ''}"


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)
