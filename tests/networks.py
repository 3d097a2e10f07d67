"""The family at tiny depth and width: everything that tells the variants apart is kept."""

from typing import Any

import torch
from torch import Tensor, nn

import openfastervit
from openfastervit.models.fastervit import VARIANTS

TINY: dict[str, Any] = {"dim": 16, "stem_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 4), "num_classes": 10}
NAMES = tuple(VARIANTS)
_LEFT = {
    name: {key: VARIANTS[name][key] for key in VARIANTS[name].keys() - {*TINY, "drop_path_rate"}} for name in NAMES
}
DISTINCT = tuple(
    name for place, name in enumerate(NAMES) if _LEFT[name] not in [_LEFT[other] for other in NAMES[:place]]
)
"""Without those that are, at this width and depth, the same network as one before them."""
HAT = "fastervit_0"
SCALED = "fastervit_3"
GLOBAL = "fastervit_4_w14_224"
KINDS = (HAT, SCALED, GLOBAL)
"""One variant of each kind: carriers; carriers, layer scale and propagation; global attention."""


def tiny(name: str = HAT, *, seed: int = 0, **overrides: Any) -> openfastervit.FasterViT:
    """A tiny network with parameters drawn so that every part matters to the output."""
    torch.manual_seed(seed)
    model = openfastervit.create_model(name, **{"drop_path_rate": 0.0, **TINY, **overrides})
    wake(model)
    return model


def wake(model: nn.Module) -> None:
    """Give parameters that start at 0 or 1e-5 a size at which a mistake in them shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.normal_(0.5, 0.1)
            elif ".mlp.fc" in name and ("position" in name or ".bias." in name):
                parameter.normal_(0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.5)


def images(*size: int, batch: int = 2, channels: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Reproducible images ``(batch, channels, H, W)``."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )
