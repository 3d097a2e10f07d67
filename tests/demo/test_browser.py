"""The report in a real browser."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
REQUIRED = os.environ.get("OPENFASTERVIT_REQUIRE_BROWSER") == "1"

pytestmark = pytest.mark.skipif(
    not REQUIRED and not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)

SWITCHES = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "hide-scrollbars",
)
SCREENS = {"wide": (1280, 900), "tablet": (768, 1024), "phone": (360, 740)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    assert CHROMIUM and DRIVER, "OPENFASTERVIT_REQUIRE_BROWSER=1, but chromium and chromedriver are not installed"  # noqa: PT018
    options = Options()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser, report: Path, screen: str = "wide", scheme: str = "light") -> None:
    width, height = SCREENS[screen]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(report.as_uri())


def screenshot(browser) -> np.ndarray:
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))


def test_no_complaints_and_no_requests(browser, short_run):
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, short_run.summary.report)
    assert browser.title == f"Digits demo: top-1 {100 * short_run.summary.top1:.2f}\u00a0%"
    assert browser.get_log("browser") == []
    page = short_run.summary.report.as_uri()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [r["request"]["url"] for r in requests if r["documentURL"] == page]  # others are the browser's own
    assert [url for url in asked if not url.startswith("data:")] == [page]


def test_all_pictures_load_in_their_proportions(browser, short_run):
    show(browser, short_run.summary.report)
    shapes = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width, i.height])"
    )
    assert len(shapes) > 60
    for complete, natural_width, natural_height, width, height in shapes:
        assert complete
        assert natural_width == natural_height > 0
        assert abs(width - height) <= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_page_fits_the_screen_and_is_not_blank(browser, short_run, screen, scheme):
    show(browser, short_run.summary.report, screen, scheme)
    width = SCREENS[screen][0]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    smallest = browser.execute_script(
        """return Math.min(...[...document.querySelectorAll('body *')]
            .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
            .filter(e => !e.closest('title, desc'))
            .map(e => parseFloat(getComputedStyle(e).fontSize)
                 * (e.ownerSVGElement ? e.ownerSVGElement.getScreenCTM().a : 1)))"""
    )
    assert smallest >= 11.5
    cut = browser.execute_script(
        """return [...document.querySelectorAll('svg text')].filter(t => {
            const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
        }).map(t => t.textContent)"""
    )
    assert cut == []
    pixels = screenshot(browser)
    assert pixels.shape[1] == width
    assert pixels.std() > 20


def test_dark_mode_is_dark(browser, short_run):
    brightness = {}
    for scheme in ("light", "dark"):
        show(browser, short_run.summary.report, "wide", scheme)
        brightness[scheme] = np.median(screenshot(browser)[600:])
    assert brightness["light"] > 200
    assert brightness["dark"] < 60
