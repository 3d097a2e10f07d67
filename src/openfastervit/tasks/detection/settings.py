"""The settings of detection: data, head, sizes of the images."""

from dataclasses import dataclass, field
from typing import Literal

from openfastervit.tasks.dense_settings import DenseSettings

DetectionHead = Literal[
    "cascade-mask-rcnn", "cascade-rcnn", "mask-rcnn", "faster-rcnn", "rt-detr", "d-fine", "deformable-detr"
]


@dataclass(kw_only=True)
class DetectionSettings(DenseSettings):
    """What is detected, by which network, at which sizes."""

    # --- Data: a folder in COCO's layout, or files by name
    train_annotations: str | None = None
    """COCO json of the training images, where it is not in its usual place."""
    train_images: str | None = None
    """Folder of the training images, where it is not in its usual place."""
    val_annotations: str | None = None
    """COCO json of the validation images, where it is not in its usual place."""
    val_images: str | None = None
    """Folder of the validation images, where it is not in its usual place."""
    empty_images: bool = True
    """Learn from images without objects too."""

    # --- Head
    head: DetectionHead = "cascade-mask-rcnn"
    """What stands on the backbone."""

    # --- Sizes
    min_sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    """Short sides of the images in training, one drawn for each; the last one is that of evaluation."""
    max_size: int = 1333
    """Longest side of the images."""

    def check_task(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        self.check_dense()
        if not self.min_sizes or min(self.min_sizes) < 32:
            raise ValueError(f"min_sizes={self.min_sizes} must be one short side or more, each at least 32 pixels")
        if self.max_size < max(self.min_sizes):
            raise ValueError(f"max_size={self.max_size} is below the largest of min_sizes={self.min_sizes}; raise it")
