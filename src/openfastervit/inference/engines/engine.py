"""What an engine is: a network made ready to run on one backend, images in, logits out."""

import copy
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from openfastervit.inference.fold import fold
from openfastervit.models import FasterViT

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
"""Of the products; engines keep in float32 what needs it."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

MAX_DIFFERENCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "fp8": 0.25, "int8": 0.5}
"""How far an engine may be from the network: of an image's logits, the norm of the difference over their own. What int8
loses in accuracy is bounded where it is quantised; here a wrong result is told from a rounded one. Of fp8: three bits
of mantissa round a row of weights or of activations by 2.6 % of its norm, and a product of the two by 3.7 %. Layers err
independently, each as a part of the sum that comes to the classifier; a few times that is a deep network's due."""

MAX_VALUE = 100.0
"""Of a normalised image: usual ones stay within 3, and pixels that were left from 0 to 255 do not."""


def working_type(precision: Precision) -> torch.dtype:
    """The type that images, weights and activations have in torch: for fp8, what its products are surrounded by."""
    return torch.bfloat16 if precision == "fp8" else DTYPES[precision]


@runtime_checkable
class Engine(Protocol):
    """A network on a backend. One thread at a time may call it."""

    name: str
    """As in ``ENGINES``."""
    precision: Precision
    device: torch.device
    """Where images are expected; those from elsewhere are moved there."""

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)``, floating point, to logits ``(B, classes)`` in float32, on ``device``.

        Raises:
            ValueError: If the images have another shape or type than the engine was built for.
        """
        ...

    def close(self) -> None:
        """Let go of memory and threads. The engine cannot be called any more; closing twice is harmless."""
        ...


@dataclass(frozen=True)
class Settings:
    """What an engine is built for.

    Raises:
        ValueError: If a value is out of range.
    """

    size: tuple[int, int]
    """Height and width of the images."""
    precision: Precision = "fp32"
    batch_size: int = 1
    """The batch it is tuned for; others work."""
    device: str = "cpu"
    threads: int | None = None
    """Of the CPU; by default as many as torch uses."""
    calibration: Tensor | None = None
    """Normalised images ``(n, C, H, W)`` that int8 takes its ranges from."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size={self.size!r} is not (height, width)")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        for name, value in (("batch_size", self.batch_size), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    @property
    def cores(self) -> int:
        """Threads to use."""
        return self.threads or torch.get_num_threads()

    def at(self, precision: Precision) -> "Settings":
        """The same in another precision."""
        return replace(self, precision=precision)


class EngineError(ValueError):
    """An engine cannot be had: the message names what is missing and how to get it."""


def require(engine: str, extra: str, modules: Sequence[str]) -> None:
    """Raise ``EngineError`` unless the modules are installed, naming the extra that brings them."""
    missing = [module for module in modules if not installed(module)]
    if missing:
        raise EngineError(
            f"the engine {engine!r} needs {' and '.join(missing)}; install with: pip install 'openfastervit[{extra}]'"
        )


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def deployable(network: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """A copy of a network for inference: a FasterViT folded, one of timm's with its training branches merged.

    The weights of convolutions lie channels-last, nothing takes gradients.
    """
    if isinstance(network, FasterViT):
        return fold(network, size)
    network = reparameterize_model(copy.deepcopy(network).eval())
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def in_channels(network: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution.

    Raises:
        ValueError: If it has none.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4:
            return parameter.shape[1]
    raise ValueError(f"{type(network).__name__} has no convolution, and so takes no images")


def check_batch(images: Tensor, channels: int, size: tuple[int, int], engine: str) -> None:
    """Raise ``ValueError`` unless ``images`` are ``(B, channels, *size)``, floating point, finite and normalised.

    Their values are looked at on the CPU alone: a GPU would have to be waited for.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{engine}: images must be a floating point tensor, normalised, not {found}")
    if images.dim() != 4 or tuple(images.shape[1:]) != (channels, *size) or len(images) < 1:
        raise ValueError(
            f"{engine}: expected images (B, {channels}, {size[0]}, {size[1]}), got {list(images.shape)}; "
            "build the engine for the size of the images"
        )
    if images.device.type != "cpu":
        return
    low, high = (float(value) for value in torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):  # some kernels would make numbers of them
        raise ValueError(f"{engine}: the images hold NaN or infinity; check how they were prepared")
    if max(-low, high) > MAX_VALUE:
        raise ValueError(
            f"{engine}: the images' values go from {low:g} to {high:g}: they are not normalised; "
            "for 8-bit pixels that is (pixels / 255 - mean) / std"
        )


def difference(found: Tensor, expected: Tensor) -> float:
    """How far logits ``(B, classes)`` are from what they should be: the largest of an image, relative, in norm."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    relative = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(relative.max())
