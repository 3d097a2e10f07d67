from xml.etree import ElementTree

import pytest

from openfastervit.demo.report.charts import Axis, Series, key, line_chart, log_ticks, round_ticks, whole_ticks
from openfastervit.demo.report.markup import duration, percent


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.58, 2.2, [0.5, 1, 1.5, 2, 2.5]),
        (0, 2.8, [0, 1, 2, 3]),
        (0, 47, [0, 10, 20, 30, 40, 50]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round_and_cover_the_data(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(11.7, 870) == [10, 20, 50, 100, 200, 500, 1000]
    assert log_ticks(1, 1) == [1, 2]


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1, [1]), (2, [1, 2]), (20, [1, 5, 10, 15, 20]), (24, [1, 5, 10, 15, 20, 24]), (7, [1, 2, 4, 7])],
)
def test_ticks_of_epochs(last, expected):
    assert whole_ticks(last) == expected


def test_charts_are_well_formed_and_inside_their_frame():
    y = Axis("y & more", [0.0, 1.0], lambda v: f"<{v:g}>")
    chart = line_chart(
        "c",
        'a "title"',
        "<what>",
        [
            Series("one", [(1, 0.2), (2, 1.3)], [(0.1, 0.3), (1.0, 1.4)], marked=True),
            Series("two", [(1.5, -0.2)]),
        ],
        Axis("x", [1, 2], lambda v: f"{v:g}", log=True),
        y,
        level=0.5,
    )
    root = ElementTree.fromstring(chart)
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    for mark in root.iter():
        for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(mark.attrib.get(name, 0)) <= most
    assert len(list(root.iter("circle"))) == 2
    assert len(list(root.iter("rect"))) == 1  # a single point is marked, or it would not be seen
    ElementTree.fromstring(key(["one", "<two>"]))


def test_numbers_as_people_write_them():
    assert percent(0.98888, 2) == "98.89\u00a0%"
    assert [duration(s) for s in (0.04, 9.949, 9.96, 59.6, 118)] == [
        "0.0\u00a0s",
        "9.9\u00a0s",
        "10\u00a0s",
        "1\u00a0min 0\u00a0s",
        "1\u00a0min 58\u00a0s",
    ]
