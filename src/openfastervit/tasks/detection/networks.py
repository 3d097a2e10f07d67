"""Detectors by the name of their head: the table that says which there are, and building one from plain data."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from openfastervit.models.features import STRIDES, Backbone, DenseNetwork
from openfastervit.tasks.detection.settings import DetectionHead


@dataclass(frozen=True)
class Head:
    """A head that can stand on a backbone."""

    create: Callable[["DetectorPlan", Backbone, DetectionHead], DenseNetwork]
    masks: bool
    """Whether it learns and gives masks."""
    strides: tuple[int, ...] = STRIDES
    """Of the maps that it takes."""


@dataclass(frozen=True, kw_only=True)
class DetectorPlan:
    """All that a detector is built from, but its weights: plain data, kept beside them in a checkpoint."""

    model: str
    """The backbone's name."""
    head: DetectionHead
    num_classes: int
    """Without the background."""
    min_sizes: Sequence[int]
    max_size: int
    mean: Sequence[float]
    std: Sequence[float]
    head_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masks(self) -> bool:
        """Whether it gives masks."""
        return HEADS[self.head].masks


def create_detector(plan: DetectorPlan, backbone: Backbone) -> DenseNetwork:
    """The detector of a plan, on a backbone that gives the maps its head takes (``HEADS[plan.head].strides``).

    Raises:
        ValueError: If the head does not take an option, or a value of it.
    """
    try:
        return HEADS[plan.head].create(plan, backbone, plan.head)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"head_options={dict(plan.head_options)}: a value is of another type than {plan.head} takes ({error})"
        ) from error


def _rcnn(plan: DetectorPlan, backbone: Backbone, head: DetectionHead) -> DenseNetwork:
    from openfastervit.tasks.detection.rcnn import create_rcnn

    fixed = ("kind", "backbone", "num_classes", "min_size", "max_size", "mean", "std")
    known = [name for name in inspect.signature(create_rcnn).parameters if name not in fixed]
    for name in plan.head_options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
            raise ValueError(f"head_options: {head} has no option {name!r}; {hint}")
    network: DenseNetwork = create_rcnn(
        cast(Any, head),
        backbone,
        plan.num_classes,
        min_size=plan.min_sizes,
        max_size=plan.max_size,
        mean=plan.mean,
        std=plan.std,
        **plan.head_options,
    )
    return network


def _detr(plan: DetectorPlan, backbone: Backbone, head: DetectionHead) -> DenseNetwork:
    from openfastervit.tasks.detection.detr import create_detr

    own = {key: value for key, value in plan.head_options.items() if key in _DETR_OPTIONS}
    network: DenseNetwork = create_detr(
        cast(Any, head),
        backbone,
        plan.num_classes,
        min_size=plan.min_sizes,
        max_size=plan.max_size,
        mean=plan.mean,
        std=plan.std,
        **own,
        options={key: value for key, value in plan.head_options.items() if key not in own},
    )
    return network


_DETR_OPTIONS = ("score_threshold", "detections_per_image", "fixed_size")
"""What ``create_detr`` takes itself; the other options are those of the network's configuration in transformers."""

HEADS: dict[DetectionHead, Head] = {
    "cascade-mask-rcnn": Head(_rcnn, masks=True),
    "cascade-rcnn": Head(_rcnn, masks=False),
    "mask-rcnn": Head(_rcnn, masks=True),
    "faster-rcnn": Head(_rcnn, masks=False),
    "rt-detr": Head(_detr, masks=False, strides=(8, 16, 32)),
    "d-fine": Head(_detr, masks=False, strides=(8, 16, 32)),
    "deformable-detr": Head(_detr, masks=False, strides=(8, 16, 32)),
}
"""A new head: a function that builds it, and a row here and in ``settings.DetectionHead``."""
