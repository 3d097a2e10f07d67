"""The designs of attention that a stage of the network may have: hierarchical attention, and its rivals.

A new one: a ``TokenMixer`` in a file of its own in ``layers/``, and an entry in ``DESIGNS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch

from openfastervit.layers import (
    EdgeViTAttention,
    GlobalAttention,
    HierarchicalAttention,
    ShiftedWindowAttention,
    TokenMixer,
    TwinsAttention,
)
from openfastervit.layers.carriers import CarrierPooling

AttentionDesign = Literal["hat", "window", "shifted-window", "twins", "edgevit", "global"]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What the network asks of a stage of attention. A design takes what it has a use for."""

    dim: int
    num_heads: int
    depth: int
    stride: int
    """Pixels of the image a cell of the map stands for, along an axis."""
    window_size: tuple[int, int]
    hierarchical: bool
    carrier_size: int
    carrier_levels: int
    carrier_pooling: CarrierPooling
    propagate_carriers: bool
    mask_padding: bool
    without: Sequence[str]
    mlp_ratio: float
    layer_scale: float | None
    drop_path: Sequence[float]
    device: torch.device | str | None
    dtype: torch.dtype | None

    def common(self) -> dict[str, Any]:
        """Arguments that every design takes, all but ``dim`` and ``num_heads``."""
        return {
            "depth": self.depth,
            "mlp_ratio": self.mlp_ratio,
            "layer_scale": self.layer_scale,
            "drop_path": self.drop_path,
            "device": self.device,
            "dtype": self.dtype,
        }


def _hat(options: StageOptions) -> TokenMixer:
    return HierarchicalAttention(
        options.dim,
        options.num_heads,
        window_size=options.window_size,
        hierarchical=options.hierarchical,
        carrier_size=options.carrier_size,
        carrier_levels=options.carrier_levels,
        carrier_pooling=options.carrier_pooling,
        propagate_carriers=options.propagate_carriers,
        mask_padding=options.mask_padding,
        without=options.without,
        **options.common(),
    )


def _window(options: StageOptions) -> TokenMixer:
    return HierarchicalAttention(
        options.dim,
        options.num_heads,
        window_size=options.window_size,
        hierarchical=False,
        mask_padding=options.mask_padding,
        without=options.without,
        **options.common(),
    )


def _shifted_window(options: StageOptions) -> TokenMixer:
    return ShiftedWindowAttention(options.dim, options.num_heads, window_size=options.window_size, **options.common())


def _reduction(options: StageOptions) -> int:
    """How much smaller the map of keys is, along an axis: 2 at stride 16 and 1 at 32, as Twins and EdgeViT have it."""
    return max(32 // options.stride, 1)


def _twins(options: StageOptions) -> TokenMixer:
    return TwinsAttention(
        options.dim,
        options.num_heads,
        window_size=options.window_size,
        reduction=_reduction(options),
        **options.common(),
    )


def _edgevit(options: StageOptions) -> TokenMixer:
    return EdgeViTAttention(options.dim, options.num_heads, sampling=_reduction(options), **options.common())


def _global(options: StageOptions) -> TokenMixer:
    return GlobalAttention(options.dim, options.num_heads, **options.common())


DESIGNS: MappingProxyType[str, Callable[[StageOptions], TokenMixer]] = MappingProxyType(
    {
        "hat": _hat,
        "window": _window,
        "shifted-window": _shifted_window,
        "twins": _twins,
        "edgevit": _edgevit,
        "global": _global,
    }
)
"""What ``attention=`` of a FasterViT may be."""


def stage_designs(attention: str | Sequence[str]) -> tuple[str, str]:
    """The designs of stages 2 and 3, from one (for stage 2; stage 3 is "hat") or both.

    Raises:
        ValueError: If one is unknown.
    """
    designs = (attention, "hat") if isinstance(attention, str) else tuple(attention)
    if len(designs) != 2 or any(design not in DESIGNS for design in designs):
        raise ValueError(
            f"attention={attention!r}: give one of {', '.join(DESIGNS)} for stage 2, or a pair of them for stages 2, 3"
        )
    return designs[0], designs[1]


def check_heard(
    designs: Sequence[str],
    hierarchical: Sequence[bool],
    carrier_levels: int,
    carrier_pooling: str,
    mask_padding: bool,
    without: Sequence[str],
) -> None:
    """Refuse options that no stage would hear of, by the designs of stages 2 and 3 and whether these are hierarchical.

    Raises:
        ValueError: If one is not the default, and neither stage takes it.
    """
    hat = any(design == "hat" and asked for design, asked in zip(designs, hierarchical, strict=True))
    windows = "hat" in designs or "window" in designs
    for name, value, default, heard in (
        ("carrier_levels", carrier_levels, 1, hat),
        ("carrier_pooling", carrier_pooling, "released", hat),
        ("mask_padding", mask_padding, False, windows),
        ("without", tuple(without), (), windows),
    ):
        if value != default and not heard:
            raise ValueError(
                f"{name}={value!r}: no stage takes it, with attention={tuple(designs)!r} and "
                f"hierarchical={tuple(hierarchical)!r} in stages 2 and 3; leave it out"
            )
