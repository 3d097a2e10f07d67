"""The application: what can be asked, how it is described, and the way from a request to its answer."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

import openfastervit
from openfastervit.data.images import ImageError
from openfastervit.serving.http.answers import ANSWERS, PNG, Problem, Reply
from openfastervit.serving.http.guard import GONE
from openfastervit.serving.http.metrics import Metrics
from openfastervit.serving.http.room import UnavailableError
from openfastervit.serving.http.server import Server
from openfastervit.serving.http.settings import Settings
from openfastervit.serving.http.uploads import (
    Options,
    RefusedError,
    Upload,
    body_description,
    decode,
    problem_with,
    receive,
)
from openfastervit.serving.http.worker import PATH, About, Work

_PROBLEMS = {
    400: "The body is damaged: no JSON, no form.",
    401: "No API key, or a wrong one.",
    408: "The body took too long to come.",
    413: "The body has too many bytes, or the image too many pixels.",
    415: "The body is no JPEG, PNG or WebP, in none of the forms that are taken.",
    422: "An option has no meaning, or the image is damaged.",
    500: "An error of the server's.",
    503: "Too much to do, or not ready: to be asked again after a while.",
    504: "There was no answer in time.",
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
}


class Health(BaseModel):
    """How the server is."""

    status: str


def create_app(server: Server, metrics: Metrics, *, keys: bool, decoders: int) -> FastAPI:
    """The application in front of a server's queue.

    Args:
        server: It.
        metrics: What ``/metrics`` shows.
        keys: Whether API keys are asked for: it is said in the description; ``Guard`` does it.
        decoders: Threads that decode images.
    """
    settings = server.settings
    app = FastAPI(
        title="fastervit",
        summary=f"A network for {settings.task}.",
        version=openfastervit.__version__,
        lifespan=server.lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        dependencies=_security() if keys else [],
    )
    desk = _Desk(server, settings, ThreadPoolExecutor(decoders, thread_name_prefix="decoder"))
    told: dict[int | str, dict[str, Any]] = {
        status: _described(status) for status in _PROBLEMS if keys or status != 401
    }

    @app.post(
        PATH,
        summary="Predict an image",
        response_class=Response,
        responses={200: _answer_described(settings), **told},
        openapi_extra={"requestBody": body_description()},
        tags=["prediction"],
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        return await desk.predict(request, options)

    @app.get(
        "/health",
        summary="Whether images can be predicted now; needs no key",
        responses={200: {"model": Health}, 503: {"model": Health, "description": "Not now.", "headers": _HEADERS[503]}},
        tags=["operation"],
    )
    async def health() -> JSONResponse:
        state = server.state
        if state == "ok":
            return JSONResponse({"status": state})
        return JSONResponse({"status": state}, 503, headers={"Retry-After": "5"})

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=PlainTextResponse,
        responses={401: _described(401)} if keys else {},
        tags=["operation"],
    )
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def misunderstood(request: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(422, problem_with(error.errors()))

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _problem(error.status, error.detail)

    @app.exception_handler(UnavailableError)
    async def unavailable(request: Request, error: UnavailableError) -> JSONResponse:
        return _problem(503, error.detail, {"Retry-After": str(error.retry_after)})

    return app


class _Desk:
    """From a request to its answer."""

    def __init__(self, server: Server, settings: Settings, decoders: ThreadPoolExecutor) -> None:
        self._server, self._settings, self._decoders = server, settings, decoders

    async def predict(self, request: Request, options: Options) -> Response:
        upload = await receive(request, options)
        about = self._server.model()
        with self._server.room.place() as place:
            working = asyncio.create_task(self._work(place, about, upload))
            leaving = asyncio.create_task(_left(request))
            try:
                await asyncio.wait(
                    (working, leaving), timeout=self._settings.timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                if working.done():
                    reply = working.result()
                elif leaving.done():
                    return Response(status_code=GONE)
                else:
                    raise RefusedError(504, f"no answer within {self._settings.timeout_s:g} seconds")
            finally:
                for task in (working, leaving):
                    task.cancel()
                await asyncio.gather(working, leaving, return_exceptions=True)
        if not reply.media_type:
            return _problem(500, "internal error")
        return Response(reply.body, media_type=reply.media_type)

    async def _work(self, place: Any, about: About, upload: Upload) -> Reply:
        work = await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepared, upload, about)
        return await self._server.predict(place, work)

    def _prepared(self, upload: Upload, about: About) -> Work:
        """In a thread: Pillow lets go of the interpreter while it decodes and scales."""
        data, options = upload()
        image = decode(data, about.prepare.mode, self._settings.max_pixels)
        try:
            prepared = about.prepare(image)
        except ImageError as error:
            raise RefusedError(422, str(error)) from error
        return Work.of(
            prepared,
            topk=options.topk or self._settings.topk,
            score_threshold=options.score_threshold,
            masks=options.masks == "rle",
            png=options.format == "png",
        )


async def _left(request: Request) -> None:
    """Ends when the client is gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers=headers)


def _described(status: int) -> dict[str, Any]:
    told: dict[str, Any] = {"model": Problem, "description": _PROBLEMS[status]}
    if status in _HEADERS:
        told["headers"] = _HEADERS[status]
    return told


def _answer_described(settings: Settings) -> dict[str, Any]:
    told: dict[str, Any] = {"model": ANSWERS[settings.task], "description": "The answer."}
    if settings.task == "segmentation":
        picture = {"schema": {"type": "string", "format": "binary"}}
        told["content"] = {PNG: picture}
        told["description"] = "An index PNG of the image's size: each value is the place of the pixel's class. Or JSON."
    return told


def _security() -> Sequence[Any]:
    bearer = HTTPBearer(auto_error=False, description="One of the server's keys.")
    header = APIKeyHeader(name="X-API-Key", auto_error=False, description="One of the server's keys.")
    return [Security(bearer), Security(header)]
