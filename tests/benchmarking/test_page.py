"""The page: what it says, and how it is in a real browser."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfastervit.benchmarking.cases import Row
from openfastervit.benchmarking.folder import describe
from openfastervit.benchmarking.page import in_words, render
from openfastervit.benchmarking.page.charts import _ticks
from openfastervit.benchmarking.pareto import fastest, judged
from tests.benchmarking.rows import row
from tests.demo.test_browser import CHROMIUM, DRIVER, REQUIRED, SCREENS, browser, screenshot, show

__all__ = ["browser"]

SETTINGS: dict[str, Any] = {
    "command": "fastervit benchmark --peers <none>",
    "device": "cpu",
    "threads": 2,
    "repeats": 5,
    "seconds": 1.0,
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T01:00:00+00:00",
    "load_before": [0.1, 0.2, 0.3],
    **describe("cpu"),
}


def some_rows() -> list[Row]:
    rows = [
        row("fastervit_0", 300, spread=0.02),
        row("fastervit_0", 200, engine="torch-folded"),
        row("fastervit_1", 90, spread=0.02),
        row("fastervit_0", 90, side=384),
        row("convnext_tiny", 200, spread=0.02),
        row("convnext_base", 100, spread=0.02),
        row("efficientvit_l2", 40, side=384),
        row("test_resnet", 900),
        row("fastervit_2", 1, images_per_second=None, status="out of memory: <no> room"),
        row("fastervit_0", 500, precision="bf16", batch_size=1),
    ]
    return judged(rows)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(some_rows(), SETTINGS), encoding="utf-8")
    return path


def test_the_page_tells_all(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert list(data["measured"]) == ["fp32, batch 8", "bf16, batch 1"]
    assert "out of memory: &lt;no&gt; room" in body
    assert "--peers &lt;none&gt;" in body
    assert "not faster than convnext_base, efficientvit_l2" not in body, "efficientvit_l2 is slower"
    assert '<td class="text">not faster than convnext_base</td>' in body
    assert "From the paper, not measured here" in body
    traces = {trace["name"]: trace for trace in data["measured"]["fp32, batch 8"]["data"]}
    assert traces["FasterViT"]["x"] == [300, 90]
    assert traces["FasterViT, not compared"]["x"] == [90]
    assert traces["other engines"]["x"] == [200]
    assert list(zip(traces["front"]["x"], traces["front"]["y"], strict=True)) == [
        (40, 85.982),
        (100, 83.834),
        (300, 82.1),
    ]
    assert "not faster than convnext_base" in traces["FasterViT"]["hovertext"][1]
    assert sum(len(trace["x"]) for trace in data["paper"]["data"] if trace["name"] != "front") == 25


def test_in_words() -> None:
    def told(*rows: Row) -> str:
        return in_words(judged(fastest(rows), across_engines=True))

    assert "none can be compared" in told(row("fastervit_0", 1, side=384), row("resnet50", 1))
    assert "nothing to compare with" in told(row("fastervit_0", 1), row("test_resnet", 1))
    assert told(row("fastervit_0", 1), row("convnext_base", 2)).startswith("Of 1 result of FasterViTs, ")
    assert "0 are on the front" in told(row("fastervit_0", 1), row("convnext_base", 2))
    assert "1 is not faster" in told(row("fastervit_0", 1), row("convnext_base", 2))
    assert "1 is on the front of accuracy and speed, and 0 are" in told(row("fastervit_0", 2), row("convnext_base", 1))
    # A FasterViT that is slower than a better FasterViT is no peer's merit.
    both = told(row("fastervit_0", 1), row("fastervit_1", 2), row("resnet50", 1))
    assert "and 0 are not faster than a peer" in both


@pytest.mark.parametrize("values", [[3.0], [0.02, 7000.0], [1.0, 1.0], [99.0, 101.0], [4.0, 31.0]])
def test_ticks_are_round_and_hold_all(values: list[float]) -> None:
    ticks = _ticks(values)
    assert ticks[0] <= min(values)
    assert ticks[-1] >= max(values)
    assert all(f"{tick:g}".strip("0.").isdigit() and len(f"{tick:g}".strip("0.")) == 1 for tick in ticks)
    assert 1 <= len(ticks) <= 25


in_a_browser = pytest.mark.skipif(
    not REQUIRED and not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


@in_a_browser
def test_no_complaints_and_no_requests(browser, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, page)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [r["request"]["url"] for r in requests if r["documentURL"] == page.as_uri()]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_fits_the_screen(browser, page: Path, screen: str, scheme: str) -> None:
    show(browser, page, screen, scheme)
    width = SCREENS[screen][0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = browser.execute_script(
        """return [...document.querySelectorAll('.chart text')].filter(t => t.textContent.trim()).filter(t => {
            const a = t.getBoundingClientRect(), b = t.closest('.chart').getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
        }).map(t => t.textContent)"""
    )
    assert cut == []
    brightness = np.median(screenshot(browser)[200:])
    assert brightness < 60 if scheme == "dark" else brightness > 200
    ink = browser.execute_script("return getComputedStyle(document.querySelector('#measured .xtick text')).fill")
    channels = [int(number) for number in re.findall(r"\d+", ink)[:3]]
    assert min(channels) > 200 if scheme == "dark" else max(channels) < 60


@in_a_browser
def test_a_point_tells_of_itself_and_the_choice_changes_the_chart(browser, page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    show(browser, page)
    assert hover(browser, "measured", "FasterViT", 0).startswith("fastervit_0 at 224 x 224")
    assert "the paper's figures, not measured here" in hover(browser, "paper", "FasterViT", 3)
    Select(browser.find_element("id", "group")).select_by_visible_text("bf16, batch 1")
    told = hover(browser, "measured", "FasterViT", 0)
    assert "bf16, batch 1" in told
    assert "500" in told


def hover(browser, chart: str, trace: str, number: int) -> str:
    """What appears when the mouse comes to a point."""
    x, y = browser.execute_script(
        """const [id, name, i] = arguments, plot = document.getElementById(id);
        plot.scrollIntoView({block: 'center'});
        const trace = plot._fullData.find(t => t.name === name), {xaxis, yaxis} = plot._fullLayout;
        const box = plot.querySelector('.main-svg').getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(trace.x[i]), box.top + yaxis._offset + yaxis.d2p(trace.y[i])];""",
        chart,
        trace,
        number,
    )
    for shift in (-3, 0):  # a mouse that moves
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + shift, "y": y})
    ends = time.monotonic() + 10
    text = ""
    while not text and time.monotonic() < ends:
        text = browser.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} .hovertext tspan.line`)]"
            ".map(t => t.textContent).join(' | ')",
            chart,
        )
        time.sleep(0.05)
    return text
