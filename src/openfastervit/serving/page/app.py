"""How the page is laid out with Gradio, and what happens on it."""

import os
import time
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import gradio as gr

from openfastervit.data.images import ImageError
from openfastervit.inference.explain import NothingToShowError
from openfastervit.serving.page import markup
from openfastervit.serving.page.benchmark import FRAME, HOW
from openfastervit.serving.page.drawing import drawn
from openfastervit.serving.page.inside import Inside
from openfastervit.serving.page.subjects import Subject, answer
from openfastervit.serving.page.upload import KEPT, WAITING, open_upload

NOTHING = "nothing"
"""The choice of no second network."""
_SWEPT = 600
_TOPK = 5

_READ_ALOUD = 'element.setAttribute("role", "status"); element.setAttribute("aria-live", "polite");'
"""Gradio has no words for it: what changes in an element is read aloud."""
_AS_HIGH_AS_ITS_PAGE = """
const frame = element.querySelector("iframe");
frame?.addEventListener("load", () => {
  const inside = frame.contentDocument;
  const fit = () => { frame.style.height = `${inside.documentElement.offsetHeight + 2}px`; };
  new ResizeObserver(fit).observe(inside.documentElement);
});
"""
"""One bar to scroll with, not two."""


class Page:
    """The page and what it shows.

    Args:
        subjects: The network that is asked, then those that it can be compared with.
        max_pixels: Larger images are refused.
        max_body: Bytes of an upload, to be told.
        benchmark: Whether there is a benchmark to show.
    """

    def __init__(self, subjects: Sequence[Subject], *, max_pixels: int, max_body: int, benchmark: bool) -> None:
        self._subjects = {subject.name: subject for subject in subjects}
        self._first, *self._others = subjects
        self._max_pixels, self._max_body = max_pixels, max_body
        self._benchmark = benchmark

    def blocks(self) -> gr.Blocks:
        """The page; not served yet."""
        with gr.Blocks(
            analytics_enabled=False, title="openfastervit", fill_width=True, delete_cache=(_SWEPT, KEPT)
        ) as blocks:
            gr.HTML("<h1>openfastervit</h1>", elem_id="title")
            with gr.Tabs():
                with gr.Tab("Image"):
                    self._looking()
                with gr.Tab("Benchmark"):
                    gr.HTML(FRAME if self._benchmark else HOW, elem_id="benchmark", js_on_load=_AS_HIGH_AS_ITS_PAGE)
        return blocks.queue(max_size=WAITING, api_open=False)

    def _looking(self) -> None:
        tasks = {subject.model.task for subject in self._subjects.values()}
        with gr.Row(equal_height=False):
            with gr.Column(min_width=240, scale=4):
                photograph = gr.Image(
                    label="Image: JPEG, PNG or WebP",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    buttons=["fullscreen"],
                    height=320,
                    elem_id="photograph",
                    alt_text="The image that was given",
                )
                second = gr.Dropdown(
                    [NOTHING, *(subject.name for subject in self._others)],
                    value=self._others[0].name if self._others else NOTHING,
                    label="Compare with",
                    filterable=False,
                    visible=bool(self._others),
                    elem_id="second",
                )
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Least score of an object", visible="detection" in tasks
                )
                inside = gr.Checkbox(
                    value=True,
                    label="Show what the carrier tokens look at",
                    visible=any(isinstance(subject.inside, Inside) for subject in self._subjects.values()),
                )
                go = gr.Button("Look", variant="primary", elem_id="look")
                told = gr.HTML(
                    f'<p class="soft">At most {self._max_pixels / 1e6:,.0f} million pixels and '
                    f"{self._max_body / 1e6:,.0f} MB. It is sent to the machine that this page is from and no further, "
                    f"and deleted there after about an hour.</p>",
                    elem_id="told",
                    js_on_load=_READ_ALOUD,
                )
            _, *first = _column(self._first, shown=True)
            second_column, *other = _column(self._others[0] if self._others else self._first, shown=bool(self._others))
        inputs = [photograph, second, threshold, inside]
        outputs = [told, *first, second_column, *other]
        # Values come as they were sent: what a file is, and where it may lie, is looked at here and not by Gradio.
        how: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_limit": 1}
        how |= {"concurrency_id": "networks", "show_progress": "minimal"}
        go.click(self.look, inputs, outputs, **how)
        changes = [photograph.upload, second.input, threshold.release, inside.input]
        gr.on(changes, self._look_again, inputs, outputs, trigger_mode="always_last", **how)

    def _look_again(self, photograph: Any, second: Any, threshold: Any, inside: Any) -> Any:
        """As ``look``, where there is an image: a choice may be made before."""
        return gr.skip() if photograph is None else self.look(photograph, second, threshold, inside)

    def look(self, photograph: Any, second: Any, threshold: Any, inside: Any) -> tuple[Any, ...]:
        """What all parts of the page show of an image.

        Args:
            photograph: What the browser tells of the upload.
            second: The name of the network to compare with.
            threshold: Objects below this score are left out.
            inside: Whether to show carriers.
        """
        other = self._subjects.get(second) if isinstance(second, str) else None
        if photograph is None:
            return self._said("There is no image yet; drop one, or choose a file.", other)
        least = float(threshold) if isinstance(threshold, int | float) and 0 <= threshold <= 1 else 0.5
        began = time.perf_counter()
        try:
            image = open_upload(photograph, os.environ["GRADIO_TEMP_DIR"], self._max_pixels)
            decoding = time.perf_counter() - began
            columns: list[tuple[Any, ...]] = []
            words: list[str] = []
            for subject in (self._first, *([other] if other else [])):
                timed = answer(subject, image, topk=_TOPK, score_threshold=least)
                picture = drawn(subject, image, timed.answer)
                columns.append(
                    (
                        markup.answered(subject, timed, decoding),
                        gr.Image(value=picture[0], alt_text=picture[1], visible=True)
                        if picture
                        else gr.Image(value=None, visible=False),
                        _inside(subject, image, self._first if columns else None) if inside else "",
                    )
                )
                words.append(f"{subject.name}: {markup.in_words(timed.answer, subject.model.classes)}")
        except ImageError as error:
            return self._said(f"The image cannot be read: {error}.", other)
        if len(columns) == 1:
            columns.append(("", gr.Image(value=None, visible=False), ""))
        told = f'<p class="soft">{"<br>".join(escape(line) for line in words)}</p>'
        return told, *columns[0], gr.Column(visible=other is not None), *columns[1]

    def _said(self, message: str, other: Subject | None) -> tuple[Any, ...]:
        """Why there is no answer."""
        empty = gr.Image(value=None, visible=False), ""
        return (
            markup.alert(message),
            *(markup.heading(self._first), *empty),
            gr.Column(visible=other is not None),
            *(markup.heading(other) if other else "", *empty),
        )


def style() -> str:
    """The style sheet beside this file."""
    return resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's plainest, with the letters that the visitor's machine has: none are fetched."""
    return gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))


def _column(subject: Subject, *, shown: bool) -> list[Any]:
    """A column for a network's answer, and its parts: in words, drawn, and what its carriers look at."""
    with gr.Column(min_width=240, scale=4, visible=shown) as column:
        answered = gr.HTML(markup.heading(subject), elem_classes="answer")
        picture = gr.Image(
            label="Drawn in",
            show_label=False,
            interactive=False,
            visible=False,
            format="png",
            buttons=["download", "fullscreen"],
        )
        inside = gr.HTML("", elem_classes="inside")
    return [column, answered, picture, inside]


def _inside(subject: Subject, image: Any, beside: Subject | None) -> str:
    if isinstance(subject.inside, str):
        return markup.no_carriers(subject.inside)
    if beside is not None and subject.inside is beside.inside:
        return markup.no_carriers("The same network, on another engine: its carriers look at the same.")
    try:
        return markup.carriers(subject.inside.look(image))
    except NothingToShowError as error:
        return markup.no_carriers(str(error))
