"""FasterViT (arXiv 2306.06189): the network, its variants, their registration with timm.

    image (B, 3, H, W)
      stem       two strided convolutions                                          stride  4, dim
      stage 0    conv blocks                                                       stride  4, dim
      stage 1    downsample, conv blocks                                           stride  8, 2 dim
      stage 2    downsample, attention blocks, hierarchical                        stride 16, 4 dim
      stage 3    downsample, attention blocks                                      stride 32, 8 dim
      norm, head batch norm, global average pool, linear

Any height and width from 32 up, at every call.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

import torch
from timm.layers import ClassifierHead
from torch import Tensor, nn

from openfastervit.layers import (
    ConvBlock,
    Downsample,
    EdgeViTAttention,
    GlobalAttention,
    HierarchicalAttention,
    ShiftedWindowAttention,
    Stem,
    TokenMixer,
    TwinsAttention,
    init_linear,
    window_pair,
)
from openfastervit.layers.carriers import CarrierPooling
from openfastervit.layers.conv import MIN_SIZE, check_images
from openfastervit.layers.hat import check_carrier_options
from openfastervit.layers.recompute import recompute
from openfastervit.layers.windows import window_counts
from openfastervit.models import timm_compat
from openfastervit.models.checkpoints import convert_state_dict
from openfastervit.models.designs import DESIGNS, AttentionDesign, StageOptions, check_heard, stage_designs
from openfastervit.models.pretrained import read_pretrained

GLOBAL_POOLS = ("avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax", "")
"""timm's names of poolings; "" is none."""

# Symbolic tracing cannot decide a condition on a size: these run as they are inside a traced graph.
timm_compat.register_notrace_function(check_images)
for _mixer in (HierarchicalAttention, ShiftedWindowAttention, TwinsAttention, EdgeViTAttention, GlobalAttention):
    timm_compat.register_notrace_module(_mixer)


class ConvStage(nn.Module):
    """Downsampling (not in the first stage), then residual convolution blocks."""

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        downsample: bool,
        drop_path: Sequence[float],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = Downsample(dim // 2, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(
            ConvBlock(dim, drop_path=drop_path[i], device=device, dtype=dtype) for i in range(depth)
        )
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C or C/2, H, W) -> (B, C, H', W')``."""
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = recompute(block, x)
            else:
                x = block(x)
        return x


class AttentionStage(nn.Module):
    """Downsampling, then attention."""

    def __init__(
        self,
        dim: int,
        attention: TokenMixer,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.downsample = Downsample(dim // 2, device=device, dtype=dtype)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C/2, H, W) -> (B, C, H', W')``."""
        return self.attention(self.downsample(x))


class FasterViT(nn.Module):
    """FasterViT backbone and classifier.

    Args:
        img_size: Image side or (height, width). A default for configurations: any size works at a call. It decides
            only whether a stage asked to be hierarchical has carriers: its map must have more than one window.
        dim: Channels of stage 0; doubled by each later stage.
        stem_dim: Channels between the stem's convolutions.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage (the first two are unused).
        window_sizes: Window side, or (height, width), of each stage (the first two are unused).
        carrier_size: Each window has ``carrier_size ** 2`` carriers.
        hierarchical: Which stages use carriers (the first two cannot).
        mlp_ratio: Hidden channels of the attention blocks' MLPs over their channels.
        layer_scale: Initial value of the layer scales, or None for none.
        propagate_carriers: Add the carriers to their windows at the end of a hierarchical stage.
        attention: The design of attention in stage 2, or a pair for stages 2 and 3: ``"hat"``, the FasterViT, or one
            of its rivals, with the same depths, widths and MLPs: ``"window"`` (no carriers), ``"shifted-window"``
            (Swin), ``"twins"``, ``"edgevit"``, ``"global"``.
        carrier_levels, carrier_pooling, mask_padding, without: As ``HierarchicalAttention`` takes them, for the stages
            that have it ("hat" and "window"). Defaults are the released network.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first.
        drop_rate: Dropout before the classifier.
        num_classes: Classes, or 0 for no classifier.
        in_chans: Channels of an image.
        global_pool: timm's pooling type; "" for none.
        device: Where parameters are created.
        dtype: Their precision.

    Raises:
        ValueError: If an option is out of range: the message names it, its value and the mend.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        *,
        dim: int = 64,
        stem_dim: int = 64,
        depths: Sequence[int] = (2, 3, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        window_sizes: Sequence[int | Sequence[int]] = (7, 7, 7, 7),
        carrier_size: int = 2,
        hierarchical: Sequence[bool] = (False, False, True, False),
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        propagate_carriers: bool = False,
        attention: AttentionDesign | Sequence[AttentionDesign] = "hat",
        carrier_levels: int = 1,
        carrier_pooling: CarrierPooling = "released",
        mask_padding: bool = False,
        without: Sequence[str] = (),
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("depths", depths),
            ("num_heads", num_heads),
            ("window_sizes", window_sizes),
            ("hierarchical", hierarchical),
        ):
            if not isinstance(value, Sequence) or len(value) != 4:
                raise ValueError(f"{name}={value!r} must have four entries, one a stage")
        for name, number, least in (
            ("dim", dim, 1),
            ("stem_dim", stem_dim, 1),
            ("in_chans", in_chans, 1),
            ("num_classes", num_classes, 0),
        ):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name}={number!r} must be a whole number, at least {least}")
        if not isinstance(mlp_ratio, int | float) or mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={mlp_ratio!r} must be a number above 0")
        if not isinstance(drop_path_rate, int | float) or not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate!r} is outside [0, 1)")
        if global_pool not in GLOBAL_POOLS:
            raise ValueError(
                f"global_pool={global_pool!r} is unknown; choose one of {', '.join(map(repr, GLOBAL_POOLS))}"
            )
        if min(depths) < 1:
            raise ValueError(f"depths={tuple(depths)}: every stage needs at least one block")
        if hierarchical[0] or hierarchical[1]:
            raise ValueError(f"hierarchical={tuple(hierarchical)}: stages 0 and 1 are convolutional, set them to False")
        designs = stage_designs(attention)
        check_carrier_options(carrier_levels, carrier_pooling, mask_padding, without)
        check_heard(designs, tuple(hierarchical[2:]), carrier_levels, carrier_pooling, mask_padding, without)
        self.img_size = _image_size(img_size)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        blocks = sum(depths)
        rates = [drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stem = Stem(in_chans, stem_dim=stem_dim, dim=dim, device=device, dtype=dtype)
        stages: list[nn.Module] = []
        trained_windows: list[tuple[int, int]] = []
        for i in range(4):
            stage_dim = dim * 2**i
            drop_path = rates[sum(depths[:i]) : sum(depths[: i + 1])]
            if i < 2:
                stages.append(
                    ConvStage(
                        stage_dim, depth=depths[i], downsample=i > 0, drop_path=drop_path, device=device, dtype=dtype
                    )
                )
                continue
            window = window_pair(window_sizes[i], f"window_sizes[{i}]")
            trained_windows.append(window)
            mixer = DESIGNS[designs[i - 2]](
                StageOptions(
                    dim=stage_dim,
                    num_heads=num_heads[i],
                    depth=depths[i],
                    stride=4 * 2**i,
                    window_size=window,
                    hierarchical=bool(hierarchical[i]) and _has_carriers(self.img_size, i, window),
                    carrier_size=carrier_size,
                    carrier_levels=carrier_levels,
                    carrier_pooling=carrier_pooling,
                    propagate_carriers=propagate_carriers,
                    mask_padding=mask_padding,
                    without=without,
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path=drop_path,
                    device=device,
                    dtype=dtype,
                )
            )
            stages.append(AttentionStage(stage_dim, mixer, device=device, dtype=dtype))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [{"num_chs": dim * 2**i, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i in range(4)]
        self.num_features = dim * 8
        self.norm: nn.Module = nn.BatchNorm2d(self.num_features, device=device, dtype=dtype)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
        )
        self.head_hidden_size: int = self.num_features * self.head.global_pool.feat_mult()
        self._trained_windows: tuple[tuple[int, int], ...] = (trained_windows[0], trained_windows[0], *trained_windows)
        self._built_size = self.img_size
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all parameters: linear weights normal with std 0.02 cut at +-2, the rest as torch does.

        Args:
            needs_reset: Also reset parameters that a constructor sets, as after ``to_empty()``.
        """
        init_linear(self.head.fc)
        if not needs_reset:
            return
        for module in self.modules():
            init_linear(module)
            reset = getattr(module, "reset_parameters", None)
            if callable(reset) and not isinstance(module, nn.Linear):
                reset()

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, windows: Literal["pad", "fit"] = "pad"
    ) -> None:
        """Choose the windows for an image size. No parameter changes, and other sizes go on working.

        Args:
            img_size: Side or (height, width); None for the present one.
            windows: ``"pad"`` keeps the windows the network was built with and pads maps, equal to the released
                networks. ``"fit"`` takes, per stage and axis, the window that pads least, and among those the one
                nearest the original.

        Raises:
            ValueError: If the size is below 32 or ``windows`` is neither.
        """
        if windows not in ("pad", "fit"):
            raise ValueError(f'windows={windows!r} is neither "pad" nor "fit"')
        size = self.img_size if img_size is None else _image_size(img_size)
        window_sizes = list(self._trained_windows)
        stages = {i: stage.attention for i, stage in enumerate(self.stages) if isinstance(stage, AttentionStage)}
        for i, attention in stages.items():
            if attention.window_size is None:
                continue
            if windows == "fit":
                h, w = self._trained_windows[i]
                height, width = _map_size(size, i)
                least = attention.carrier_size if _hierarchical(attention) else 1
                window_sizes[i] = fit_window(height, h, least), fit_window(width, w, least)
            attention.set_window_size(window_sizes[i])
        self.img_size = size
        # timm's export rebuilds a network from what is recorded: at a size of one window it would lose its carriers.
        for recorded in (size, self._built_size):
            if all(
                _has_carriers(recorded, i, window_sizes[i])
                for i, attention in stages.items()
                if _hierarchical(attention)
            ):
                timm_compat.record_input_size(self, recorded, window_sizes)
                break

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone: the relative-bias MLPs, as in Swin V2."""
        return {name for name, _ in self.named_parameters() if ".bias.mlp." in name}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.attention\.(?:carrier_init|super_init|position)", (0,)),
                (r"^stages\.(\d+)\.(?:attention\.)?blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        for module in self.stages.modules():
            if isinstance(module, ConvStage | TokenMixer):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer (identity without classes)."""
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of ``num_classes`` outputs, 0 for none; None keeps the pooling."""
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0")
        if global_pool is not None and global_pool not in GLOBAL_POOLS:
            raise ValueError(
                f"global_pool={global_pool!r} is unknown; choose one of {', '.join(map(repr, GLOBAL_POOLS))}"
            )
        self.num_classes = num_classes
        self.head_hidden_size = timm_compat.reset_head(
            self.head, num_classes, global_pool, self.num_features, next(self.parameters())
        )
        init_linear(self.head.fc)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages, at strides 4, 8, 16, 32.

        Args:
            x: Images ``(B, in_chans, H, W)``.
            indices: Stages to return: a list, the last n for a number, all for None.
            norm: Apply the final norm to the last map.
            stop_early: Run no stage past the last one asked for.
            output_fmt: Only "NCHW".
            intermediates_only: Return the maps without the final features.

        Returns:
            The maps, or (final features, maps).
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt={output_fmt!r} is not supported: feature maps are "NCHW"')
        take, last_taken = timm_compat.feature_take_indices(len(self.stages), indices)
        intermediates: list[Tensor] = []
        last = len(self.stages) - 1
        x = self.stem(x)
        index = 0
        for index, stage in enumerate(self.stages):
            if stop_early and index > last_taken:
                break
            x = stage(x)
            if index in take:
                intermediates.append(self.norm(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        if not stop_early or last_taken == last:
            x = self.norm(x)
        return x, intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the given stages' maps do not need. Returns the indices of the maps."""
        take, last_taken = timm_compat.feature_take_indices(len(self.stages), indices)
        shorter = last_taken < len(self.stages) - 1
        self.stages = self.stages[: last_taken + 1]
        if prune_norm or shorter:
            self.norm = nn.Identity()  # it belongs to the last stage
        if shorter:
            self.num_features = self.head_hidden_size = self.feature_info[last_taken]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return list(take)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W) -> (B, 8 dim, ceil(H/32), ceil(W/32))``, after the final norm."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map: logits ``(B, num_classes)``, or ``(B, 8 dim)`` before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``.

        Raises:
            ValueError: If the images have another number of channels or a side below 32.
        """
        return self.forward_head(self.forward_features(x))


def fit_window(length: int, trained: int, least: int = 1) -> int:
    """Window side for a map axis: least padding first, then nearest the trained side, then the larger.

    Only sides from half to one and a half times the trained one are considered, so that attention keeps its reach and
    its cost; a map shorter than that is one window.
    """
    shortest = max(least, min(length, (trained + 1) // 2))
    sides = range(shortest, max(shortest, trained + trained // 2) + 1)
    return min(sides, key=lambda side: (-length % side, abs(side - trained), -side))


def _hierarchical(attention: TokenMixer) -> TypeGuard[HierarchicalAttention]:
    """Whether a stage has carriers."""
    return isinstance(attention, HierarchicalAttention) and attention.carrier_init is not None


def _image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= MIN_SIZE for side in size):
        raise ValueError(f"img_size={img_size!r}: give a side or (height, width), each at least {MIN_SIZE}")
    return size


def _map_size(img_size: tuple[int, int], stage: int) -> tuple[int, int]:
    """Height and width of a stage's map: halved and rounded up by each strided convolution."""
    stride = 4 * 2**stage
    return -(-img_size[0] // stride), -(-img_size[1] // stride)


def _has_carriers(img_size: tuple[int, int], stage: int, window: tuple[int, int]) -> bool:
    """Whether a hierarchical stage has more than one window at an image size."""
    n_h, n_w = window_counts(*_map_size(img_size, stage), window)
    return n_h * n_w > 1


# --- The family -----------------------------------------------------------------------------------------------------

_HAT: dict[str, Any] = {"num_heads": (2, 4, 8, 16)}
_SCALED: dict[str, Any] = {"layer_scale": 1e-5, "propagate_carriers": True}
_HEADS_4: dict[str, Any] = {"num_heads": (4, 8, 16, 32)}
_21K: dict[str, Any] = {
    "dim": 196,
    "stem_dim": 64,
    "depths": (3, 3, 12, 5),
    "drop_path_rate": 0.42,
    "hierarchical": (False, False, False, False),
    **_HEADS_4,
    **_SCALED,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "fastervit_0": {"dim": 64, "stem_dim": 64, "depths": (2, 3, 6, 5), "drop_path_rate": 0.2, **_HAT},
    "fastervit_1": {"dim": 80, "stem_dim": 32, "depths": (1, 3, 8, 5), "drop_path_rate": 0.2, **_HAT},
    "fastervit_2": {"dim": 96, "stem_dim": 64, "depths": (3, 3, 8, 5), "drop_path_rate": 0.2, **_HAT},
    "fastervit_3": {"dim": 128, "stem_dim": 64, "depths": (3, 3, 12, 5), "drop_path_rate": 0.3, **_HAT, **_SCALED},
    "fastervit_4": {"dim": 196, "stem_dim": 64, "depths": (3, 3, 12, 5), "drop_path_rate": 0.3, **_HEADS_4, **_SCALED},
    "fastervit_5": {"dim": 320, "stem_dim": 64, "depths": (3, 3, 12, 5), "drop_path_rate": 0.3, **_HEADS_4, **_SCALED},
    "fastervit_6": {"dim": 320, "stem_dim": 64, "depths": (3, 3, 16, 8), "drop_path_rate": 0.5, **_HEADS_4, **_SCALED},
    "fastervit_4_w14_224": {"img_size": 224, "window_sizes": (7, 7, 14, 7), **_21K},
    "fastervit_4_w24_384": {"img_size": 384, "window_sizes": (7, 7, 24, 12), **_21K},
    "fastervit_4_w32_512": {"img_size": 512, "window_sizes": (7, 7, 32, 16), **_21K},
    "fastervit_4_w48_768": {"img_size": 768, "window_sizes": (7, 7, 48, 24), **_21K},
}
"""Constructor arguments of each network of the family."""


def _cfg(filename: str, *, size: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "ahatamiz/FasterViT",
        "hf_hub_filename": filename,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "non-commercial",
        "paper_name": "FasterViT: Fast Vision Transformers with Hierarchical Attention",
        "paper_ids": "arXiv:2306.06189",
        **kwargs,
    }


# A hierarchical stage 2 with windows of 7 has one window, hence no use for its carriers, up to 112 x 112 images. Any
# size from 32 works; this tells tools that probe a network at its smallest size where all of it takes part.
_HIERARCHICAL: dict[str, Any] = {"min_input_size": (3, 128, 128)}


default_cfgs = timm_compat.generate_default_cfgs(
    {
        "fastervit_0.in1k": _cfg("fastervit_0_224_1k.pth.tar", crop_pct=0.875, **_HIERARCHICAL),
        "fastervit_1.in1k": _cfg("fastervit_1_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_2.in1k": _cfg("fastervit_2_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_3.in1k": _cfg("fastervit_3_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_4.in1k": _cfg("fastervit_4_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_5.in1k": _cfg("fastervit_5_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_6.in1k": _cfg("fastervit_6_224_1k.pth.tar", **_HIERARCHICAL),
        "fastervit_4_w14_224.in21k_ft_in1k": _cfg("fastervit_4_21k_224_w14.pth.tar", crop_pct=0.95, crop_mode="squash"),
        "fastervit_4_w24_384.in21k_ft_in1k": _cfg("fastervit_4_21k_384_w24.pth.tar", size=384, crop_mode="squash"),
        "fastervit_4_w32_512.in21k_ft_in1k": _cfg("fastervit_4_21k_512_w32.pth.tar", size=512, crop_mode="squash"),
        "fastervit_4_w48_768.in21k_ft_in1k": _cfg(
            "fastervit_4_21k_768_w48.pth.tar", size=768, crop_pct=0.93, crop_mode="squash"
        ),
    }
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Timm's hook for pretrained weights: any layout to ours; timm itself adapts classifier and input channels."""
    return convert_state_dict(state_dict, model, skip=("head.fc.", "stem.conv1."))


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> FasterViT:
    return timm_compat.build(
        FasterViT,
        variant,
        pretrained=pretrained,
        read_weights=read_pretrained,
        filter_fn=checkpoint_filter_fn,
        **{**VARIANTS[variant], **kwargs},
    )


@timm_compat.register_model
def fastervit_0(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-0: 31.4 M parameters."""
    return _create("fastervit_0", pretrained, kwargs)


@timm_compat.register_model
def fastervit_1(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-1: 53.4 M parameters."""
    return _create("fastervit_1", pretrained, kwargs)


@timm_compat.register_model
def fastervit_2(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-2: 75.9 M parameters."""
    return _create("fastervit_2", pretrained, kwargs)


@timm_compat.register_model
def fastervit_3(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-3: 159.5 M parameters."""
    return _create("fastervit_3", pretrained, kwargs)


@timm_compat.register_model
def fastervit_4(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-4: 365.6 M parameters."""
    return _create("fastervit_4", pretrained, kwargs)


@timm_compat.register_model
def fastervit_5(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-5: 957.5 M parameters."""
    return _create("fastervit_5", pretrained, kwargs)


@timm_compat.register_model
def fastervit_6(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-6: 1360.3 M parameters."""
    return _create("fastervit_6", pretrained, kwargs)


@timm_compat.register_model
def fastervit_4_w14_224(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-4 with global attention at 224, from ImageNet-21K: 271.9 M parameters."""
    return _create("fastervit_4_w14_224", pretrained, kwargs)


@timm_compat.register_model
def fastervit_4_w24_384(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-4 with global attention at 384, from ImageNet-21K: 271.9 M parameters."""
    return _create("fastervit_4_w24_384", pretrained, kwargs)


@timm_compat.register_model
def fastervit_4_w32_512(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-4 with global attention at 512, from ImageNet-21K: 271.9 M parameters."""
    return _create("fastervit_4_w32_512", pretrained, kwargs)


@timm_compat.register_model
def fastervit_4_w48_768(pretrained: bool = False, **kwargs: Any) -> FasterViT:
    """FasterViT-4 with global attention at 768, from ImageNet-21K: 271.9 M parameters."""
    return _create("fastervit_4_w48_768", pretrained, kwargs)


_RELEASED_NAMES = {
    **{f"faster_vit_{i}_224": f"fastervit_{i}" for i in range(7)},
    **{
        f"faster_vit_4_21k_{size}": f"fastervit_4_w{window}_{size}"
        for size, window in ((224, 14), (384, 24), (512, 32), (768, 48))
    },
}
ALIASES: dict[str, str] = {
    **_RELEASED_NAMES,
    **{f"{name}_any_res": ours for name, ours in _RELEASED_NAMES.items()},
    **{f"faster_vit_{i}_any_res": f"fastervit_{i}" for i in range(7)},
}
"""The names people have in their scripts: the network each stands for."""

timm_compat.register_model_deprecations(__name__, dict(ALIASES))
