"""One conversation on several surfaces: switched in its middle, with failed results, exported, on a strict server."""

import json
import subprocess
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.contract.scripted import CALLS, ScriptedModel, call_of
from tests.live import live_server
from tests.page.conftest import Visitor, add_example, say, wait_for_end
from tests.page.test_calls import open_tool, run_program

SURFACES = ("chat", "responses", "messages")


def choose(page: Page, surface: str) -> None:
    page.get_by_role("combobox", name="Surface", exact=True).select_option(surface)


def sent(page: Page) -> dict[str, Any]:
    """The body of the last request."""
    page.get_by_role("tab", name="Request").click()
    body: dict[str, Any] = json.loads(page.locator("#inspector pre").inner_text())
    page.get_by_role("tab", name="What happened").click()
    return body


def test_the_surface_is_switched_in_the_middle(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The prompt is the same whichever surface the calls came by, and whichever sends them back."""
    scripted.plays(*[CALLS, "Sunny."] * 3, "Yes.", "Yes.", "Yes.")
    page = visitor.open(scripted.url)
    for surface in SURFACES:
        choose(page, surface)
        say(page, f"By {surface}")
        expect(page.locator("article.model").last).to_contain_text("Sunny.")
        wait_for_end(page)
    prompts = []
    for surface in SURFACES:
        choose(page, surface)
        say(page, "Well?")
        expect(page.locator("article.model").last).to_contain_text("Yes.")
        wait_for_end(page)
        prompts.append(scripted.prompts[-1])
        page.get_by_role("button", name="Edit this message").last.click()
        page.get_by_role("button", name="Cancel").click()
        page.evaluate("""() => {
          const kept = JSON.parse(localStorage.getItem("toolwire.conversation"));
          kept.turns = kept.turns.slice(0, -2);
          localStorage.setItem("toolwire.conversation", JSON.stringify(kept));
        }""")
        page.reload()
    assert prompts[0].count("<tool_response>") == 6
    assert prompts[0] == prompts[1] == prompts[2]


def test_a_failed_result_is_said_to_have_failed(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Messages has a field for it; and the page forgot it when it was loaded again."""
    scripted.plays(call_of("get_weather", city="Oslo"), "No weather.")
    page = visitor.open(scripted.url)
    choose(page, "messages")
    open_tool(page, "get_weather")
    page.get_by_label("Function of the arguments").fill("() => { throw new Error('closed') }")
    say(page, "Oslo?")
    expect(page.locator("article.model").last).to_contain_text("No weather.")
    wait_for_end(page)
    (result,) = sent(page)["messages"][2]["content"]
    assert result["is_error"] is True and "closed" in result["content"]
    page.reload()
    expect(page.locator(".result.failed")).to_contain_text("closed")


def test_what_a_surface_cannot_send_is_named(visitor: Visitor, scripted: ScriptedModel) -> None:
    """A seed and custom tools were dropped in silence, and a choice of one was sent as a kind that no surface has."""
    page = visitor.open(scripted.url)
    add_example(page, "A date, by a grammar")
    page.get_by_role("spinbutton", name="Seed").fill("7")
    page.keyboard.press("Enter")
    page.get_by_role("combobox", name="Tool choice", exact=True).select_option("day_of_week")
    warning = page.locator("#options .chip")
    expect(warning).to_have_count(0)
    choose(page, "messages")
    expect(warning).to_have_text("Messages cannot send: day_of_week, the seed")
    say(page, "Go")
    expect(page.locator("article.model").last.get_by_role("alert")).to_contain_text("day_of_week")
    choose(page, "responses")
    expect(warning).to_have_count(0)


@pytest.mark.parametrize("surface", SURFACES)
def test_programs_repeat_a_conversation_with_parallel_calls(
    visitor: Visitor, scripted: ScriptedModel, surface: str
) -> None:
    scripted.plays(CALLS, "Both are sunny.")
    page = visitor.open(scripted.url)
    choose(page, surface)
    say(page, "Paris & Rome? 'END_OF_REQUEST' $HOME \\ `id`\nEND_OF_REQUEST")
    expect(page.locator("article.model").last).to_contain_text("Both are sunny.")
    wait_for_end(page)
    prompt = scripted.prompts[1]
    page.get_by_role("button", name="Export").click()
    for form in ("curl", "Python", "JavaScript"):
        page.get_by_role("button", name=form, exact=True).click()
        expect(page.locator("#export-text")).to_contain_text(scripted.url)
        scripted.plays("Again.")
        run_program(form, page.locator("#export-text").text_content() or "")
        assert scripted.prompts == [prompt], form


def test_a_request_longer_than_a_command_line_is_repeated_too(visitor: Visitor, scripted: ScriptedModel) -> None:
    """As an argument of curl it was refused by the kernel, which takes 128 KiB; from its input the server gets it."""
    page = visitor.open(scripted.url)
    page.get_by_label("Instructions for the model").fill("long " * 40_000)
    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="curl", exact=True).click()
    program = page.locator("#export-text").text_content() or ""
    ended = subprocess.run(["bash", "-s"], input=program, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Argument list" not in ended.stderr and '"error"' in ended.stdout


def test_every_surface_of_a_strict_server(visitor: Visitor) -> None:
    """Messages requires a number of tokens, and a strict server takes no word of this page's own for all of them."""
    with live_server("--strict") as server:
        page = visitor.open(server.url)
        for surface in SURFACES:
            page.get_by_role("button", name="New", exact=True).click()
            choose(page, surface)
            page.get_by_role("button", name="What is the weather in Paris?").click()
            expect(page.get_by_role("region", name="Call of get_weather")).to_contain_text("answered")
            expect(page.locator("article.model")).to_have_count(2)
            wait_for_end(page)
            assert page.locator("article.model .fault:visible").count() == 0
