"""The page in a real browser: Playwright over the Chromium of the system. `make test-page` runs these tests."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.contract.scripted import ScriptedModel, scripted_model
from tests.live import ROOT

PICTURES = ROOT / "docs" / "pictures"
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 780}
COLOURS = 64  # of a picture: a third of the bytes of all colours
PATIENCE_MS = 30_000  # of what a page waits for on a busy machine


@dataclass  # without slots: Playwright keeps its wrappers of methods in it
class Visitor:
    """A browser profile that visits the page. `faults` are what its pages reported, and requests to other servers."""

    context: BrowserContext
    own: str = ""
    faults: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        """The page of the server at this address, loaded."""
        self.own = url
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("console", self._hear)
        page.on("request", self._watch)
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.goto(url)
        return page

    def _hear(self, message: ConsoleMessage) -> None:
        # A status of 400 and more, which the page shows, is an error of the console too.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self.own, "blob:", "data:", "about:")):
            self.faults.append(f"request: {request.url}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "Chromium is needed: apt-get install chromium"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visitor_options() -> dict[str, Any]:
    """Options of the browser's profile; modules of tests override them."""
    return {"viewport": WIDE, "color_scheme": "light"}


@pytest.fixture
def visitor(browser: Browser, visitor_options: dict[str, Any]) -> Iterator[Visitor]:
    """A new profile; whatever goes wrong in its pages fails the test."""
    context = browser.new_context(**visitor_options)
    context.set_default_timeout(PATIENCE_MS)
    visitor = Visitor(context)
    yield visitor
    context.close()
    assert visitor.faults == []


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedModel]:
    """A model that writes what a test tells it to, behind the real API."""
    with scripted_model() as model:
        yield model


@pytest.fixture(scope="session")
def slow() -> Iterator[ScriptedModel]:
    """The same, ten tokens a second."""
    with scripted_model(pause_s=0.1) as model:
        yield model


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> "Picture":
    """Takes the pictures of the documents, with `--pictures`."""
    return Picture(PICTURES if request.config.getoption("pictures") else None)


@dataclass(frozen=True, slots=True)
class Picture:
    """Writes pictures into a folder; none without one."""

    folder: Path | None

    def take(self, page: Page, name: str) -> None:
        """The page as it is seen."""
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            shot = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide"))).convert("RGB")
            shot.quantize(COLOURS).save(self.folder / f"{name}.png", optimize=True)


def say(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def wait_for_end(page: Page) -> None:
    """Wait until nothing is written any more."""
    expect(page.locator("#thread")).to_have_attribute("data-busy", "false")


def add_example(page: Page, title: str) -> None:
    """Offer the tools of an example."""
    page.get_by_role("button", name=title, exact=True).click()
