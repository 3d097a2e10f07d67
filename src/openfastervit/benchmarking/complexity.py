"""Parameters and multiply-adds, counted on the meta device: no weights are copied and nothing is computed."""

import copy
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openfastervit.layers import HierarchicalAttention, TokenMixer
from openfastervit.layers.conv import check_images
from openfastervit.layers.windows import window_counts
from openfastervit.models import FasterViT
from openfastervit.models.fastervit import AttentionStage, ConvStage

Model = TypeVar("Model", bound=nn.Module)


def multiply_adds(model: nn.Module, height: int, width: int, batch: int = 1) -> int:
    """Multiply-adds of one forward pass over ``(batch, in_chans, height, width)`` images, in evaluation mode.

    Also called MACs; twice as many FLOPs. Convolutions and matrix products are counted, those of attention included;
    element-wise work is not. What a network does once a pass, whatever the batch, is counted once: a FasterViT's
    position biases, for instance.

    Args:
        model: A network that takes images and starts with a convolution, on any device. It is not changed.
        height: Of the images.
        width: Of the images.
        batch: Images.

    Raises:
        ValueError: If the network does not take images of that size.
    """
    shadow = on_meta(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(_images(shadow, batch, height, width))
    return int(counter.get_total_flops()) // 2


class Part(NamedTuple):
    """A part of a network at one image size."""

    name: str
    shape: tuple[int, ...]
    """What it puts out for one image: ``(C, H, W)`` for a map, ``(classes,)`` for logits."""
    parameters: int
    blocks: int | None = None
    """Blocks of a stage."""
    window: tuple[int, int] | None = None
    """Height and width of an attention window, where the attention has windows."""
    windows: tuple[int, int] | None = None
    """Windows down and across the map, the last ones perhaps partly padding."""
    carriers: tuple[int, int] | None = None
    """Grid of carrier tokens, where the stage has them and the map more than one window."""


class Summary(NamedTuple):
    """A network at one image size."""

    parts: list[Part]
    """Stem, stages, head."""
    parameters: int
    multiply_adds: int


def summarise(model: FasterViT, height: int, width: int) -> Summary:
    """Shapes, windows and costs of a FasterViT for one ``height x width`` image.

    Raises:
        ValueError: If height or width is below 32.
    """
    shadow = on_meta(model)
    images = _images(shadow, 1, height, width)
    check_images(images, shadow.in_chans)
    parts: list[Part] = []

    def add(name: str, x: Tensor, *modules: nn.Module, **attention: Any) -> None:
        parts.append(Part(name, tuple(x.shape[1:]), sum(map(count_parameters, modules)), **attention))

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = shadow.stem(images)
        add("stem", x, shadow.stem)
        for i, stage in enumerate(shadow.stages):
            x = stage(x)
            if isinstance(stage, AttentionStage):
                add(f"stage {i}", x, stage, **_attention(stage.attention, x))
            else:
                add(f"stage {i}", x, stage, blocks=len(cast(ConvStage, stage).blocks))
        add("head", shadow.forward_head(shadow.norm(x)), shadow.norm, shadow.head)
    return Summary(parts, count_parameters(model), counter.get_total_flops() // 2)


def _attention(stage: TokenMixer, x: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {"blocks": len(cast(nn.ModuleList, stage.blocks))}
    if stage.window_size is None:
        return facts
    windows = window_counts(x.shape[2], x.shape[3], stage.window_size)
    facts |= {"window": stage.window_size, "windows": windows}
    if isinstance(stage, HierarchicalAttention) and stage.carrier_init is not None and windows != (1, 1):
        facts["carriers"] = (stage.carrier_size * windows[0], stage.carrier_size * windows[1])
    return facts


def count_parameters(module: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(model: Model) -> Model:
    """A copy of a network, in evaluation mode, whose tensors have shapes but no storage."""
    # deepcopy takes what it finds in the memo for a copy made already: the real tensors are never copied.
    shadows: dict[int, object] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        shadows[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(model, shadows).eval()


def _images(model: nn.Module, batch: int, height: int, width: int) -> Tensor:
    """Images as the network's first convolution takes them."""
    kernel = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
    return torch.empty(batch, kernel.shape[1], height, width, device="meta", dtype=kernel.dtype)
