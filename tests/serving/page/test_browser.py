"""The page in a real browser, from a real process: an image is dropped, and the answer read."""

import base64
import http.client
import io
import itertools
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.benchmarking.test_page import SETTINGS, some_rows
from tests.cli.conftest import Run
from tests.demo.test_browser import CHROMIUM, DRIVER, REQUIRED
from tests.pocket import picture, pocket, write_broken, write_checkpoint
from tests.serving.page.conftest import Server, serving

pytestmark = [
    pytest.mark.skipif(
        not REQUIRED and not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
    ),
    pytest.mark.early,  # one process starts the server
]
SCREENS = {"wide": (1280, 900), "phone": (390, 844)}
SECONDS = 90


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, detector: Path, upernet: Path
) -> Iterator[Server]:
    """A classifier, and beside it: another one, the first on another engine, a detector, a segmenter."""
    from openfastervit.benchmarking.cases import to_csv

    folder = tmp_path_factory.mktemp("server")
    (folder / "results.csv").write_text(to_csv(some_rows()), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    other = write_checkpoint(folder / "other.safetensors", pocket(seed=7), classes=["<b>elk</b>", "fox", "gnu"])
    with serving(
        *("--checkpoint", checkpoint, "--compare", other, detector, upernet, "--compare-engine", "torch-folded"),
        *("--benchmark", folder, "--max-pixels", 1_000_000, "--max-body-mb", 1, "--device", "cpu"),
        *("--engine", "torch-eager"),
    ) as server:
        yield server


def wait_for(browser: Any, told: Callable[[Any], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, SECONDS, 0.1, (StaleElementReferenceException,)).until(told)


def find(browser: Any, selector: str) -> list[Any]:
    """Elements that are seen."""
    return [element for element in browser.find_elements("css selector", selector) if element.is_displayed()]


def show(browser: Any, url: str, screen: str = "wide") -> None:
    width, height = SCREENS[screen]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"},
    )
    browser.get(url)
    wait_for(browser, lambda b: b.find_elements("css selector", "input[type=file]") and find(b, "#look"))


def drop(browser: Any, image: Path) -> list[str]:
    """Give the page an image; what it says once it is done, a line a network."""
    before = browser.find_element("css selector", "#told").text
    browser.find_element("css selector", "input[type=file]").send_keys(str(image))
    return wait_for(browser, lambda b: (t := b.find_element("css selector", "#told").text) != before and t).splitlines()


def columns(browser: Any) -> list[Any]:
    """The networks' columns, those that are seen."""
    return find(browser, ".network")


def scores(column: Any) -> list[tuple[str, str]]:
    """Names and percentages as they are listed."""
    rows = column.find_elements("css selector", ".scores li")
    return [tuple(row.find_element("css selector", part).text for part in (".name", ".score")) for row in rows]


def choose(browser: Any, name: str) -> None:
    """Compare with another network, by the keyboard alone."""
    from selenium.webdriver.common.keys import Keys

    def active(browser: Any) -> str:
        return " ".join(option.text for option in find(browser, "#second [role=option].active"))

    box = browser.find_element("css selector", "#second input")
    told = browser.find_element("css selector", "#told").text
    wait_for(browser, lambda b: not b.find_elements("css selector", "[role=option]"))
    box.send_keys(Keys.ARROW_DOWN)
    wait_for(browser, active)
    for _ in browser.find_elements("css selector", "[role=option]"):
        now = active(browser)
        if name in now:
            break
        box.send_keys(Keys.ARROW_DOWN)
        wait_for(browser, lambda b, now=now: active(b) not in ("", now))
    box.send_keys(Keys.ENTER)
    wait_for(browser, lambda b: name in box.get_attribute("value"))
    wait_for(browser, lambda b: b.find_element("css selector", "#told").text != told)


def fits(browser: Any) -> bool:
    inner, scroll = browser.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
    return bool(scroll <= inner) and inner in (1280, 390)


def predicted(fastervit: Run, *args: object) -> str:
    outcome = fastervit(*args, "--device", "cpu")
    assert outcome.code == 0
    return outcome.out


@pytest.mark.parametrize("screen", SCREENS)
def test_classes_are_those_that_predict_prints(
    browser: Any, server: Server, checkpoint: Path, photograph: Path, fastervit: Run, screen: str
) -> None:
    show(browser, server.url, screen)
    assert fits(browser)
    told = drop(browser, photograph)
    printed = predicted(fastervit, "predict", photograph, "--checkpoint", checkpoint, "--engine", "torch-eager")
    expected = re.findall(r"([\d.]+)\s?%\s+(\w+)", printed)
    assert len(expected) == 3
    first, second = columns(browser)
    assert [name for name, _ in scores(first)] == [name for _, name in expected]
    for (_, said), (score, _) in zip(scores(first), expected, strict=True):
        assert abs(float(said.split()[0].replace("below", "0")) - float(score)) <= 0.11
    assert first.find_element("css selector", "h2").text == f"{checkpoint.name}, torch-eager"
    assert second.find_element("css selector", "h2").text == f"{checkpoint.name}, torch-folded"
    assert scores(second) == scores(first), "the same network on another engine"
    assert told[0].startswith(f"{checkpoint.name}, torch-eager: {expected[0][1]}, ")
    assert [term.text for term in first.find_elements("css selector", "dt")] == ["decoding", "scaling", "network"]
    assert all(re.fullmatch(r"[\d.,]+ ms", time.text) for time in first.find_elements("css selector", "dd"))
    one, other = (column.location for column in (first, second))
    if screen == "phone":
        assert one["x"] == other["x"]
        assert other["y"] > one["y"] + first.size["height"]
    else:
        assert one["y"] == other["y"]
        assert other["x"] > one["x"] + first.size["width"] - 1
    figures = find(browser, ".inside figure img")
    assert len(figures) == 4
    assert all("looks most at the " in figure.get_attribute("alt") for figure in figures)
    assert all(figure.size["width"] > 120 for figure in figures)
    assert fits(browser)


def test_other_networks_beside_it(
    browser: Any, server: Server, detector: Path, upernet: Path, photograph: Path, fastervit: Run, tmp_path: Path
) -> None:
    show(browser, server.url)
    drop(browser, photograph)
    before = scores(columns(browser)[0])
    choose(browser, "other.safetensors")
    assert scores(columns(browser)[0]) == before
    assert {name for name, _ in scores(columns(browser)[1])} == {"<b>elk</b>", "fox", "gnu"}, "names are no HTML"
    choose(browser, "detector")
    printed = predicted(fastervit, "detect", "predict", photograph, "--checkpoint", detector)
    expected = re.findall(r"([\d.]+)%\s+(\w+)", printed)
    column = columns(browser)[1]
    assert f"{len(expected)} object" in column.text
    assert len(expected) > 0
    assert [name for name, _ in scores(column)] == [name for _, name in expected[:12]]
    (image,) = find(browser, "img[alt^='The image with']")
    assert image.get_attribute("alt").startswith(f"The image with {len(expected)} object")
    assert image.size["width"] > 200
    choose(browser, "segmenter")
    predicted(fastervit, "segment", "predict", photograph, "--checkpoint", upernet, "--out", tmp_path)
    labels = np.asarray(Image.open(next(tmp_path.glob("*.png"))))
    names = ("ground", "red", "green", "blue")
    shares = {name: float((labels == place).mean()) for place, name in enumerate(names)}
    found = dict(scores(columns(browser)[1]))
    assert set(found) == {name for name, share in shares.items() if share}
    for name, said in found.items():
        assert abs(float(said.split()[-2]) / 100 - shares[name]) < 0.0011, name
    choose(browser, "nothing")
    wait_for(browser, lambda b: len(columns(b)) == 1)


@pytest.mark.parametrize("screen", SCREENS)
def test_the_benchmark_is_drawn(browser: Any, server: Server, screen: str) -> None:
    show(browser, server.url, screen)
    (tab,) = [tab for tab in find(browser, "[role=tab]") if tab.text == "Benchmark"]
    tab.click()
    frame = wait_for(browser, lambda b: find(b, "#benchmark iframe"))[0]
    assert frame.get_attribute("title")
    browser.switch_to.frame(frame)
    try:
        wait_for(browser, lambda b: len(b.find_elements("css selector", ".js-plotly-plot .scatterlayer")) == 2)
        assert "fastervit_0" in browser.find_element("css selector", "body").text
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        high = browser.execute_script("return document.documentElement.offsetHeight")
    finally:
        browser.switch_to.default_content()
    assert high > 1000
    wait_for(browser, lambda b: find(b, "#benchmark iframe")[0].size["height"] >= high)
    assert fits(browser)


def test_what_is_no_image_is_told_kindly(browser: Any, server: Server, tmp_path: Path, photograph: Path) -> None:
    write_broken(tmp_path / "cut.png")
    (tmp_path / "page.png").write_text("<html><script>document.title = 'mine'</script></html>")
    picture(1, (1001, 1000)).resize((1001, 1000)).save(tmp_path / "large.png")
    for name, said in (("cut", "does not decode"), ("page", "not an image"), ("large", "more than the limit")):
        show(browser, server.url)
        (told,) = drop(browser, tmp_path / f"{name}.png")
        assert told.startswith("The image cannot be read: "), name
        assert said in told
        assert "/" not in told
        assert "Traceback" not in browser.page_source
        assert scores(columns(browser)[0]) == []
    assert drop_again(browser, photograph)[0].startswith("pocket.safetensors, torch-eager: ")
    assert server.process.poll() is None


def drop_again(browser: Any, image: Path) -> list[str]:
    """Take the image away, and give another."""
    browser.find_element("css selector", "[aria-label='Remove Image']").click()
    wait_for(browser, lambda b: not b.find_elements("css selector", "#photograph img"))
    return drop(browser, image)


def test_looking_without_an_image(browser: Any, server: Server) -> None:
    show(browser, server.url)
    browser.find_element("css selector", "#look").click()
    wait_for(browser, lambda b: "There is no image yet" in b.find_element("css selector", "#told").text)


NAMED = """
return [...document.querySelectorAll("button, input, select, textarea, a[href], iframe")]
  .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]"))
  .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("title") || e.innerText.trim() || e.alt
    || (e.labels && [...e.labels].some(l => l.innerText.trim())) || e.querySelector("img[alt]:not([alt=''])")))
  .map(e => e.outerHTML)
"""


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_reader_has_words_for_all(browser: Any, server: Server, photograph: Path, screen: str) -> None:
    show(browser, server.url, screen)
    assert browser.execute_script(NAMED) == []
    drop(browser, photograph)
    assert browser.execute_script(NAMED) == []
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.execute_script("return document.querySelectorAll('main').length") == 1
    images = browser.execute_script("return [...document.images].filter(e => e.checkVisibility()).map(e => e.alt)")
    assert len(images) == 5
    assert all(images)
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].filter(e => e.checkVisibility()).map(e => +e.tagName[1])"
    )
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    status = browser.find_element("css selector", "#told [role=status]")
    assert status.get_attribute("aria-live") == "polite"
    assert "torch-eager" in status.text


def test_the_keyboard_reaches_all(browser: Any, server: Server) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, server.url)
    reached = []
    for _ in range(20):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        reached.append((active.get_attribute("aria-label") or active.text or active.get_attribute("type")).strip())
        if active.get_attribute("id") == "look":
            break
    wanted = ["Image", "Benchmark", "Compare with", "checkbox", "Look"]
    assert [name for name in reached if name in wanted] == wanted, reached
    assert any("upload" in name.lower() for name in reached), reached
    active.send_keys(Keys.ENTER)
    wait_for(browser, lambda b: "There is no image yet" in b.find_element("css selector", "#told").text)


def test_nothing_is_asked_of_other_machines(browser: Any, server: Server, photograph: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, server.url)
    drop(browser, photograph)
    (tab,) = [tab for tab in find(browser, "[role=tab]") if tab.text == "Benchmark"]
    tab.click()
    wait_for(browser, lambda b: find(b, "#benchmark iframe"))
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    elsewhere = [url for url in asked if not url.startswith((server.url, "data:", "blob:", "chrome:"))]
    assert elsewhere == []
    assert len(asked) > 20
    refused = [m["params"]["response"] for m in messages if m["method"] == "Network.responseReceived"]
    assert [(response["url"], response["status"]) for response in refused if response["status"] >= 400] == []
    complaints = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert complaints == []


def request(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    text = response.read().decode("utf-8", "replace")
    connection.close()
    return response.status, text


def test_files_and_paths_of_the_server_stay_there(server: Server, checkpoint: Path, photograph: Path) -> None:
    for path in (str(checkpoint), "/etc/passwd", f"{photograph.parent}/../photograph.jpg"):
        status, text = request(server, "GET", f"/gradio_api/file={path}")
        assert status in (403, 404)
        assert "root:" not in text
    for path in ("/", "/config", "/gradio_api/info", "/nowhere", "/gradio_api/queue/join"):
        _, text = request(server, "GET", path)
        assert str(checkpoint.parent) not in text
        assert "site-packages" not in text
    # An image that lies on the server is none that was uploaded, whoever asks.
    session = "abc"
    config = json.loads(request(server, "GET", "/config")[1])
    for function in config["dependencies"]:
        for path in (str(photograph), server.url, None):
            told = {"path": path, "url": server.url, "meta": {"_type": "gradio.FileData"}}
            call = {"data": [told, "nothing", 0.5, True], "fn_index": function["id"], "session_hash": session}
            status, text = request(server, "POST", "/gradio_api/queue/join", json.dumps(call).encode(), **JSON)
            assert (status, text) == (400, "No such upload") if path else (200, text)


JSON = {"content_type": "application/json"}


def test_too_much_is_refused(server: Server) -> None:
    assert request(server, "POST", "/gradio_api/upload", bytes(1_200_000))[0] == 413
    content = io.BytesIO()
    Image.effect_noise((1100, 950), 90).save(content, "PNG")
    assert len(content.getvalue()) > 1_000_000
    assert len(content.getvalue()) < 1_060_000
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n%s\r\n--x--\r\n'
    status, _ = request(
        server, "POST", "/gradio_api/upload", form % content.getvalue(), content_type="multipart/form-data; boundary=x"
    )
    assert status == 413


def test_other_names_are_not_answered_to(server: Server) -> None:
    """A page elsewhere whose name is made to mean this machine gets nothing."""
    assert request(server, "GET", "/", Host="evil.example")[0] == 421


def test_it_listens_on_this_machine_alone(server: Server) -> None:
    port = urlsplit(server.url).port
    others = [found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {address for address in others if not address.startswith("127.")}:
        with pytest.raises(OSError):  # noqa: PT011  refused, or no way there
            socket.create_connection((address, port), timeout=5).close()


def test_sigterm_ends_it_with_a_page_open(browser: Any, server: Server, photograph: Path) -> None:
    """The last test: nothing is left of it, neither its process nor what was uploaded."""
    show(browser, server.url)
    drop(browser, photograph)
    source = browser.find_element("css selector", "#photograph img").get_attribute("src")
    uploaded = Path(source.split("file=", 1)[1])
    assert uploaded.is_file()
    assert server.end(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(server.lines)
    assert not uploaded.parent.parent.exists()
    browser.get("about:blank")


def test_base64_is_no_upload() -> None:
    """Gradio takes images in addresses too; the page does not."""
    from openfastervit.data.images import ImageError
    from openfastervit.serving.page.upload import open_upload

    content = io.BytesIO()
    picture(1).save(content, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    with pytest.raises(ImageError, match="no such upload"):
        open_upload({"path": None, "url": data}, ".", 10**6)
