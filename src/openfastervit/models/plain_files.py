"""Whether a torch checkpoint is as large as it says: a small file should not take much memory.

``torch.load(weights_only=True)`` runs none of a file's code, but it unpacks whatever it finds, and gives tensors of any
shape over a storage of any size.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MOST_SHARING = 4
"""How often tensors may share what is stored: the released layout stores one of its weights under two names."""


def is_archive(path: Path) -> bool:
    """Whether a file has the directory of a zip archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # which is_zipfile lets out where a directory says that it lies on several disks
        return False


def too_large_inside(path: Path) -> str | None:
    """Why an archive should not be unpacked, or None. What is no archive is left to who reads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError):
        return None
    size = path.stat().st_size
    # torch.save compresses nothing: members are never more than the file.
    return f"it has {size} bytes, and unpacks to {inside}" if inside > size else None


def unusual_tensor(content: Mapping[Any, Any]) -> str | None:
    """Why the tensors of a checkpoint should not be used, or None: all should be plain ones, and stored in full."""
    stored: dict[int, int] = {}
    shown = 0
    for key, value in _tensors(content):
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}"
            return f"{key} is no plain tensor ({kind})"
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        shown += value.nbytes
        if value.nbytes > storage.nbytes():
            return f"{key} has {value.nbytes} bytes by its shape, and {storage.nbytes()} are stored"
    held = sum(stored.values())
    return f"its tensors have {shown} bytes, and {held} are stored" if shown > _MOST_SHARING * held else None


def _tensors(content: Mapping[Any, Any]) -> list[tuple[str, Tensor]]:
    """Of a mapping and of the mappings right in it, where checkpoints have their weights."""
    found = []
    for key, value in content.items():
        if isinstance(value, Tensor):
            found.append((str(key), value))
        elif isinstance(value, Mapping):
            found += [(str(name), inner) for name, inner in value.items() if isinstance(inner, Tensor)]
    return found
