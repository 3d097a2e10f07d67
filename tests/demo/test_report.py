import dataclasses
import re
from html import escape

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from openfastervit.demo.evaluate import Evaluation
from openfastervit.demo.report import PAGE, Results, render
from openfastervit.demo.train import Epoch
from tests.demo.page import Page

SECTIONS = ["made", "network", "training", "confusion", "mistakes", "page", "carriers", "speed", "folder"]


def read_as(results: Results, wrong: int) -> Results:
    """The results, had so many of the held-out images been misread by one digit."""
    labels = results.evaluation.labels
    probabilities = np.full((len(labels), 10), 0.01)
    predicted = labels.copy()
    predicted[:wrong] = (labels[:wrong] + 1) % 10
    probabilities[np.arange(len(labels)), predicted] = 0.91
    return dataclasses.replace(results, evaluation=Evaluation(labels, probabilities))


@pytest.fixture(scope="session")
def page(short_run):
    return Page.read(short_run.out / "report.html")


def test_all_sections_are_there_under_headings(page):
    assert [values["id"] for tag, values in page.elements if tag == "section"] == SECTIONS
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert levels.count(2) == len(SECTIONS)
    assert all(text.strip() for _, text in page.headings)


def test_nothing_is_fetched_from_anywhere(page, short_run):
    assert page.addresses()
    assert all(address.startswith("data:") for address in page.addresses())
    text = (short_run.out / "report.html").read_text(encoding="utf-8")
    without_data = re.sub(r'"data:[^"]*"', '""', text)
    assert not re.search(r"https?:|//|url\(|@import|<script|<iframe|<object|<embed", without_data)


def test_header_says_the_result_in_one_sentence(page, short_run):
    correct = round(360 * short_run.summary.top1)
    assert page.headings[0][1] == f"A pocket FasterViT reads {correct} of 360 handwritten digits it had never seen"
    assert f"{100 * short_run.summary.top1:.2f}\u00a0%" in page.text["header"]
    assert f"{100 * short_run.summary.top1:.2f}\u00a0%" in page.text["title"]


def test_confusion_matrix_is_that_of_the_predictions(page, short_run):
    evaluation = short_run.results.evaluation
    shown = [[int(cell) for cell in row[1:]] for row in page.cells["confusion"][1:]]
    assert np.array_equal(shown, confusion_matrix(evaluation.labels, evaluation.predicted, labels=range(10)))
    assert [row[0] for row in page.cells["confusion"][1:]] == page.cells["confusion"][0][1:] == list("0123456789")


def test_how_it_was_made_is_told(page, short_run):
    results = short_run.results
    for told in (
        "fastervit demo --seed 0 --epochs 1",
        "1,437 scans",
        "360, stratified",
        "1 epoch",
        str(results.hardware["processor"]),
        results.versions["torch"],
        results.finished.strftime("%Y-%m-%d"),
    ):
        assert told in page.text["made"]


def test_pictures_have_words_and_tables_captions(page):
    images = [values for tag, values in page.elements if tag == "img"]
    assert all("alt" in values for values in images)
    described = [values["alt"] for values in images if values["alt"]]
    assert len(described) >= PAGE + 4 * (1 + 3 + 3)
    tables = [tag for tag, _ in page.elements if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * 4
    charts = [values for tag, values in page.elements if tag == "svg" and values.get("class") == "chart"]
    assert len(charts) == 4
    names = {values["id"] for tag, values in page.elements if tag in ("title", "desc") and "id" in values}
    assert all(set(chart["aria-labelledby"].split()) <= names for chart in charts)
    assert all(values.get("scope") for tag, values in page.elements if tag == "th")
    identifiers = [values["id"] for _, values in page.elements if "id" in values]
    assert len(identifiers) == len(set(identifiers))


def test_page_of_predictions_shows_each_with_its_label(page, short_run):
    results = short_run.results
    alts = [values["alt"] for tag, values in page.elements if tag == "img"]
    for position in range(PAGE):
        index = results.digits.held_out[position]
        assert f"Scan {index}, a handwritten {results.digits.labels[index]}" in alts
    right = int((results.evaluation.labels == results.evaluation.predicted)[:PAGE].sum())
    assert page.text["page"].count("\u2713") == right
    assert page.text["page"].count("\u2717") == PAGE - right


def test_evidence_is_that_for_the_digit_that_was_read(page, short_run):
    looking, evaluation = short_run.results.looking, short_run.results.evaluation
    assert looking.cam.classes == tuple(evaluation.predicted[list(looking.shown)])
    assert [block.name for block in looking.windows] == [block.name for block in looking.blocks]
    alts = [values["alt"] for tag, values in page.elements if tag == "img"]
    for digit in looking.cam.classes:
        assert f"where the evidence for a {digit} lies" in alts
    for number in (1, 3):
        assert alts.count(f"attention inside windows in block {number}") == len(looking.shown)


def test_speed_is_told_as_measured(page, short_run):
    rows = page.cells["speed"][1:]
    assert len(rows) == len(short_run.results.timings) == 2
    for row, timing in zip(rows, short_run.results.timings, strict=True):
        assert row[0].startswith(str(timing.side))
        assert row[1:3] == [f"{timing.tokens:,}", f"{timing.carriers:,}"]
        assert row[5].startswith(f"{timing.ratio:.2f}")


def test_mistakes_are_shown_most_confident_first(short_run):
    shown = Page(render(read_as(short_run.results, 3)))
    assert "3 of 360 held-out digits" in shown.text["mistakes"]
    assert shown.text["mistakes"].count("read as") == 3
    assert "91.0\u00a0%" in shown.text["mistakes"]
    many = Page(render(read_as(short_run.results, 200)))
    assert "The first 60 are shown." in many.text["mistakes"]
    assert many.text["mistakes"].count("read as") == 60


def test_no_mistakes_are_told_too(short_run):
    shown = Page(render(read_as(short_run.results, 0)))
    assert "All 360 held-out digits were read correctly" in shown.text["mistakes"]
    assert shown.text["mistakes"].count("which is right") == 6
    assert "No digit was taken for another." in shown.text["confusion"]
    assert "100.00\u00a0%" in shown.text["header"]


def test_commonest_confusion_is_named(short_run):
    results = read_as(short_run.results, 0)
    probabilities = results.evaluation.probabilities.copy()
    threes = np.flatnonzero(results.evaluation.labels == 3)[:2]
    probabilities[threes] = probabilities[threes].mean()
    probabilities[threes, 8] = 0.9
    text = Page(
        render(dataclasses.replace(results, evaluation=Evaluation(results.evaluation.labels, probabilities)))
    ).text
    assert "The commonest confusion: 3 read as 8, 2 times." in text["confusion"]


@pytest.mark.parametrize(
    ("epochs", "told"),
    [
        ([], "0 of 9 epochs;"),
        ([22], "1 of 9 epochs;"),
        ([22, 22, 7], "2 of 9 epochs and 7 of 22 steps of the next;"),
        ([22] * 9, "9 epochs;"),
    ],
)
def test_an_interrupted_run_says_how_far_it_came(short_run, epochs, told):
    history = [Epoch(i + 1, steps, 2.0 - i / 10, 0.1 + i / 20, 0.001, 1.0) for i, steps in enumerate(epochs)]
    results = dataclasses.replace(
        short_run.results, epochs=history, planned_epochs=9, interrupted=True, timings=[], seconds={"training": 1.0}
    )
    shown = Page(render(results))
    assert f"This run was interrupted (Ctrl-C). The network trained for {told}" in shown.text["header"]
    assert "Not measured" in shown.text["speed"]
    assert ("before the first step" in shown.text["training"]) == (not epochs)


def test_a_whole_run_mentions_no_interruption(page):
    assert not any("interrupted" in text for text in page.text.values())


def test_everything_is_escaped(short_run):
    nasty = '<script>alert("&")</script>'
    results = dataclasses.replace(
        short_run.results,
        command=nasty,
        hardware={"processor": nasty, "cores": 2, "system": nasty},
        versions={**short_run.results.versions, nasty: nasty},
    )
    text = render(results)
    assert "<script" not in text
    assert text.count(escape(nasty)) == 5
    assert Page(text).text["made"].count(nasty) == 5
