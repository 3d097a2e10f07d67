"""Image classification: data, network, loss."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup, create_transform, resolve_data_config
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from openfastervit.data.images import ImageMode
from openfastervit.data.loader import LabelledImages, PlacedImages, Sample
from openfastervit.data.sources import open_train_val
from openfastervit.data.transforms import create_training_transform
from openfastervit.models.factory import is_timms, resolve_name
from openfastervit.tasks.classification_settings import ClassificationSettings
from openfastervit.tasks.metrics import ClassificationMetrics
from openfastervit.tasks.networks import first_network, input_options
from openfastervit.tasks.task import Batch


class Classification:
    """The task of classification, for the training loop (``tasks.task.Task``).

    Args:
        settings: What to do. Data sets are opened here, images are not.
        seed: Of the split where validation images are held out, and of augmentation.

    Raises:
        ValueError, OSError: If the data or the network cannot be had as asked.
    """

    name = "classification"
    metric = "top1"
    metric_told = "top-1 {:.2f} %"

    def __init__(self, settings: ClassificationSettings, *, seed: int = 0) -> None:
        self.settings = settings
        if settings.data is None:
            raise ValueError("data is not given; name the folder of images, for instance --data photos")
        mode: ImageMode = "RGB" if settings.in_chans == 3 else "L"
        training, validation, self.held_out = open_train_val(
            settings.data,
            root=settings.data_root,
            val_fraction=settings.val_fraction,
            train_split=settings.train_split,
            val_split=settings.val_split,
            seed=seed,
            mode=mode,
            download=settings.download,
        )
        self.classes = tuple(training.classes)
        if len(self.classes) < 2:
            raise ValueError(f"{settings.data} has {len(self.classes)} class; a classifier needs at least 2 folders")
        self.preparation = preparation(settings)
        self.training_images: PlacedImages = LabelledImages(
            training, self._training_transform(), seed=seed, training=True
        )
        self.validation_images: PlacedImages = LabelledImages(
            validation, create_transform(**self.preparation), seed=seed, training=False
        )
        self._mixup = None
        if settings.mixup > 0 or settings.cutmix > 0:
            self._mixup = Mixup(
                settings.mixup,
                settings.cutmix,
                prob=settings.mixup_prob,
                switch_prob=settings.mixup_switch_prob,
                mode=settings.mixup_mode,
                label_smoothing=settings.label_smoothing,
                num_classes=len(self.classes),
            )
        self._bce = BinaryCrossEntropy(settings.label_smoothing, settings.bce_threshold) if settings.bce else None

    def _training_transform(self) -> Any:
        settings = self.settings
        try:
            return create_training_transform(
                self.preparation["input_size"],
                scale=(settings.crop_scale[0], settings.crop_scale[1]),
                ratio=(settings.crop_ratio[0], settings.crop_ratio[1]),
                hflip=settings.hflip,
                vflip=settings.vflip,
                color_jitter=settings.color_jitter,
                auto_augment=settings.auto_augment,
                interpolation=settings.interpolation or "random",
                mean=self.preparation["mean"],
                std=self.preparation["std"],
                re_prob=settings.random_erasing,
                re_mode=settings.erasing_mode,
            )
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"auto_augment={settings.auto_augment!r} is none of timm's policies ({error}); take, for instance, "
                "rand-m9-mstd0.5-inc1"
            ) from error

    def build(self) -> nn.Module:
        """The network with its first weights, on the CPU."""
        model: Any = build_network(self.settings, len(self.classes), self.classes)
        if self.settings.gradient_checkpointing:
            model.set_grad_checkpointing(True)
        assert isinstance(model, nn.Module)
        return model

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images ``(B, C, H, W)`` and labels ``(B,)`` of those that could be read."""
        return collate(samples, self.preparation["input_size"])

    def augment(self, batch: Batch) -> Batch:
        """Mixup and CutMix: the images become mixtures, the labels ``(B, K)`` probabilities."""
        if self._mixup is None:
            return batch
        images, targets = self._mixup(batch.images, batch.targets)
        return Batch(images, targets, batch.names, batch.unreadable)

    def sample(self, batch: Batch) -> Tensor:
        """The images."""
        images: Tensor = batch.images
        return images

    def captions(self, batch: Batch) -> list[str]:
        """The class of each image; of a mixture the two likeliest, with their shares."""
        if batch.targets.ndim == 1:
            return [self.classes[label] for label in batch.targets.tolist()]
        shares, labels = batch.targets.topk(2, dim=1)
        return [
            "  ".join(f"{self.classes[label]} {share:.0%}" for share, label in zip(*pair, strict=True) if share > 0.05)
            for pair in zip(shares.tolist(), labels.tolist(), strict=True)
        ]

    def inputs(self, batch: Batch) -> tuple[Tensor]:
        """The network takes images alone."""
        return (batch.images,)

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of logits ``(B, K)`` with labels ``(B,)`` or probabilities ``(B, K)``; mean over the batch."""
        logits = outputs.float()
        if self._bce is not None:
            return {"bce": self._bce(logits, batch.targets)}
        smoothing = self.settings.label_smoothing if self._mixup is None else 0.0  # mixup smooths its targets
        return {"cross_entropy": F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)}

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Logits ``(B, K)``."""
        return model(*self.inputs(batch))

    def new_metrics(self) -> ClassificationMetrics:
        """Top-1, top-5, loss, calibration."""
        return ClassificationMetrics(self.classes)

    def logits(self, outputs: Tensor) -> Tensor:
        """The network's outputs, as they are."""
        return outputs

    def backbone(self, model: nn.Module) -> nn.Module:
        """All of the network: a classifier has no batch norm of its own."""
        return model

    def head(self, model: nn.Module) -> nn.Module:
        """The classifier."""
        classifier = model.get_classifier()  # type: ignore[operator]
        assert isinstance(classifier, nn.Module)
        return classifier

    def metadata(self, model: nn.Module) -> dict[str, Any]:
        """The names of the classes and how images are prepared, as ``fastervit predict`` reads them."""
        told = self.preparation
        prepared = {key: told[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
        return {
            "task": self.name,
            "classes": list(self.classes),
            "input": {"size": list(told["input_size"]), **_plain(prepared)},
            **self._construction(),
        }

    def _construction(self) -> dict[str, Any]:
        """How to build one of timm's networks again; ours tell it themselves (``metadata_text``)."""
        settings = self.settings
        if not is_timms(settings.model):
            return {}
        size = None if settings.img_size is None else _square(settings.img_size)
        options = {
            **_plain(input_options(settings.model, size)),
            **settings.model_options,
            "num_classes": len(self.classes),
            "in_chans": settings.in_chans,
        }
        return {"model": settings.model, "overrides": options}


def collate(samples: Sequence[Sample], input_size: Sequence[int]) -> Batch:
    """A batch of the samples that could be read: images ``(B, *input_size)`` and labels ``(B,)``."""
    read = [sample for sample in samples if sample.image is not None]
    return Batch(
        torch.stack([sample.image for sample in read]) if read else torch.empty(0, *input_size),
        torch.tensor([sample.target for sample in read], dtype=torch.long),
        [sample.name for sample in read],
        [failure for sample in samples for failure in sample.unreadable],
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def build_network(
    settings: ClassificationSettings, num_classes: int, classes: Sequence[str] | None = None
) -> nn.Module:
    """The network that settings ask for, and the names of whose classes tell whether a classifier is kept.

    Raises:
        UnknownModelError: If neither we nor timm know its name.
        ValueError: If it does not take an option.
        CheckpointError: If the weights do not fit it.
    """
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": settings.in_chans,
        "drop_path_rate": settings.drop_path,
        "drop_rate": settings.dropout,
        **settings.model_options,
    }
    try:
        return first_network(
            settings.model,
            options,
            pretrained=settings.pretrained,
            weights=settings.weights,
            img_size=None if settings.img_size is None else _square(settings.img_size),
            windows=settings.windows,
            classes=classes,
        )
    except TypeError as error:
        raise ValueError(f"model_options={settings.model_options}: {error}") from error


def _square(size: Sequence[int]) -> list[int]:
    return [size[0], size[0]] if len(size) == 1 else list(size)


def preparation(settings: ClassificationSettings) -> dict[str, Any]:
    """How images are prepared for evaluation: arguments of ``timm.data.create_transform``."""
    name = settings.model if is_timms(settings.model) else resolve_name(settings.model)
    released = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=released.to_dict() if released else {})
    given = {
        "interpolation": settings.interpolation,
        "mean": settings.mean,
        "std": settings.std,
        "crop_pct": settings.crop_pct,
        "crop_mode": settings.crop_mode,
    }
    config |= {key: value for key, value in given.items() if value is not None}
    height, width = config["input_size"][1:] if settings.img_size is None else _square(settings.img_size)
    config["input_size"] = (settings.in_chans, height, width)
    for key in ("mean", "std"):
        values = tuple(config[key])
        if len(values) != settings.in_chans:  # colour statistics for a network that takes grayscale
            values = (sum(values) / len(values),) * settings.in_chans
        config[key] = values
    return config
