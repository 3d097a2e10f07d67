"""Answers as clients get them: what they look like, and how they are made of a model's."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from openfastervit.data.coco_masks import encode_mask
from openfastervit.inference.images_in_memory import Answer, Classes, Labels, Objects, Task

JSON = "application/json"
PNG = "image/png"


class ScoredClass(BaseModel):
    """A class, and how sure the network is of it."""

    name: str = Field(alias="class")
    index: int = Field(ge=0, description="Place of the class among all: names need not be unique.")
    score: float = Field(ge=0, le=1, description="Softmax probability.")


class ClassificationAnswer(BaseModel):
    """The best classes, best first."""

    task: Literal["classification"] = "classification"
    predictions: list[ScoredClass]


class RunLengths(BaseModel):
    """A mask as COCO's compressed RLE, as pycocotools reads it."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str


class FoundObject(BaseModel):
    """An object that was found."""

    name: str = Field(alias="class")
    index: int = Field(ge=0, description="Place of the class among all.")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom, in pixels of the upright image."
    )
    mask: RunLengths | None = Field(default=None, description="Where the network gives masks, and masks=rle.")


class DetectionAnswer(BaseModel):
    """The objects, best first."""

    task: Literal["detection"] = "detection"
    width: int = Field(description="Of the upright image.")
    height: int
    predictions: list[FoundObject]


class SegmentationAnswer(BaseModel):
    """The class of each pixel."""

    task: Literal["segmentation"] = "segmentation"
    width: int = Field(description="Of the upright image.")
    height: int
    classes: list[str]
    png: str = Field(
        description="A PNG in base64, of the image's size: each value is the place of the pixel's class.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": PNG},
    )


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


ANSWERS: dict[Task, type[BaseModel]] = {
    "classification": ClassificationAnswer,
    "detection": DetectionAnswer,
    "segmentation": SegmentationAnswer,
}


@dataclass(frozen=True)
class Reply:
    """What a worker sends back for one image."""

    media_type: str
    """Empty where predicting failed."""
    body: bytes
    batch: int = 0
    """Images of the batch, told by the first of them."""


def encode(
    answer: Answer, classes: Sequence[str], size: tuple[int, int], *, masks: bool, png: bool
) -> tuple[str, bytes]:
    """An answer's media type and bytes.

    Args:
        answer: A model's.
        classes: The model's.
        size: Height and width of the image.
        masks: Whether objects have their masks.
        png: Whether labels are a PNG by itself.
    """
    if isinstance(answer, Labels):
        if png:
            return PNG, _png(answer.labels)
        whole: BaseModel = SegmentationAnswer(
            width=size[1],
            height=size[0],
            classes=list(classes),
            png=base64.b64encode(_png(answer.labels)).decode("ascii"),
        )
    elif isinstance(answer, Objects):
        whole = DetectionAnswer(width=size[1], height=size[0], predictions=_objects(answer, masks))
    else:
        whole = ClassificationAnswer(predictions=_scored(answer))
    return JSON, whole.model_dump_json(by_alias=True, exclude_none=True).encode()


def _scored(answer: Classes) -> list[ScoredClass]:
    rows = zip(answer.names, answer.indices, answer.scores, strict=True)
    return [ScoredClass(**{"class": name}, index=index, score=min(score, 1.0)) for name, index, score in rows]


def _objects(answer: Objects, masks: bool) -> list[FoundObject]:
    found = []
    # As COCO's results are written: boxes to hundredths of a pixel, scores to what tells one float32 from the next.
    for place, box in enumerate(answer.boxes.astype(np.float64).round(2).tolist()):
        rle: dict[str, Any] | None = None
        if masks and answer.masks is not None:
            rle = encode_mask(answer.masks[place])
        found.append(
            FoundObject(
                **{"class": answer.names[place]},
                index=answer.labels[place] - 1,
                score=float(str(np.float32(answer.scores[place]))),
                box=tuple(box),
                mask=None if rle is None else RunLengths(**rle),
            )
        )
    return found


def _png(labels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="PNG")
    return file.getvalue()
