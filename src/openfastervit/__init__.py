"""FasterViT: hybrid CNN-ViT image backbones with hierarchical attention, for any image size.

Importing this registers ``fastervit_0`` ... with timm. Where only torch is installed, ``HierarchicalAttention`` and
``openfastervit.layers`` are there all the same, and asking for a network says what is missing.
"""

from typing import Any

from openfastervit.layers import HierarchicalAttention

_missing: ImportError | None = None
try:
    from openfastervit.models import (
        CheckpointError,
        FasterViT,
        UnknownModelError,
        create_model,
        list_models,
        load_checkpoint,
        save_checkpoint,
    )
except ImportError as error:  # kept, and raised when a network is asked for
    if (error.name or "").partition(".")[0] == "openfastervit":
        raise
    _missing = error

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "FasterViT",
    "HierarchicalAttention",
    "UnknownModelError",
    "__version__",
    "create_model",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if _missing is not None and name in __all__:
        raise ImportError(f"openfastervit.{name} needs {_missing.name or 'more'}, which is not installed") from _missing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
