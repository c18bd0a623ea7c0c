"""Looks of the page: narrow, dark, by keyboard, for screen readers, and with a long conversation."""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.contract.scripted import CALLS, ScriptedModel
from tests.live import Live
from tests.page.conftest import PHONE, WIDE, Picture, Visitor, say, wait_for_end

AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
SCREENS: dict[str, dict[str, Any]] = {
    "wide-light": {"viewport": WIDE, "color_scheme": "light"},
    "wide-dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone-light": {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True},
}
VIEWS = ("Chat", "Tools", "Inspect", "Server")
ANSWER = """Both are **sunny**, see [the map](https://example.org).

| city | sky |
|---|---|
| Paris | clear |

```python
print("sunny")
```
"""
MANY = 200  # messages
LONG = "word " * 4000


@pytest.fixture(scope="session", autouse=True)
def axe() -> str:
    """axe-core, from npm."""
    if not AXE.exists():
        command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=AXE.parents[2], check=True, timeout=120)
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(params=SCREENS)
def screen(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visitor]:
    """A visitor with each of the screens. Its policy is off: axe comes as text."""
    context = browser.new_context(bypass_csp=True, **SCREENS[request.param])
    visitor = Visitor(context)
    yield visitor
    context.close()
    assert visitor.faults == []


def findings(page: Page, axe: str) -> list[str]:
    """What axe finds serious, as rule and element."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    places = [(one["id"], node["target"], node.get("failureSummary")) for one in serious for node in one["nodes"]]
    return [f"{rule}: {target} {summary}" for rule, target, summary in places]


def test_axe_finds_nothing_serious_on_any_screen(
    screen: Visitor, scripted: ScriptedModel, axe: str, request: pytest.FixtureRequest, picture: Picture
) -> None:
    scripted.plays(CALLS, ANSWER)
    page = screen.open(scripted.url)
    assert findings(page, axe) == []
    say(page, "Paris and Rome?")
    expect(page.locator("article.model")).to_have_count(2)
    wait_for_end(page)
    for view in VIEWS:
        page.get_by_role("button", name=view, exact=True).click()
        if view == "Tools":
            page.locator("li.tool summary").first.click()
        if view == "Server":
            expect(page.locator("#server-body")).to_contain_text("latency")
        assert findings(page, axe) == [], view
        name = request.node.callspec.params["screen"]
        if (name, view) in {("wide-dark", "Tools"), ("phone-light", "Chat"), ("phone-dark", "Inspect")}:
            picture.take(page, f"{name}-{view.lower()}")
        if view == "Tools":
            page.get_by_role("textbox", name="Name", exact=True).fill("no name")
            page.get_by_role("textbox", name="Parameters (JSON Schema)").fill('{"type": "text"}')
            page.get_by_role("combobox", name="Surface", exact=True).select_option("messages")
            page.get_by_role("spinbutton", name="Seed").fill("1")
            page.keyboard.press("Enter")
            expect(page.locator("#options .chip")).to_be_visible()
            assert findings(page, axe) == [], "faults of a tool"
    for name in ("Export", "Paste tools"):
        page.get_by_role("button", name="Tools", exact=True).click()
        page.get_by_role("button", name=name, exact=True).click()
        assert findings(page, axe) == [], name
        page.keyboard.press("Escape")


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(browser: Browser, scripted: ScriptedModel, view: str) -> None:
    """A page that scrolls sideways loses its buttons."""
    context = browser.new_context(viewport={"width": 320, "height": 640})
    visitor = Visitor(context)
    scripted.plays("x" * 300 + " `" + "y" * 300 + "`\n\n```\n" + "z" * 300 + "\n```")
    page = visitor.open(scripted.url)
    say(page, "w" * 300)
    wait_for_end(page)
    page.get_by_role("button", name=view, exact=True).click()
    sizes = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
    context.close()
    assert sizes[0] <= sizes[2] and sizes[1] <= sizes[2] and visitor.faults == []


def test_the_whole_way_by_keyboard(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays(CALLS, "Sunny.")
    page = visitor.open(scripted.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("Paris")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Rome")
    page.keyboard.press("Enter")
    expect(page.locator("article.user")).to_contain_text("Paris\nRome", use_inner_text=True)
    expect(page.locator("article.model").last).to_contain_text("Sunny.")
    expect(page.locator("#announcer")).to_have_text("The model has answered")
    page.get_by_role("listbox", name="Tokens of the reply").focus()
    page.keyboard.press("End")
    expect(page.locator(".token-line").last).to_contain_text("control token")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".token-line").last).to_contain_text("chosen")
    page.get_by_role("tab", name="What happened").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Request")).to_have_attribute("aria-selected", "true")


def test_the_server_is_shown_live(visitor: Visitor, live: Live, picture: Picture) -> None:
    page = visitor.open(live.url)
    page.get_by_role("button", name="Server", exact=True).click()
    body = page.locator("#server-body")
    for text in ("output tokens", "requests", "running", "Memory", "weights", "cache", "latency", "first token"):
        expect(body).to_contain_text(text)
    page.get_by_role("button", name="What is the weather in Paris?").click()
    wait_for_end(page)
    page.get_by_role("button", name="Server", exact=True).click()
    expect(body.locator("dd").first).not_to_have_text("0/s")
    picture.take(page, "server")


def test_devices_are_shown_as_toolwire_top_shows_them(visitor: Visitor, live: Live) -> None:
    """Their temperature was left out. Nobody has such devices here, so the report of memory is made."""
    report = httpx.get(f"{live.url}/v1/memory").json()
    known = {"total": 2**34, "used": 2**33, "free": 2**33, "own": 2**32}
    busy = {**known, "name": "GPU A", "utilisation": 0.5, "temperature_c": 61.4}
    report["devices"] = [busy, {**known, "name": "GPU B", "utilisation": None, "temperature_c": None}]
    page = visitor.open(live.url)
    page.route("**/v1/memory", lambda route: route.fulfill(json=report))
    page.get_by_role("button", name="Server", exact=True).click()
    titles = page.locator("#server-body figcaption")
    expect(titles.filter(has_text="GPU A")).to_have_text("GPU A, 50 % busy, 61 °C")
    expect(titles.filter(has_text="GPU B")).to_have_text("GPU B")


def test_a_long_conversation_is_neither_rendered_again_nor_slow_to_scroll(
    browser: Browser, visitor: Visitor, scripted: ScriptedModel, record_property: Any
) -> None:
    """Two hundred messages and a reply of 4,000 tokens. Frame times of the browser's trace are printed, not judged."""
    turns: list[dict[str, Any]] = []
    for number in range(MANY // 2):
        text = f"Answer **{number}** with `code`.\n\n- one\n- two"
        turns += [
            {"role": "user", "text": f"Question {number}"},
            {"role": "assistant", "text": text, "calls": [], "finish": "stop"},
        ]
    page = visitor.open(scripted.url)
    kept = json.dumps({"version": 1, "turns": turns, "tools": []})
    page.evaluate("kept => localStorage.setItem('toolwire.conversation', kept)", kept)
    page.reload()
    expect(page.locator("article")).to_have_count(MANY)
    page.evaluate("""() => {
      window.changes = 0;
      const earlier = new Set(document.querySelectorAll("article"));
      new MutationObserver((records) => {
        for (const record of records) {
          if (earlier.has(record.target.closest?.("article"))) window.changes += 1;
        }
      }).observe(document.getElementById("thread"), { childList: true, subtree: true });
    }""")
    scripted.plays(LONG)
    say(page, "Write much")
    wait_for_end(page)
    assert page.evaluate("window.changes") == 0, "earlier messages were rendered again while one was written"
    record_property("advice", f"page: {frame_times(browser, page)}")


def frame_times(browser: Browser, page: Page) -> str:
    """Times of frames while the conversation scrolls from its end to its beginning, by the browser's own trace."""
    browser.start_tracing(page=page, categories=["disabled-by-default-devtools.timeline.frame", "devtools.timeline"])
    page.evaluate("""() => new Promise((done) => {
      const thread = document.getElementById("thread");
      let step = 0;
      const scroll = () => {
        thread.scrollTop = thread.scrollHeight * (1 - step / 120);
        if ((step += 1) <= 120) requestAnimationFrame(scroll);
        else done();
      };
      scroll();
    })""")
    events = json.loads(browser.stop_tracing())["traceEvents"]
    drawn = sorted(one["ts"] for one in events if one["name"] == "DrawFrame")
    gaps = sorted((later - earlier) / 1000 for earlier, later in pairwise(drawn))
    assert gaps, "the trace has frames"
    half, most = (gaps[int(part * (len(gaps) - 1))] for part in (0.5, 0.95))
    return f"{len(gaps)} frames, half within {half:.1f} ms, 95 % within {most:.1f} ms, longest {gaps[-1]:.1f} ms"
