"""The released weights: where they are had, and the notice of their licence."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openfastervit.models.checkpoints import CheckpointError, read_checkpoint, unwrap

SHA256: dict[str, str] = {}
"""sha256 of released files by file name, where known; a download that differs is refused."""

NOTICE = "The released FasterViT weights are for non-commercial use only; openfastervit's licence does not cover them."
_noticed = False


def read_pretrained(cfg: Mapping[str, Any], cache_dir: str | None = None) -> dict[str, Any]:
    """Weights of a pretrained configuration: its ``file``, or a cached download from the Hugging Face Hub.

    Raises:
        CheckpointError: If the file cannot be had or does not have the sha256 on record.
    """
    global _noticed
    if cfg.get("file"):
        return unwrap(read_checkpoint(cfg["file"]))
    if not cfg.get("hf_hub_id") or not cfg.get("hf_hub_filename"):
        raise CheckpointError(f"no released weights are known for {cfg.get('architecture', 'this network')}")
    if not _noticed:
        _noticed = True
        warnings.warn(NOTICE, UserWarning, stacklevel=2)
    path = download(cfg["hf_hub_id"], cfg["hf_hub_filename"], cache_dir)
    return unwrap(read_checkpoint(path))


def download(repo: str, filename: str, cache_dir: str | None = None) -> Path:
    """Fetch a file of the Hugging Face Hub into its cache, once; verified where its sha256 is known."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir=cache_dir)
    try:
        if isinstance(cached, str):
            path = Path(cached)
        else:
            # One question first: without a network it fails at once, where the download would try again and again.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, filename), timeout=10)
            path = Path(huggingface_hub.hf_hub_download(repo, filename, cache_dir=cache_dir))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise CheckpointError(
            f"cannot download {filename} from {repo} on the Hugging Face Hub ({type(error).__name__}). Without a "
            "network, fetch the file elsewhere and pass its path: create_model(name, checkpoint=PATH)"
        ) from error
    wanted = SHA256.get(filename)
    if wanted is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            raise CheckpointError(f"{path} has sha256 {found}, expected {wanted}; delete it and download again")
    return path
