"""The first step: a shard to parts, each the pixels of a batch of its images. Runs on processors.

A part is ``batch_size`` places of the shard, fewer images where some cannot be read: which images share a batch, and so
the last digits of their scores, follows from their places alone, whoever decodes them and however often.
"""

import io
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from openfastervit.data.images import ImageError, open_image
from openfastervit.inference.cluster.sources import Item, Remote, Shard, open_store
from openfastervit.inference.output import encoded_as_text
from openfastervit.inference.pipeline import overlapped
from openfastervit.inference.preparation import Preparation

PARTS = pa.schema(
    [
        ("shard", pa.int64()),
        ("part", pa.int64()),  # counted from 0
        ("parts", pa.int64()),  # of the shard, in its last row; else null
        ("images", pa.list_(pa.string())),
        ("reasons", pa.list_(pa.string())),  # why an image cannot be read; null for those that are in "pixels"
        ("shape", pa.list_(pa.int64())),  # (n, C, H, W)
        ("pixels", pa.large_binary()),
        ("error", pa.string()),  # why the shard cannot be read, in its last row
    ]
)
"""What the step gives. A shard's last row has no images: it tells how many parts there are."""

FETCHES = 8
"""Images of a store that are fetched at once: each waits for an answer much longer than it is decoded."""
Result = TypeVar("Result")


def decode(shards: pa.Table, *, preparation: Preparation, batch_size: int) -> Iterator[pa.Table]:
    """A table with the number of a shard and the pickled ``Shard``, to tables of ``PARTS``."""
    for number, work in zip(shards["shard"].to_pylist(), shards["work"].to_pylist(), strict=True):
        shard: Shard = pickle.loads(work)
        parts, error = 0, None
        try:
            for row in _parts(shard, preparation, batch_size):
                yield _table({"shard": number, "part": parts, **row})
                parts += 1
        except Exception as raised:  # whatever a store's library raises: it is told, and the other shards go on
            error = " ".join(f"{type(raised).__name__}: {raised}".split())
        yield _table({"shard": number, "part": parts, "parts": parts, "error": error})


def _parts(shard: Shard, preparation: Preparation, batch_size: int) -> Iterator[dict[str, Any]]:
    def load(item: Item) -> Tensor | ImageError:
        return load_item(item, preparation)

    def join(loaded: list[Tensor | ImageError]) -> tuple[list[str | None], Tensor | None]:
        pixels = [image for image in loaded if isinstance(image, Tensor)]
        reasons = [str(image) if isinstance(image, ImageError) else None for image in loaded]
        return reasons, torch.stack(pixels) if pixels else None

    workers = FETCHES if shard.fetched else 1
    for items, (reasons, pixels) in overlapped(shard.items(), load, join, batch_size=batch_size, workers=workers):
        row: dict[str, Any] = {"images": [as_text(item.image) for item in items], "reasons": reasons}
        if pixels is not None:
            row |= {"shape": list(pixels.shape), "pixels": pixels.numpy().tobytes()}
        yield row


def load_item(item: Item, preparation: Preparation) -> Tensor | ImageError:
    """8-bit pixels ``(C, H, W)``, or why there are none, in the words of the local predictor.

    Raises:
        Exception: Of a store's library, if the store does not answer: another time it may.
    """
    content = item.content
    if isinstance(content, ImageError):
        return content
    if isinstance(content, Remote):
        try:
            content = _tried(lambda: _fetch(item))
        except FileNotFoundError:
            return ImageError("there is no such file")
        except PermissionError:
            return ImageError("reading it is not permitted")
    if not isinstance(content, bytes):
        return preparation.load(content)
    try:
        return preparation.pixels(open_image(io.BytesIO(content), preparation.mode))
    except ImageError as error:
        return error


def as_text(name: str) -> str:
    """A file's name as Parquet holds it: what is no text is escaped."""
    return encoded_as_text(name).decode()


def _fetch(item: Item) -> bytes:
    assert isinstance(item.content, Remote)
    file_system, path = open_store(item.content.url)
    return bytes(file_system.cat_file(path))


def _tried(call: Callable[[], Result]) -> Result:
    """What a call gives, with a few more tries where a store is busy."""
    for seconds in (1, 4, None):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:  # libraries of stores have kinds of their own
            if seconds is None:
                raise
            time.sleep(seconds)
    raise AssertionError


def _table(row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row], PARTS)
