"""Checkpoints: reading files safely, in the released layout or ours, and writing them whole."""

import argparse
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from openfastervit.layers import HierarchicalAttention
from openfastervit.models import timm_compat
from openfastervit.models.layouts import CACHED, released_keys
from openfastervit.models.plain_files import is_archive, too_large_inside, unusual_tensor

Source = str | os.PathLike[str] | Mapping[str, Any]


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which, why and what to do."""


class LoadResult(NamedTuple):
    """What ``load_checkpoint`` left out, in the names of our layout."""

    missing: list[str]
    """Parameters that the checkpoint lacks and that kept their values."""
    unexpected: list[str]
    """Keys of the checkpoint that the network has no place for."""


# --- Weights in any layout --------------------------------------------------------------------------------------------

_WRAPPERS = ("module.", "encoder.", "_orig_mod.")
_CONTAINERS = ("state_dict", "model")


def _network(model: nn.Module) -> nn.Module:
    """The FasterViT inside of data-parallel and compiled wrappers."""
    inner: Any = model
    while (wrapped := getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)) is not None:
        inner = wrapped
    if not (hasattr(inner, "stem") and hasattr(inner, "stages") and isinstance(inner, nn.Module)):
        raise CheckpointError(
            f"{type(inner).__name__} is not a FasterViT; load or save the network before it is wrapped "
            "(create_model(..., checkpoint=..., features_only=True) does so)"
        )
    return inner


def unwrap(source: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint without containers and wrappers' prefixes."""
    for container in _CONTAINERS:
        inner = source.get(container)
        if isinstance(inner, Mapping) and inner:
            source = inner
            break
    out = dict(source)
    strange = [key for key in out if not isinstance(key, str)]
    if strange:
        raise CheckpointError(f"this is not a FasterViT checkpoint: it holds the key {strange[0]!r}, which is no name")
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            if out and all(key.startswith(prefix) for key in out):
                out = {key.removeprefix(prefix): value for key, value in out.items()}
    return out


def _to_ours(weights: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Rename released keys to ours for a network with parameters ``names``; also the keys that fit nowhere."""
    ours = {released: (name, released) for name in names for released in released_keys(name)}
    out: dict[str, Any] = {}
    unknown: list[str] = []
    first: dict[str, str] = {}
    for key, value in weights.items():
        if CACHED.search(key):
            continue  # follows from the parameters; the stored value may be of another image size
        if key not in ours:
            unknown.append(key)
            continue
        name = ours[key][0]
        twice = name in out and isinstance(value, Tensor) and isinstance(out[name], Tensor)
        if twice and not torch.equal(out[name], value):
            raise CheckpointError(
                f"{first[name]} and {key} are one tensor stored twice, but they differ; the checkpoint is damaged"
            )
        out[name] = value
        first.setdefault(name, key)
    return out, unknown


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:4])
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"


def _is_released(weights: Mapping[str, Any]) -> bool:
    """Whether unwrapped weights are in the released layout, not in ours; an error where they are in neither."""
    if any(str(key).startswith(("patch_embed.", "levels.")) for key in weights):
        return True
    if any(str(key).startswith(("stem.", "stages.")) for key in weights):
        return False
    found = _listed([str(key) for key in weights]) or "nothing"
    raise CheckpointError(f"this is not a FasterViT checkpoint: it holds {found}")


def check_is_fastervit(state_dict: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` where not even the names are a FasterViT's, in any layout."""
    _is_released(unwrap(state_dict))


def convert_state_dict(
    state_dict: Mapping[str, Any], model: nn.Module, *, strict: bool = True, skip: Collection[str] = ()
) -> dict[str, Tensor]:
    """Weights in any layout, as a state dict of ours for ``model``.

    Args:
        state_dict: Weights in the released layout or ours, bare or under ``state_dict`` or ``model``, perhaps with the
            prefixes ``module.``, ``encoder.`` or ``_orig_mod.``.
        model: A FasterViT.
        strict: Raise where keys are missing or unknown.
        skip: Prefixes of our names whose absence and shape are not checked here.

    Raises:
        CheckpointError: If these are not weights of this network: the message names the keys.
    """
    weights = unwrap(state_dict)
    expected = dict(model.state_dict())
    released = _is_released(weights)
    # Names of a headless network too, so that a classifier it drops is recognised.
    names = [*expected, "head.fc.weight", "head.fc.bias"]
    if released:
        converted, unknown = _to_ours(weights, names)
    else:
        converted = {key: value for key, value in weights.items() if key in names}
        unknown = [key for key in weights if key not in names]
    skipped = tuple(skip)
    if "head.fc.weight" not in expected:
        extra = [key for key in converted if key not in expected]
        if not any(prefix.startswith("head.") for prefix in skipped):
            unknown += extra
            converted = {key: value for key, value in converted.items() if key in expected}

    def shown(name: str) -> str:
        return (released_keys(name) or (name,))[0] if released else name

    missing = [name for name in expected if name not in converted and not name.startswith(skipped)]
    # Counters of batch norm say nothing about the function; old files lack them.
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    converted.update({name: expected[name] for name in counters})
    missing = [name for name in missing if name not in counters]
    if strict and (missing or unknown):
        parts = []
        if missing:
            parts.append(f"lacks {_listed([shown(name) for name in missing])}")
        if unknown:
            parts.append(f"has keys unknown to it: {_listed(unknown)}")
        raise CheckpointError(f"the checkpoint does not fit this network: it {'; it '.join(parts)}")
    for name, value in converted.items():
        if name not in expected or (skipped and name.startswith(skipped)):
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{shown(name)} is a {type(value).__name__}, not a tensor")
        if value.shape != expected[name].shape:
            message = f"{shown(name)} has shape {list(value.shape)}, the network needs {list(expected[name].shape)}"
            if name.startswith("head.fc.") and value.dim():
                message += (
                    f": the checkpoint has {value.shape[0]} classes. create_model(..., checkpoint=..., "
                    f"num_classes={value.shape[0]}) keeps its classifier, another number starts a new one"
                )
            raise CheckpointError(message)
    return converted


def released_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A network's state dict in the released layout, the carrier initialiser under both its names.

    Raises:
        CheckpointError: If it has parameters that no released network has; the message names one.
    """
    state_dict = model.state_dict()
    for mixer in model.modules():
        if isinstance(mixer, HierarchicalAttention):
            for option, released in (("carrier_pooling", "released"), ("mask_padding", False)):
                value = getattr(mixer, option)
                if value != released and (option != "carrier_pooling" or mixer.carrier_size):
                    raise CheckpointError(
                        f"the released layout cannot tell of {option}={value!r}, and would be read as another network; "
                        'save with layout="openfastervit"'
                    )
    for name in state_dict:
        if not released_keys(name):
            raise CheckpointError(
                f"the released layout has no name for {name}: it knows hierarchical attention with one level of "
                'carriers and nothing else; save with layout="openfastervit"'
            )
    return {key: value for name, value in state_dict.items() for key in released_keys(name)}


# --- Files ----------------------------------------------------------------------------------------------------------

_NUMPY_SCALAR = np.float64().__reduce__()[0]
# Plain data that training scripts store beside the weights. Building these runs no code of the file.
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64")),
]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file, safetensors or torch, running none of its code.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, of another kind, asks to run code, or is much larger than it looks.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "best.safetensors"
        raise CheckpointError(f"{path} is a folder; give the checkpoint file inside it, such as {inside}")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; check the path")
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:9] == b"{":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is a damaged or truncated safetensors file ({error}); fetch it again"
            ) from error
    if not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is neither a safetensors nor a torch checkpoint")
    large = too_large_inside(path)
    if large is not None:
        raise CheckpointError(
            f"{path} is refused: {large}, which no file of torch.save does; ask its author for safetensors"
        )
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # advice for who wrote the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        # A pickle that is read, whole and refused; bytes that only begin like a zip file are none.
        if name or head.startswith(b"\x80") or is_archive(path):
            why = f"loading it would run code ({name[1]})" if name else "it is no plain checkpoint, and could run code"
            raise CheckpointError(
                f"{path} is refused: {why}. Ask its author for safetensors, or save the weights alone: "
                "torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(
            f"{path} is a damaged or truncated torch checkpoint, or none at all; fetch it again"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # what a reader raises on arbitrary bytes has no common class
        raise CheckpointError(
            f"{path} is a damaged or truncated torch checkpoint, or none at all; fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    unusual = unusual_tensor(content)
    if unusual is not None:
        raise CheckpointError(f"{path} is refused: {unusual}; save the weights as plain tensors")
    return dict(content)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote beside the weights; empty for other files."""
    path = Path(path)
    with path.open("rb") as file:
        if file.read(9)[8:9] != b"{":
            return {}
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get("openfastervit", "{}")
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is a damaged or truncated safetensors file ({error}); fetch it again") from error
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, numbers of thousands of digits, brackets without end
        raise CheckpointError(f"{path} holds damaged metadata ({error}); fetch it again") from error
    return metadata if isinstance(metadata, dict) else {}


def load_checkpoint(
    model: nn.Module, source: Source, strict: bool = True, *, new_classifier: bool = False
) -> LoadResult:
    """Load weights into a FasterViT.

    Args:
        model: A network from ``create_model`` or ``FasterViT``.
        source: A file (safetensors or torch) or a state dict, in the released layout or ours.
        strict: Raise where keys are missing or unknown; otherwise report them.
        new_classifier: Where the checkpoint's classes are not the network's, keep the network's own classifier.

    Returns:
        The missing and the unexpected keys, both empty when strict.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file cannot be read safely or does not fit: the message names the key.
    """
    model = _network(model)
    if isinstance(source, Mapping):
        weights = unwrap(source)
    else:
        weights = unwrap(read_checkpoint(source))
    try:
        converted = convert_state_dict(weights, model, strict=strict, skip=("head.fc.",) if new_classifier else ())
    except CheckpointError as error:
        if isinstance(source, Mapping):
            raise
        raise CheckpointError(f"{source}: {error}") from error
    expected = model.state_dict()
    if new_classifier:
        converted = {
            name: value
            for name, value in converted.items()
            if not name.startswith("head.fc.") or (name in expected and expected[name].shape == value.shape)
        }
        if ("head.fc.weight" in converted) != ("head.fc.bias" in converted):
            converted = {name: value for name, value in converted.items() if not name.startswith("head.fc.")}
    result = model.load_state_dict(converted, strict=False)
    # Names of the released layout stay as they are found: there is no other name for an unknown key.
    unexpected = [] if strict else [key for key in weights if key not in _known(weights, expected)]
    missing = [name for name in result.missing_keys if not (new_classifier and name.startswith("head.fc."))]
    return LoadResult(missing, unexpected)


def _known(weights: Mapping[str, Any], expected: Iterable[str]) -> set[str]:
    names = set(expected)
    return names | {key for name in names for key in released_keys(name)} | {k for k in weights if CACHED.search(k)}


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    layout: Literal["openfastervit", "released"] = "openfastervit",
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network's weights, to a temporary file first: a full disk or a kill leaves the old file whole.

    Args:
        model: A FasterViT.
        path: Ends in ``.safetensors`` (any layout), else a torch file is written: ``{"state_dict": ...}``.
        layout: ``"openfastervit"``, or ``"released"`` for tools that expect the released names.
        metadata: Plain data to keep beside the weights (safetensors only): ``fastervit predict`` reads ``classes``
            and ``input`` from it, and ``model`` and ``overrides``, which are filled in for a network that
            ``create_model`` made.

    Returns:
        The path written.

    Raises:
        ValueError: If the layout is unknown, or metadata is given for a torch file.
    """
    path = Path(path)
    model = _network(model)
    if layout not in ("openfastervit", "released"):
        raise ValueError(f'layout={layout!r} is neither "openfastervit" nor "released"')
    weights = dict(model.state_dict()) if layout == "openfastervit" else released_state_dict(model)
    safe = path.suffix == ".safetensors"
    if metadata is not None and not safe:
        raise ValueError(f"{path}: metadata needs a .safetensors file")
    if not safe:
        weights = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        if safe:
            write_safetensors(weights, temporary, metadata_text(model, metadata or {}))
        else:
            torch.save({"state_dict": weights}, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_safetensors(weights: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: str) -> None:
    """Write weights and our metadata; the same ones give the same bytes.

    The library writes a header's metadata in an order that differs from run to run; here it is sorted.
    """
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    safetensors.torch.save_file(plain, path, metadata={"format": "pt", "openfastervit": metadata})
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # the library pads with spaces
        file.seek(8)
        file.write(text.ljust(size))
    os.chmod(path, 0o666 & ~_umask())  # the library lets nobody but the owner read it


def metadata_text(model: nn.Module, metadata: Mapping[str, Any]) -> str:
    """What ``save_checkpoint`` writes beside the weights: ``metadata``, and what it takes to create the network again.

    Raises:
        ValueError: If the metadata is not plain data.
    """
    try:
        told = json.dumps(dict(metadata))
    except TypeError as error:
        raise ValueError(f"metadata={metadata!r} is not plain data: {error}") from error
    known = timm_compat.construction(model)
    try:
        return json.dumps({**known, **metadata})
    except TypeError:  # options that are not plain data: the network cannot be told, the rest can
        return told


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
