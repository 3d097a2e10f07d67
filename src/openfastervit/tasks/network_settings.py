"""The settings of the network that all tasks share: which one, its first weights, what of it learns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(kw_only=True)
class NetworkSettings:
    """Which network learns, from which weights."""

    model: str = "fastervit_0"
    """The network: one of ours, or any of timm's."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Other options of the network, by name."""
    pretrained: bool = False
    """Start from the released weights (for non-commercial use only), downloaded."""
    weights: str | None = None
    """Start from this checkpoint; what depends on the classes is kept only where these are the same."""
    windows: Literal["pad", "fit"] = "pad"
    """Windows for the images' size: the network's own with padding, or those that pad least."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    freeze_backbone: bool = False
    """Train alone what stands on the backbone: the classifier, or the other heads."""
    freeze_batch_norm: bool = False
    """Keep the statistics of the backbone's batch norm, and its weights, as they are."""

    def check_network(self) -> None:
        """Raise ``ValueError`` where settings are out of range or contradict each other."""
        check_within(self, "drop_path", 0, 1, below=True)
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights both name the first weights; give one of them")
        for option, setting in _SETTINGS_OF_OPTIONS.items():
            if option in self.model_options:
                raise ValueError(f"model_options: {option} cannot stand there; it {setting}")
        if self.weights is not None and not Path(self.weights).is_file():
            raise FileNotFoundError(f"weights={self.weights}: there is no such file")


_SETTINGS_OF_OPTIONS = {
    "num_classes": "follows from the data",
    "in_chans": "is the setting in_chans",
    "drop_path_rate": "is the setting drop_path",
    "drop_rate": "is the setting dropout",
}


def check_within(settings: object, name: str, least: float, most: float, *, below: bool = False) -> None:
    """Raise ``ValueError`` unless a setting lies from ``least`` to ``most``, which may itself be excluded."""
    value = getattr(settings, name)
    if not (least <= value < most if below else least <= value <= most):
        upper = "" if most == float("inf") else f", {'below' if below else 'at most'} {most:g}"
        raise ValueError(f"{name}={value} must be at least {least:g}{upper}")
