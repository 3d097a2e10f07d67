"""Detection and instance segmentation: data, network, losses, average precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.data.coco import CocoImages, find_coco
from openfastervit.data.joint_transforms import DetectionEvaluation, DetectionTraining
from openfastervit.data.loader import AnnotatedImages, PlacedImages, Sample
from openfastervit.models.features import DenseNetwork
from openfastervit.tasks.detection.metrics import CocoMetrics
from openfastervit.tasks.detection.networks import HEADS, DetectorPlan, create_detector
from openfastervit.tasks.detection.settings import DetectionSettings
from openfastervit.tasks.first_weights import backbone_plan, first_backbone, start_from
from openfastervit.tasks.task import Batch

SHOWN_SIDE = 384
"""Longest side, in pixels, of the images in a sample for people."""


class Detection:
    """The task of detection, for the training loop (``tasks.task.Task``).

    Args:
        settings: What to do. Annotations are read here, images are not.
        seed: Of augmentation.

    Raises:
        ValueError, OSError: If the data or the network cannot be had as asked.
    """

    name = "detection"
    metric = "box_ap"
    metric_told = "box AP {:.4f}"

    def __init__(self, settings: DetectionSettings, *, seed: int = 0) -> None:
        self.settings = settings
        self.masks = HEADS[settings.head].masks
        training = self._open("train")
        validation = self._open("val", like=training)
        self.classes, self.category_ids = training.classes, training.category_ids
        self.annotations = validation.annotations
        self.training_images: PlacedImages = AnnotatedImages(
            training,
            training.target,
            DetectionTraining(hflip=settings.hflip, color_jitter=settings.color_jitter),
            seed=seed,
            training=True,
        )
        self.validation_images: PlacedImages = AnnotatedImages(
            validation, validation.about, DetectionEvaluation(), seed=seed, training=False
        )
        mean, std = settings.colours()
        self.plan = DetectorPlan(
            model=settings.model,
            head=settings.head,
            num_classes=len(self.classes),
            min_sizes=settings.min_sizes,
            max_size=settings.max_size,
            head_options=settings.head_options,
            mean=mean,
            std=std,
        )

    def _open(self, split: str, like: CocoImages | None = None) -> CocoImages:
        settings = self.settings
        files = {name: getattr(settings, f"{split}_{name}") for name in ("annotations", "images")}
        if settings.data is None and not all(files.values()):
            raise ValueError(
                "data is not given; name the folder of images and annotations, for instance --data coco, or all of "
                "--train-annotations, --train-images, --val-annotations and --val-images"
            )
        found = find_coco(
            None if settings.data is None else Path(settings.data),
            getattr(settings, f"{split}_split"),
            **{name: None if file is None else Path(file) for name, file in files.items()},
        )
        return CocoImages(
            found.annotations,
            found.images,
            masks=self.masks,
            classes=None if like is None else like.classes,
            category_ids=None if like is None else like.category_ids,
            empty=like is not None or settings.empty_images,
        )

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width that windows are chosen for, where they are."""
        return self.settings.min_sizes[-1], self.settings.max_size

    def build(self) -> nn.Module:
        """The network with its first weights, on the CPU."""
        settings = self.settings
        backbone = first_backbone(settings, strides=HEADS[settings.head].strides, size=self._size)
        network = create_detector(self.plan, backbone)
        start_from(network, settings.weights, self.name)
        if settings.gradient_checkpointing:
            network.set_grad_checkpointing(True)
        return network

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """As ``collate`` does."""
        return collate(samples)

    def augment(self, batch: Batch) -> Batch:
        """Nothing: images are varied one by one, and scaled in the network."""
        return batch

    def sample(self, batch: Batch) -> Tensor:
        """Some of the images, with their boxes and masks drawn in, on tiles of one size."""
        from openfastervit.tasks.drawing import draw_targets

        tiles = [
            draw_targets(image, target, self.classes, side=SHOWN_SIDE)
            for image, target in zip(batch.images, batch.targets, strict=True)
        ]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.plan.mean, self.plan.std))
        return (torch.stack(tiles) - mean) / std

    def captions(self, batch: Batch) -> list[str]:
        """How many objects of each class there are."""
        told = []
        for target in batch.targets:
            names = [self.classes[label - 1] for label in target["labels"].tolist()]
            told.append(", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing")
        return told

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Images, and in training what is on them."""
        return (batch.images, batch.targets)

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The network computes them itself."""
        return dict(outputs)

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Boxes, labels, scores and masks of each image, in its pixels."""
        return model(batch.images)

    def new_metrics(self) -> CocoMetrics:
        """COCO's average precision, of boxes and, where there are some, masks."""
        return CocoMetrics(self.annotations, self.category_ids, masks=self.masks)

    def logits(self, outputs: Any) -> None:
        """None that a teacher could be compared with."""

    def backbone(self, model: nn.Module) -> nn.Module:
        """The backbone."""
        assert isinstance(model, DenseNetwork)
        return model.feature_backbone

    def head(self, model: nn.Module) -> nn.Module:
        """All but the backbone."""
        assert isinstance(model, DenseNetwork)
        return model.head_parts()

    def metadata(self, model: nn.Module) -> dict[str, Any]:
        """How to build the network again and what its labels mean, as ``fastervit detect predict`` reads them."""
        plan = self.plan
        return {
            "task": self.name,
            **backbone_plan(self.settings, self._size),
            "head": plan.head,
            "head_options": dict(plan.head_options),
            "classes": list(self.classes),
            "category_ids": list(self.category_ids),
            "input": {
                "mean": list(plan.mean),
                "std": list(plan.std),
                "min_size": plan.min_sizes[-1],
                "max_size": plan.max_size,
            },
        }


def collate(samples: Sequence[Sample]) -> Batch:
    """Images as a list of ``(3, H, W)`` from 0 to 1, each of its size, and a target of each, as torchvision does."""
    read = [sample for sample in samples if sample.image is not None]
    return Batch(
        [sample.image for sample in read],
        [sample.target for sample in read],
        [sample.name for sample in read],
        [failure for sample in samples for failure in sample.unreadable],
    )
