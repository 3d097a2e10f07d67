"""The settings of semantic segmentation: data, head, crops."""

from dataclasses import dataclass, field
from typing import Literal

from openfastervit.tasks.dense_settings import DenseSettings

SegmentationHead = Literal["upernet", "mask2former"]


@dataclass(kw_only=True)
class SegmentationSettings(DenseSettings):
    """What is segmented, by which network, from which crops."""

    # --- Data
    num_classes: int | None = None
    """How many classes there are, where neither the layout nor a classes.txt beside the data tells."""
    ignore_label: int | None = None
    """The value of pixels that count for nothing, where the layout does not tell; 255 always does."""

    # --- Head
    head: SegmentationHead = "upernet"
    """What stands on the backbone."""

    # --- Sizes
    crop_size: list[int] = field(default_factory=lambda: [512, 512])
    """Side, or height and width, of the crops in training."""
    train_size: int | None = None
    """Short side that images are scaled to first in training; none for their own size."""
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """How much images are scaled then, before they are cropped: least and most."""
    eval_size: int | None = None
    """Short side of the images in evaluation; none for their own size."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast, saturation and hue."""

    def check_task(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        self.check_dense()
        if len(self.crop_size) not in (1, 2) or min(self.crop_size) < 32:
            raise ValueError(f"crop_size={self.crop_size} must be one side, or height and width, of at least 32 pixels")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale} must be two numbers above 0, the smaller first")
        for name in ("train_size", "eval_size"):
            if getattr(self, name) is not None and getattr(self, name) < 32:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 32 pixels")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes} must be at least 2")
        if self.ignore_label is not None and not 0 <= self.ignore_label <= 65535:
            raise ValueError(f"ignore_label={self.ignore_label} must be a value that a PNG can hold, from 0 to 65535")
