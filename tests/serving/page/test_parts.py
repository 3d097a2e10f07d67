"""What the page is made of: names of networks, answers in words and pictures, carriers."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openfastervit.inference import Preparation, load_classifier
from openfastervit.inference.explain import carrier_attention
from openfastervit.inference.images_in_memory import Answer, Classes, Labels, Objects
from openfastervit.serving.page import markup
from openfastervit.serving.page.drawing import drawn
from openfastervit.serving.page.inside import Inside, look_into, whereabouts
from openfastervit.serving.page.subjects import Subject, Timed, answer, open_subjects, short_names
from openfastervit.tasks.drawing import draw_detections
from tests.pocket import picture, write_checkpoint


class _Model:
    """A stand-in that answers nothing."""

    engine_name = "torch-eager"

    def __init__(self, task: str, classes: tuple[str, ...]) -> None:
        self.task, self.classes = task, classes


def subject(task: str = "classification", classes: tuple[str, ...] = ("ant", "bee", "<cat>")) -> Subject:
    return Subject("model <1>", _Model(task, classes), "why <not>")  # type: ignore[arg-type]


def read(html: str) -> str:
    """The words of a piece of HTML, once each tag is closed."""
    words, open_ = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("img", "br"):
                open_.append(tag)

        def handle_endtag(self, tag):
            assert open_.pop() == tag

        def handle_data(self, data):
            words.append(data)

    Reader().feed(html)
    assert open_ == []
    return " ".join(" ".join(words).split())


def test_short_names():
    named = short_names([Path("/a/x/best.safetensors"), Path("/a/y/best.safetensors"), Path("/a/x/best.safetensors")])
    assert named == ["x/best.safetensors", "y/best.safetensors", "x/best.safetensors"]
    assert short_names([Path("/secret/place/model.onnx")]) == ["model.onnx"]
    assert short_names([Path("/a/m"), Path("/a/n")]) == ["m", "n"]


@pytest.mark.parametrize(
    ("score", "said"),
    [(0.931, "93.1"), (0.9999, "99.9"), (1.0, "100.0"), (0.00001, "below 0.1"), (0.0, "0.0"), (0.001, "0.1")],
)
def test_percent(score: float, said: str):
    assert markup.percent(score) == f"{said}\u00a0%"


def test_an_answer_reads_well():
    classes = Classes(("<cat>", "ant"), (2, 0), (0.75, 0.25))
    words = read(markup.answered(subject(), Timed(classes, 0.002, 0.2), 0.001))
    assert words == (
        "model <1> classification, 3 classes, by torch-eager <cat>, 75.0 % <cat> 75.0 % ant 25.0 % "
        "decoding 1.0 ms scaling 2.0 ms network 200 ms"
    )
    assert "why <not>" in read(markup.no_carriers("why <not>"))
    assert read(markup.alert("<b>")) == "<b>"


def objects(count: int = 2, masks: bool = True) -> Objects:
    boxes = np.array([[10 * i, 5, 10 * i + 30, 60] for i in range(count)], np.float32).reshape(-1, 4)
    laid = np.zeros((count, 80, 100), bool)
    laid[:, 10:50, 20:30] = True
    labels = tuple(1 + i % 3 for i in range(count))
    names = tuple(("ant", "bee", "<cat>")[label - 1] for label in labels)
    return Objects(boxes, labels, names, tuple(0.9 - 0.01 * i for i in range(count)), laid if masks else None)


def test_objects_in_words():
    assert markup.in_words(objects(4), ()) == "4 objects: 2 ant, 1 bee, 1 <cat>"
    assert markup.in_words(objects(1), ()) == "1 object: 1 ant"
    assert markup.in_words(objects(0), ()) == "No objects"
    listed = read(markup.answered(subject("detection"), Timed(objects(20), 0, 0), 0))
    assert "and 8 more" in listed
    assert re.findall(r"(?:ant|bee|<cat>) (\d\d\.\d) %", listed) == [f"{90 - i}.0" for i in range(12)]
    read(markup.answered(subject("detection"), Timed(objects(0), 0, 0), 0))


def test_labels_in_words():
    labels = np.full((10, 10), 2, np.uint8)
    labels[:3] = 0
    labels[9] = 255
    told = Labels(labels)
    assert markup.in_words(told, ("ant", "bee", "<cat>")) == "<cat> 60.0\u00a0%, ant 30.0\u00a0%"
    words = read(markup.answered(subject("segmentation"), Timed(told, 0, 0), 0))
    assert "<cat> 60.0 % ant 30.0 % decoding" in words
    assert markup.in_words(Labels(np.full((2, 2), 255, np.uint8)), ("ant",)) == "No pixel has a class"


def test_pictures_of_answers():
    image = picture(2)
    assert drawn(subject(), image, Classes((), (), ())) is None
    found = objects()
    shown, said = drawn(subject("detection"), image, found)
    output = {
        "boxes": torch.tensor(found.boxes),
        "labels": torch.tensor(found.labels),
        "scores": torch.tensor(found.scores),
        "masks": torch.tensor(found.masks),
    }
    assert said == "The image with 2 objects drawn in"
    expected = draw_detections(image, output, subject().model.classes, threshold=0)
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert drawn(subject("detection"), image, objects(0)) is not None
    assert drawn(subject("detection"), image, objects(masks=False)) is not None


@pytest.mark.parametrize("size", [(4000, 3200), (5000, 40)])
def test_pictures_of_large_images_are_of_a_size_to_be_sent(size: tuple[int, int]):
    """Boxes, masks and labels shrink as the image does."""
    image = Image.new("RGB", size, (120, 120, 120))
    width, height = size
    inside = np.zeros((height, width), bool)
    inside[: height // 2, : width // 2] = True
    box = np.array([[0, 0, width // 2, height // 2]], np.float32)
    answers: list[tuple[str, Answer]] = [
        ("detection", Objects(box, (1,), ("ant",), (0.9,), inside[None])),
        ("segmentation", Labels(np.where(inside, 1, 255).astype(np.uint8))),
    ]
    for task, found in answers:
        shown, _ = drawn(subject(task), image, found)
        assert shown.width == 1600
        pixels = np.asarray(shown).astype(int)
        changed = (pixels != 120).any(axis=2)[: round(1600 * height / width)]
        assert changed[5:-5, 1000:].sum() == 0
        if height > 100:
            assert changed[60:600, 60:760].all()
            assert not changed[660:, :].any()


def test_whereabouts():
    for row, down in enumerate(("upper", "middle", "lower")):
        for column, across in enumerate(("left", "middle", "right")):
            attention = torch.zeros(9, 12)
            attention[3 * row + 1, 4 * column + 2] = 1
            assert whereabouts(attention) == ("middle" if down == across else f"{down} {across}")
    assert whereabouts(torch.tensor([[0.0, 1.0]])) in ("upper right", "lower right", "right")


def test_carriers_are_those_that_explain_finds(checkpoint: Path):
    inside = look_into(checkpoint, "classification", "cpu")
    assert isinstance(inside, Inside)
    image = picture(4)
    look = inside.look(image)
    network, _, told = load_classifier(checkpoint)
    preparation = Preparation.of(told)
    block = carrier_attention(network, preparation.normalised([preparation.pixels(image)], torch.device("cpu")))[-1]
    rows, columns = block.maps.shape[1:3]
    assert look.place.endswith(f": {rows} \u00d7 {columns} carriers")
    assert len(look.figures) == 4
    for figure in look.figures:
        row, column = (int(number) - 1 for number in re.findall(r"row (\d+), column (\d+)", figure.caption)[0])
        share = float(block.elsewhere()[0, row, column])
        assert f": {share:.0%}".replace("%", "\u00a0%") in figure.caption
        assert whereabouts(block.maps[0, row, column]) in figure.alt
        with Image.open(io.BytesIO(figure.png)) as png:
            assert max(png.size) >= 320
    words = read(markup.carriers(look))
    assert "What the carrier tokens look at" in words
    assert markup.carriers(look).count("<img") == markup.carriers(look).count(' alt="Carrier in row ') == 4


def test_why_there_are_no_carriers(tmp_path: Path, detector: Path):
    assert "a network for detection" in str(look_into(detector, "detection", "cpu"))
    assert "exported network" in str(look_into(tmp_path / "x.onnx", "classification", "cpu"))
    small = write_checkpoint(tmp_path / "small.safetensors", input={"size": [3, 32, 32]})
    said = look_into(small, "classification", "cpu")
    assert isinstance(said, str)
    assert said.startswith("The network uses no carrier tokens on images of 32 x 32")


def test_subjects(checkpoint: Path, detector: Path):
    told: list[str] = []
    with open_subjects(
        checkpoint, compare=[detector], compare_engine=["torch-eager", "torch-folded"], engine="torch-eager",
        device="cpu", tell=told.append,
    ) as (first, same, folded, other):  # fmt: skip
        assert first.name == f"{checkpoint.name}, torch-eager"
        assert same.name == f"{checkpoint.name}, torch-eager (2)"
        assert folded.name == f"{checkpoint.name}, torch-folded"
        assert first.inside is folded.inside
        assert other.model.task == "detection"
        one, two = (answer(s, picture(1), topk=3, score_threshold=0.5).answer for s in (first, folded))
        assert one.names == two.names
        assert one.scores == pytest.approx(two.scores, abs=1e-4)
