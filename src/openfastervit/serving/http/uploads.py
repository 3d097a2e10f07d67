"""From a request's body to an image and what is asked of it.

Only JPEG, PNG and WebP are decoded: each of Pillow's other decoders would be one more to trust with strangers' bytes.
"""

import base64
import binascii
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from openfastervit.data.images import ImageError, ImageMode, ImageTooLargeError, open_image

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_SCANS = 200
"""Of a JPEG. Usual ones have up to a dozen; each is a pass over all pixels, and a few bytes are enough for one."""
_RAW = ("", "application/octet-stream", "image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/webp")
FORM, JSON = "multipart/form-data", "application/json"


class RefusedError(Exception):
    """A request that is not answered as it hoped.

    Args:
        status: Of HTTP.
        detail: What the client is told.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Options(BaseModel):
    """What is asked of an image; options of other tasks than the network's have no effect."""

    model_config = ConfigDict(extra="ignore")

    topk: int | None = Field(default=None, ge=1, description="Classes in a classifier's answer.")
    score_threshold: float = Field(
        default=0.3, ge=0, le=1, allow_inf_nan=False, description="Objects below it are left out."
    )
    masks: Literal["rle", "none"] = Field(default="rle", description="Whether objects have masks.")
    format: Literal["png", "json"] = Field(
        default="png", description="Of a segmenter's answer: an index PNG, or JSON with one inside."
    )


class JsonRequest(BaseModel):
    """An image in JSON. Options in it count more than those of the query."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        description="A JPEG, PNG or WebP in base64.", min_length=1, json_schema_extra={"contentEncoding": "base64"}
    )
    topk: int | None = Field(default=None, ge=1)
    score_threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    masks: Literal["rle", "none"] | None = None
    format: Literal["png", "json"] | None = None


_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "A file: JPEG, PNG or WebP."},
    },
}


def body_description() -> dict[str, Any]:
    """The request's body, for OpenAPI."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    kinds = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
    content: dict[str, Any] = dict.fromkeys(kinds, picture)
    content[FORM] = {"schema": _FORM_SCHEMA, "encoding": {"image": {"contentType": ", ".join(kinds)}}}
    content[JSON] = {"schema": JsonRequest.model_json_schema()}
    return {"required": True, "description": "A JPEG, PNG or WebP, in one of these forms.", "content": content}


Upload = Callable[[], tuple[bytes, Options]]
"""What is still to be done for an image's bytes and options; it may take its time, in a thread."""


async def receive(request: Request, options: Options) -> Upload:
    """Read a request's body.

    Raises:
        RefusedError: If it has no form that is known, or is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        data = await _file_of(request)
        return lambda: (data, options)
    if kind != JSON and kind not in _RAW:
        raise RefusedError(
            415,
            "the content type is none of image/jpeg, image/png, image/webp, application/octet-stream, "
            "multipart/form-data and application/json",
        )
    body = await request.body()
    if kind == JSON:
        return lambda: _from_json(body, options)
    return lambda: (body, options)


async def _file_of(request: Request) -> bytes:
    # A boundary that is missing, damaged parts, too many of them: Starlette answers 400.
    form: FormData = await request.form(max_files=1, max_fields=16)
    try:
        file = form.get("image")
        if not isinstance(file, UploadFile):
            raise RefusedError(422, "the form has no file in a field named image")
        return await file.read()
    finally:
        await form.close()


def _from_json(body: bytes, options: Options) -> tuple[bytes, Options]:
    try:
        told = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        if problems[0]["type"] == "json_invalid":
            raise RefusedError(400, "the body is not valid JSON") from error
        raise RefusedError(422, problem_with(problems)) from error
    try:
        data = base64.b64decode(told.image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(422, "image is not base64") from error
    given = told.model_dump(exclude={"image"}, exclude_none=True)
    return data, options.model_copy(update=given)


def problem_with(problems: Sequence[Any]) -> str:
    """A line on the first of pydantic's errors. Names that the client made up are cut short."""
    place = [str(part) for part in problems[0]["loc"] if part != "query"]
    return ": ".join([*([".".join(place)[:60]] if place else []), problems[0]["msg"]])


def decode(data: bytes, mode: ImageMode, max_pixels: int) -> Image.Image:
    """A JPEG, PNG or WebP, upright.

    Raises:
        RefusedError: If it is none, damaged or too large.
    """
    if not data:
        raise RefusedError(422, "the image is empty")
    if not _is_known(data):
        raise RefusedError(415, "the image is no JPEG, PNG or WebP")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise RefusedError(422, f"the image has more than {_MAX_SCANS} scans")
    try:
        return open_image(io.BytesIO(data), mode, max_pixels=max_pixels, formats=_FORMATS)
    except ImageTooLargeError as error:
        raise RefusedError(413, f"the image has more than {max_pixels} pixels") from error
    except ImageError as error:
        # What Pillow says of a damaged image is of no use to who sent it, and need not be fit for strangers.
        raise RefusedError(422, "the image is damaged: " + str(error).partition(" (")[0]) from error


def _is_known(data: bytes) -> bool:
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or data[:4] == b"RIFF" and data[8:12] == b"WEBP"  # noqa: RUF021
    )
