"""The optimiser and its learning rate, from a recipe."""

import inspect
import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from torch import nn

from openfastervit.training.recipe import LoopSettings


def rate_factor(settings: LoopSettings, global_batch: int) -> float:
    """What the recipe's learning rates are multiplied by for the batch that all processes make together."""
    if settings.lr_batch is None:
        return 1.0
    ratio = global_batch / settings.lr_batch
    return math.sqrt(ratio) if settings.lr_scaling == "sqrt" else ratio


def create_optimizer(model: nn.Module, settings: LoopSettings, global_batch: int) -> torch.optim.Optimizer:
    """Timm's optimiser of that name: weight decay spares vectors and what the network excepts; layer-wise rates.

    On GPUs one kernel updates many weights where the optimiser has it, unless ``optimizer_options`` say otherwise.

    Raises:
        ValueError: If the optimiser does not take an option.
    """
    options: dict[str, Any] = {"fused": True} if _fuses(model, settings) else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            settings.optimizer,
            lr=settings.lr * rate_factor(settings, global_batch),
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            **{**options, **settings.optimizer_options},
        )
    except TypeError as error:
        raise ValueError(f"optimizer_options={settings.optimizer_options}: {error}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def _fuses(model: nn.Module, settings: LoopSettings) -> bool:
    """Whether an optimiser's steps are to be fused."""
    if {"fused", "foreach", "differentiable"} & settings.optimizer_options.keys():  # one excludes another
        return False
    if settings.precision == "fp16":  # such steps look for overflows themselves, and Accelerate would not hear of any
        return False
    if {parameter.device.type for parameter in model.parameters()} != {"cuda"}:
        return False
    kind: Any = get_optimizer_class(settings.optimizer, bind_defaults=False)
    if settings.sharding == "fsdp2" and kind not in (torch.optim.Adam, torch.optim.AdamW):  # sharded weights have these
        return False
    return "fused" in inspect.signature(kind).parameters


class Schedule:
    """The learning rate as a function of the update: nothing to save, nothing to resume.

    Args:
        optimizer: Whose rates are set.
        settings: Shape and length.
        updates_per_epoch: Of the loader as it is.
        global_batch: Images of one update.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: LoopSettings, updates_per_epoch: int, global_batch: int
    ) -> None:
        factor = rate_factor(settings, global_batch)
        self.optimizer = optimizer
        self._scheduler: Any
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            settings.schedule,
            num_epochs=settings.epochs,
            cooldown_epochs=settings.cooldown_epochs,
            warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]  # fractions work in updates
            warmup_lr=settings.warmup_lr * factor,
            min_lr=settings.min_lr * factor,
            decay_rate=settings.decay_rate,
            decay_milestones=list(settings.milestones),
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )

    def set(self, update: int) -> float:
        """Set the rates of an update, counted from 0; the highest of them is returned."""
        self._scheduler.step_update(update)
        return max(float(group["lr"]) for group in self.optimizer.param_groups)
