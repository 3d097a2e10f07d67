"""The settings of image classification: data, network, augmentation, loss."""

from dataclasses import dataclass, field
from typing import Literal

from openfastervit.tasks.network_settings import NetworkSettings, check_within


@dataclass(kw_only=True)
class ClassificationSettings(NetworkSettings):
    """What is classified, by which network, and how images are varied while it learns."""

    # --- Data
    data: str | None = None
    """A folder of images (train/CLASS/..., val/CLASS/..., or CLASS/...), of WebDataset shards or of a saved Hugging
    Face data set; or hfds/NAME, wds/PATTERN, torch/NAME."""
    data_root: str | None = None
    """Where hfds/ and torch/ data sets are kept."""
    download: bool = False
    """Fetch a torch/ data set that is not there yet."""
    train_split: str = "train"
    """The split to learn from."""
    val_split: str = "val"
    """The split to be judged on."""
    val_fraction: float = 0.1
    """Share of the training images held out where there is no such split."""

    # --- Network, besides those of NetworkSettings
    img_size: list[int] | None = None
    """Side, or height and width, of the images; the network's own where this is not given."""
    in_chans: int = 3
    """Channels: colour or grayscale."""
    dropout: float = 0.0
    """Dropout before the classifier."""

    # --- Augmentation
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Share of the image's area that random crops take: least and most."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Width over height of random crops: least and most."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation; used where auto_augment is not."""
    auto_augment: str | None = None
    """timm's policy, such as rand-m9-mstd0.5-inc1 (RandAugment)."""
    random_erasing: float = 0.0
    """Probability that a rectangle of the image is erased."""
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Erased with the mean, one random colour, or noise."""
    repeated_augmentation: int = 1
    """How many times an image stands in a row in an epoch; 1 for once."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none."""
    mixup_prob: float = 1.0
    """Probability that a batch is mixed."""
    mixup_switch_prob: float = 0.5
    """Probability of CutMix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """One mixture for a batch, a pair of images, or an image."""

    # --- How images are prepared; the network's own where these are not given
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] | None = None
    """Filter of resizing; in training crops it is drawn from bilinear and bicubic where this is not given."""
    mean: list[float] | None = None
    """Mean of each channel, of values from 0 to 1."""
    std: list[float] | None = None
    """Standard deviation of each channel."""
    crop_pct: float | None = None
    """Share of the resized image that evaluation looks at."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How evaluation makes the image's shape the network's."""

    # --- Loss
    label_smoothing: float = 0.1
    """Probability spread over all classes."""
    bce: bool = False
    """Binary cross-entropy a class, in place of cross-entropy."""
    bce_threshold: float | None = None
    """Targets above it count as 1, others as 0."""

    def check_task(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        self.check_network()
        if self.in_chans not in (1, 3):
            raise ValueError(f"in_chans={self.in_chans} must be 3, for colour, or 1, for grayscale")
        for name in ("hflip", "vflip", "random_erasing", "mixup_prob", "mixup_switch_prob"):
            check_within(self, name, 0, 1)
        for name in ("dropout", "label_smoothing"):
            check_within(self, name, 0, 1, below=True)
        for name in ("mixup", "cutmix", "color_jitter"):
            check_within(self, name, 0, float("inf"))
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must lie between 0 and 1")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct} must be above 0, at most 1")
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}={pair} must be two numbers above 0, the smaller first")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale={self.crop_scale}: a crop is at most the whole image, 1")
        if self.repeated_augmentation < 1:
            raise ValueError(f"repeated_augmentation={self.repeated_augmentation} must be at least 1 (1: once)")
        if self.img_size is not None and (len(self.img_size) not in (1, 2) or min(self.img_size) < 32):
            raise ValueError(f"img_size={self.img_size} must be one side, or height and width, of at least 32 pixels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != self.in_chans or (name == "std" and min(values) <= 0)):
                raise ValueError(f"{name}={values} must be {self.in_chans} numbers, one a channel")
        if self.bce_threshold is not None and not 0 <= self.bce_threshold < 1:
            raise ValueError(
                f"bce_threshold={self.bce_threshold} must be at least 0, below 1: it divides probabilities"
            )
        if self.bce_threshold is not None and not self.bce:
            raise ValueError(f"bce_threshold={self.bce_threshold} is for binary cross-entropy; add bce: true")
