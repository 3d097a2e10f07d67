"""FasterViT: hybrid CNN-ViT image backbones with hierarchical attention, for any image size.

Importing this registers ``fastervit_0`` ... with timm.
"""

from openfastervit.layers import HierarchicalAttention
from openfastervit.models import (
    CheckpointError,
    FasterViT,
    UnknownModelError,
    create_model,
    list_models,
    load_checkpoint,
    save_checkpoint,
)

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
