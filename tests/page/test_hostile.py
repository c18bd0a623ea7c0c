"""Hostile text in every place of the page that shows text: nothing runs, nothing is fetched, nothing is framed."""

import json

from playwright.sync_api import Page, Route, expect

from tests.contract.scripted import ScriptedModel, call_of
from tests.page.conftest import Visitor, say, wait_for_end

MARKS = "window.ran = (window.ran ?? 0) + 1"
HOSTILE = (
    f'<img src=x onerror="{MARKS}"><script>{MARKS}</script><iframe srcdoc="<script>parent.{MARKS}</script>"></iframe>'
    f'<svg onload="{MARKS}"></svg><a href="javascript:{MARKS}">x</a><base href="https://example.com/">'
    "<style>*{display:none}</style><form action=https://example.com><button>Send</button></form>"
)
HOSTILE_MARKDOWN = f"""
{HOSTILE}

[click](javascript:{MARKS.replace(" ", "")}) [click](data:text/html,x) [click](JaVaScRiPt:alert(1))
[ok](https://example.org/a) ![picture](https://example.com/pixel.png) <javascript:alert(1)> <https://example.net>

# {HOSTILE}
> {HOSTILE}

- {HOSTILE}

| {HOSTILE} | b |
|---|---|
| `{HOSTILE}` | **{HOSTILE}** |

```"><img src=x onerror={MARKS}>
{HOSTILE}
```
"""
# Elements that only hostile text could have made.
MADE = ":is(#thread, #inspector, #view-tools, dialog) :is(img, script, iframe, style, base, object, embed, link)"


def assert_harmless(page: Page) -> None:
    assert page.evaluate("window.ran") is None
    assert page.locator(MADE).count() == 0 and page.locator("iframe").count() <= 1
    addresses = page.eval_on_selector_all("a[href]", "nodes => nodes.map(node => node.protocol)")
    assert set(addresses) <= {"https:", "http:", "mailto:"}
    assert page.locator("h1").first.is_visible()


def test_what_the_model_writes_and_calls(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays(call_of("get_weather", city=HOSTILE), HOSTILE_MARKDOWN)
    page = visitor.open(scripted.url)
    say(page, HOSTILE_MARKDOWN)
    expect(page.locator("article.model").last).to_contain_text("onerror")
    wait_for_end(page)
    links = page.locator("article.model").last.locator("a")
    assert {link.get_attribute("href") for link in links.all()} == {
        "https://example.org/a", "https://example.com/pixel.png", "https://example.net/", "https://example.com/",
    }  # fmt: skip
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer"
    for tab in ("What happened", "Request", "Frames"):
        page.get_by_role("tab", name=tab).click()
        assert_harmless(page)
    page.reload()
    expect(page.locator("article.model").last).to_contain_text("onerror")
    assert_harmless(page)


def test_tools_instructions_results_and_imports(visitor: Visitor, scripted: ScriptedModel) -> None:
    """An OpenAPI document of somebody else names operations, types and descriptions."""
    operation = {"operationId": HOSTILE, "summary": HOSTILE, "parameters": [{"in": "query", "name": HOSTILE}]}
    definitions = [{"name": "shown", "description": HOSTILE, "parameters": {"type": "object", "title": HOSTILE}}]
    page = visitor.open(scripted.url)
    page.get_by_label("Instructions for the model").fill(HOSTILE)
    document = {"paths": {HOSTILE: {"get": operation}}}
    function = f'def f(a: str):\n    """{HOSTILE}"""'
    for text in (json.dumps(document), json.dumps(definitions), function):
        page.get_by_role("button", name="Paste tools").click()
        page.locator("#import-text").fill(text)
        page.get_by_role("button", name="Add", exact=True).click()
    schema = page.get_by_role("textbox", name="Parameters (JSON Schema)").last
    schema.fill(json.dumps({"type": HOSTILE}) + "[}")
    expect(page.locator(".problems").last).not_to_be_empty()
    schema.fill(json.dumps({"type": HOSTILE, HOSTILE: 1}))
    expect(page.locator(".problems").last).to_contain_text("onerror")
    assert_harmless(page)
    page.get_by_role("button", name="Export").click()
    assert_harmless(page)


def test_names_flags_and_errors_of_a_hostile_server(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Whatever stands behind this address: names of calls, notes, traces and errors are text."""
    trace = {
        "prompt": [{"id": 1, "text": HOSTILE, "control": True}],
        "cached_tokens": 0,
        "grammar": HOSTILE,
        "tokens": [{"id": 1, "text": HOSTILE, "logprob": -1, "top": [{"id": 1, "text": HOSTILE, "logprob": -1}]}],
        "steps": [{"at_s": 0.1, "tokens": 1}],
        "stages": [{"stage": HOSTILE, "at_s": 0.1}],
    }
    own = {
        "calls": [{"choice": 0, "index": 0, "flags": ["repaired", HOSTILE], "raw": HOSTILE}],
        "notes": [{"kind": HOSTILE, "param": HOSTILE, "text": HOSTILE}],
        "trace_delta": trace,
    }
    call = {"index": 0, "id": HOSTILE, "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}}
    chunks = [
        {"choices": [{"index": 0, "delta": {"reasoning_content": HOSTILE}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "toolwire": own},
        {"error": {"message": HOSTILE, "code": HOSTILE, "param": HOSTILE}},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page = visitor.open(scripted.url)
    page.route("**/v1/chat/completions", answer)
    say(page, "Hi")
    reply = page.locator("article.model").last
    expect(reply.get_by_role("alert")).to_contain_text("onerror")
    reply.locator("summary").first.click()
    page.locator("#inspector .token").last.hover()
    expect(page.locator(".token-line").last).to_contain_text("onerror")
    assert_harmless(page)


def test_the_sandbox_cannot_reach_the_page(visitor: Visitor, scripted: ScriptedModel) -> None:
    """A function that escapes its worker's brackets still has an origin of its own."""
    scripted.plays(call_of("get_weather", city="Oslo"), "Done.")
    page = visitor.open(scripted.url)
    page.locator("li.tool summary", has_text="get_weather").click()
    escape = "(args) => self.origin); postMessage({ text: String(self.origin) }); (0"
    page.get_by_label("Function of the arguments").fill(escape)
    say(page, "Oslo?")
    expect(page.locator("article.model").last).to_contain_text("Done.")
    frame = page.locator("iframe")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    origin = page.frames[-1].evaluate("self.origin")
    assert origin == "null"
