"""The training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor

from openfastervit.demo.digits import shake
from openfastervit.models import FasterViT

EPOCHS = 20
BATCH = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
WARM_UP = 2.0
"""Epochs in which the learning rate rises; at most a tenth of the training."""
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, or what was done of it."""

    number: int
    """From 1."""
    steps: int
    loss: float
    """Mean over its steps, of shaken images and smoothed labels."""
    accuracy: float
    """Share of the same shaken images read correctly while they were trained on."""
    learning_rate: float
    """Of its last step."""
    seconds: float


class Step(NamedTuple):
    """What is told after each step."""

    done: int
    """Steps done in all."""
    epoch: int
    loss: float
    """Mean over the epoch so far."""
    accuracy: float


def steps_per_epoch(images: int) -> int:
    """Whole batches in so many images; the rest is left out, another rest in each epoch."""
    return max(1, images // BATCH)


def rate(step: int, steps: int, warm_up: float) -> float:
    """The learning rate's factor: a linear warm-up, then half a cosine down to 0 after the last step."""
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def train(
    model: FasterViT,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[Step], None] = lambda step: None,
) -> list[Epoch]:
    """Train in place, with AdamW. All that is random comes from torch's global generator.

    Args:
        model: The network; left in training mode.
        images: ``(n, 1, H, W)``.
        labels: ``(n,)``.
        epochs: Passes over the images.
        stop: Asked before each step; True ends the training there.
        tell: Told each step.

    Returns:
        The epochs, the last one perhaps shorter.
    """
    per_epoch = steps_per_epoch(len(images))
    steps = per_epoch * epochs
    groups = param_groups_weight_decay(model, WEIGHT_DECAY, model.no_weight_decay())
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    warm_up = min(WARM_UP * per_epoch, steps / 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, warm_up))
    done: list[Epoch] = []
    model.train()
    for number in range(1, epochs + 1):
        started = time.perf_counter()
        order = torch.randperm(len(images))
        losses: list[float] = []
        correct = seen = 0
        learning_rate = 0.0
        for chosen in order.split(BATCH)[:per_epoch]:
            if stop():
                break
            logits = model(shake(images[chosen]))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            learning_rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            correct += int((logits.argmax(dim=1) == labels[chosen]).sum())
            seen += len(chosen)
            tell(Step((number - 1) * per_epoch + len(losses), number, sum(losses) / len(losses), correct / seen))
        if losses:
            seconds = time.perf_counter() - started
            done.append(Epoch(number, len(losses), sum(losses) / len(losses), correct / seen, learning_rate, seconds))
        if len(losses) < per_epoch:
            break
    return done
