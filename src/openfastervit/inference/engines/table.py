"""The table of engines, and how one is made."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from openfastervit.inference.engines.engine import (
    Engine,
    EngineError,
    Precision,
    Settings,
    installed,
    require,
)


@dataclass(frozen=True)
class EngineKind:
    """An entry of the table."""

    builder: str
    """``module:function``; imported when it is used, since backends take long to import."""
    precisions: tuple[Precision, ...]
    modules: tuple[str, ...] = ()
    """What must be installed beside torch."""
    extra: str = ""
    """The extra of this package that brings it."""
    devices: tuple[str, ...] = ()
    """Kinds of torch's devices it runs on; all of them where none is named."""
    compiles: bool = False
    """Building takes minutes: ``auto`` measures it where it is asked to."""
    only_on: Mapping[Precision, str] = field(default_factory=dict)
    """Of a precision that not all of its devices have, the one kind that does."""

    def has(self, precision: Precision, device: str) -> bool:
        """Whether it has a precision on a device of torch's."""
        kind = torch.device(device).type
        return precision in self.precisions and self.only_on.get(precision, kind) == kind

    def runs_on(self, device: str) -> bool:
        """Whether it runs on a device of torch's, such as "cpu" or "cuda:1"."""
        return not self.devices or torch.device(device).type in self.devices

    def installed(self) -> bool:
        """Whether the backend is there."""
        return all(map(installed, self.modules))


_HERE = "openfastervit.inference.engines"

ENGINES: dict[str, EngineKind] = {
    "torch-eager": EngineKind(f"{_HERE}.torch:eager", ("fp32", "bf16", "fp16")),
    "torch-folded": EngineKind(f"{_HERE}.torch:folded", ("fp32", "bf16", "fp16", "fp8")),
    "torch-graphed": EngineKind(f"{_HERE}.torch:graphed", ("fp32", "bf16", "fp16", "fp8"), devices=("cuda",)),
    "torch-kernels": EngineKind(f"{_HERE}.torch:kernels", ("fp32", "bf16", "fp16", "fp8"), devices=("cuda",)),
    "torch-compiled": EngineKind(
        f"{_HERE}.torch:compiled", ("fp32", "bf16", "fp16", "fp8"), compiles=True, only_on={"fp8": "cuda"}
    ),
    "torch-packaged": EngineKind(f"{_HERE}.torch:packaged", ("fp32", "bf16", "fp16"), compiles=True),
    "openvino": EngineKind(
        f"{_HERE}.openvino:build", ("fp32", "bf16", "fp16", "int8"), ("openvino", "nncf"), "openvino", ("cpu",)
    ),
    "onnxruntime": EngineKind(
        f"{_HERE}.onnxruntime:build",
        ("fp32", "fp16", "int8"),
        ("onnx", "onnxscript", "onnxruntime"),
        "export",
        ("cpu", "cuda"),
    ),
    "tensorrt": EngineKind(
        f"{_HERE}.tensorrt:build", ("fp32", "fp16", "bf16"), ("tensorrt", "onnx", "onnxscript"), "tensorrt", ("cuda",)
    ),
}
"""Every engine by name, installed or not."""


def installed_engines() -> list[str]:
    """Names of the engines whose backends are installed."""
    return [name for name, kind in ENGINES.items() if kind.installed()]


def create_engine(network: nn.Module, engine: str, settings: Settings) -> Engine:
    """A network on a backend. The network is copied and left as it is.

    Args:
        network: A FasterViT, or another network from images to logits.
        engine: A name of ``ENGINES``.
        settings: What it is built for.

    Raises:
        EngineError: If there is no such engine, its backend is not installed, or it has not that precision.
        ValueError: If the network does not take images of that size.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine={engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    kind = ENGINES[engine]
    require(engine, kind.extra, kind.modules)
    if settings.precision not in kind.precisions:
        raise EngineError(
            f"the engine {engine!r} has no precision {settings.precision!r}; choose {', '.join(kind.precisions)}"
        )
    if not kind.runs_on(settings.device):
        raise EngineError(
            f"the engine {engine!r} runs on {' and '.join(kind.devices)}, not on {settings.device!r}; "
            "choose another engine or device"
        )
    if not kind.has(settings.precision, settings.device):
        raise EngineError(
            f"the engine {engine!r} has precision {settings.precision!r} on {kind.only_on[settings.precision]} alone, "
            f"not on {settings.device!r}; choose another precision or device"
        )
    module, _, function = kind.builder.partition(":")
    built: Engine = getattr(importlib.import_module(module), function)(network, settings)
    return built
