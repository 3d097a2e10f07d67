"""Semantic segmentation: data, network, losses, intersection over union."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openfastervit.data.joint_transforms import SegmentationEvaluation, SegmentationTraining
from openfastervit.data.loader import AnnotatedImages, PlacedImages, Sample
from openfastervit.data.semantic import IGNORE, SemanticImages, open_semantic
from openfastervit.models.features import STRIDES, Backbone, DenseNetwork
from openfastervit.tasks.first_weights import backbone_plan, first_backbone, start_from
from openfastervit.tasks.segmentation.metrics import SegmentationMetrics
from openfastervit.tasks.segmentation.settings import SegmentationHead, SegmentationSettings
from openfastervit.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class SegmenterPlan:
    """All that a segmenter is built from, but its weights: plain data, kept beside them in a checkpoint."""

    model: str
    """The backbone's name."""
    head: SegmentationHead
    num_classes: int
    head_options: Mapping[str, Any] = field(default_factory=dict)


def create_segmenter(plan: SegmenterPlan, backbone: Backbone) -> DenseNetwork:
    """The segmenter of a plan, on a backbone that gives maps of strides 4 to 32.

    Raises:
        ValueError: If the head does not take an option.
    """
    from openfastervit.tasks.segmentation import networks

    network: DenseNetwork = networks.create_segmenter(plan.head, backbone, plan.num_classes, options=plan.head_options)
    return network


class Segmentation:
    """The task of semantic segmentation, for the training loop (``tasks.task.Task``).

    Args:
        settings: What to do. Files are listed here, none is read.
        seed: Of augmentation.

    Raises:
        ValueError, OSError: If the data or the network cannot be had as asked.
    """

    name = "segmentation"
    metric = "miou"
    metric_told = "mIoU {:.4f}"

    def __init__(self, settings: SegmentationSettings, *, seed: int = 0) -> None:
        self.settings = settings
        if settings.data is None:
            raise ValueError("data is not given; name the folder of images and labels, for instance --data camvid")
        training = self._open(settings.train_split)
        self.classes = tuple(training.classes)
        validation = self._open(settings.val_split)
        self.mean, self.std = settings.colours()
        self.training_images: PlacedImages = AnnotatedImages(
            training,
            training.labels,
            SegmentationTraining(
                self._crop,
                scale=(settings.scale[0], settings.scale[1]),
                size=settings.train_size,
                hflip=settings.hflip,
                color_jitter=settings.color_jitter,
                mean=self.mean,
                std=self.std,
            ),
            seed=seed,
            training=True,
        )
        self.validation_images: PlacedImages = AnnotatedImages(
            validation,
            validation.labels,
            SegmentationEvaluation(settings.eval_size, mean=self.mean, std=self.std),
            seed=seed,
            training=False,
        )

    def _open(self, split: str) -> SemanticImages:
        settings = self.settings
        assert settings.data is not None
        return open_semantic(
            Path(settings.data), split, ignore_label=settings.ignore_label, num_classes=settings.num_classes
        )

    @property
    def plan(self) -> SegmenterPlan:
        """How the network is built."""
        settings = self.settings
        return SegmenterPlan(
            model=settings.model,
            head=settings.head,
            num_classes=len(self.classes),
            head_options=settings.head_options,
        )

    @property
    def _crop(self) -> tuple[int, int]:
        """Height and width of the crops, for which windows are chosen, where they are."""
        return self.settings.crop_size[0], self.settings.crop_size[-1]

    def build(self) -> nn.Module:
        """The network with its first weights, on the CPU."""
        settings = self.settings
        backbone = first_backbone(settings, strides=STRIDES, size=self._crop)
        network = create_segmenter(self.plan, backbone)
        start_from(network, settings.weights, self.name)
        if settings.gradient_checkpointing:
            network.set_grad_checkpointing(True)
        return network

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Crops ``(B, 3, h, w)`` and their labels ``(B, h, w)``; in evaluation lists, for each image has its size."""
        batch = collate(samples)
        sizes = {tuple(value.shape[-2:]) for value in (*batch.images, *batch.targets)}
        if sizes == {self._crop}:
            batch.images, batch.targets = torch.stack(batch.images), torch.stack(batch.targets)
        return batch

    def augment(self, batch: Batch) -> Batch:
        """Nothing: images are varied one by one."""
        return batch

    def sample(self, batch: Batch) -> Tensor:
        """The crops, with their labels laid over them."""
        from openfastervit.tasks.drawing import tint

        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        tiles = [
            tint(image.float().cpu() * std + mean, labels.cpu(), len(self.classes))
            for image, labels in zip(batch.images, batch.targets, strict=True)
        ]
        return (torch.stack(tiles) - mean) / std

    def captions(self, batch: Batch) -> list[str]:
        """The share of each class, the largest first."""
        told = []
        for labels in batch.targets:
            counts = torch.bincount(labels[labels != IGNORE], minlength=len(self.classes)).tolist()
            largest = sorted(range(len(counts)), key=lambda k: -counts[k])[:4]
            shares = [f"{self.classes[k]} {counts[k] / max(labels.numel(), 1):.0%}" for k in largest if counts[k]]
            told.append(", ".join(shares) or "nothing")
        return told

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Crops and their labels."""
        return (batch.images, batch.targets)

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The network computes them itself."""
        return dict(outputs)

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """The scores ``(K, h, w)`` of each image by itself: batches of one size would need padding."""
        return [model(image[None])[0] for image in batch.images]

    def new_metrics(self) -> SegmentationMetrics:
        """Intersection over union of each class, and accuracies."""
        return SegmentationMetrics(self.classes)

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
        """How to build the network again and what its labels mean, as ``fastervit segment predict`` reads them."""
        plan = self.plan
        return {
            "task": self.name,
            **backbone_plan(self.settings, self._crop),
            "head": plan.head,
            "head_options": dict(plan.head_options),
            "classes": list(self.classes),
            "input": {
                "mean": self.mean,
                "std": self.std,
                "crop_size": list(self.settings.crop_size),
                "eval_size": self.settings.eval_size,
            },
        }


def collate(samples: Sequence[Sample]) -> Batch:
    """Images as a list of ``(3, h, w)``, normalised, and a map of labels ``(H, W)`` of each."""
    read = [sample for sample in samples if sample.image is not None]
    return Batch(
        [sample.image for sample in read],
        [sample.target for sample in read],
        [sample.name for sample in read],
        [failure for sample in samples for failure in sample.unreadable],
    )
