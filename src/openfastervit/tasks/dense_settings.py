"""The settings that detection and segmentation share: where images and annotations are, how colours are prepared."""

from dataclasses import dataclass, field
from typing import Any

import timm
from timm.data import resolve_data_config

from openfastervit.models.factory import is_timms, resolve_name
from openfastervit.tasks.network_settings import NetworkSettings, check_within


@dataclass(kw_only=True)
class DenseSettings(NetworkSettings):
    """Data, and what both tasks do to an image."""

    data: str | None = None
    """The folder of the data."""
    train_split: str = "train"
    """The split to learn from."""
    val_split: str = "val"
    """The split to be judged on."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """Other options of the head, by name."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast, saturation and hue."""
    mean: list[float] | None = None
    """Mean of each channel, of values from 0 to 1; the backbone's own where this is not given."""
    std: list[float] | None = None
    """Standard deviation of each channel."""

    def colours(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of an image's channels: as given, else those that the backbone is released with."""
        name = self.model if is_timms(self.model) else resolve_name(self.model)
        released = timm.get_pretrained_cfg(name)
        told = resolve_data_config(pretrained_cfg=released.to_dict() if released else {})
        return list(self.mean or told["mean"]), list(self.std or told["std"])

    def check_dense(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        self.check_network()
        check_within(self, "hflip", 0, 1)
        check_within(self, "color_jitter", 0, float("inf"))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise ValueError(f"{name}={values} must be three numbers, one a channel")
