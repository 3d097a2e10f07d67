"""Tiny networks in which every layer matters to the logits."""

from typing import Any

import torch

from openfastervit import FasterViT
from tests.networks import HAT, tiny


def lively(name: str = HAT, *, seed: int = 0, **overrides: Any) -> FasterViT:
    """As ``tiny``, in evaluation mode, with weights of unit gain, and with carriers that are heard.

    As initialised, with a standard deviation of 0.02, attention moves the logits in their ninth digit: a network
    without it would pass for exact. And a bias between tokens of 16 times a sigmoid, where carriers have 0, drowns them
    unless the sigmoid is small.
    """
    model = tiny(name, seed=seed, **overrides).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias.mlp.fc1.bias"):
                parameter.fill_(1.0)
            elif key.endswith(".bias.mlp.fc2.weight"):
                parameter.normal_(-3 / parameter.shape[1], parameter.shape[1] ** -0.5, generator=generator)
            elif parameter.dim() >= 2 and "position.mlp" not in key and ".bias.mlp" not in key:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())
