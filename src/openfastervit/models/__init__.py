"""The networks, by name, and their checkpoints."""

from openfastervit.models.checkpoints import (
    CheckpointError,
    LoadResult,
    load_checkpoint,
    read_checkpoint,
    read_metadata,
    save_checkpoint,
)
from openfastervit.models.factory import UnknownModelError, create_model, list_models
from openfastervit.models.fastervit import FasterViT

__all__ = [
    "CheckpointError",
    "FasterViT",
    "LoadResult",
    "UnknownModelError",
    "create_model",
    "list_models",
    "load_checkpoint",
    "read_checkpoint",
    "read_metadata",
    "save_checkpoint",
]
