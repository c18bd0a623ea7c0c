"""Calls on the page: from the first visit to the answer, on every surface, however a call is answered."""

import json
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.contract.scripted import CALLS, ScriptedModel, call_of
from tests.live import Live
from tests.page.conftest import Picture, Visitor, add_example, say, wait_for_end


def test_a_first_visit_ends_with_an_answered_call(visitor: Visitor, live: Live, picture: Picture) -> None:
    """From nothing to a call of the real model, its function run, and the model's answer: one click."""
    page = visitor.open(live.url)
    expect(page.locator("#state")).to_have_text("ready")
    picture.take(page, "first-visit")
    page.get_by_role("button", name="What is the weather in Paris?").click()
    card = page.get_by_role("region", name="Call of get_weather")
    expect(card).to_contain_text("answered")
    expect(card.locator(".arguments")).to_have_text('{\n  "city": "Paris"\n}')
    expect(card.locator(".result")).to_contain_text('"temperature"')
    expect(page.locator("article.model")).to_have_count(2)
    wait_for_end(page)
    expect(page.locator("article.model").last.locator(".text").last).not_to_be_empty()
    expect(page.locator("#inspector")).to_contain_text("Reply:")
    picture.take(page, "call")


@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
def test_two_calls_at_once_are_answered_on_every_surface(
    visitor: Visitor, scripted: ScriptedModel, surface: str
) -> None:
    scripted.plays(CALLS, "Both are **sunny**.")
    page = visitor.open(scripted.url)
    page.get_by_role("combobox", name="Surface", exact=True).select_option(surface)
    say(page, "Paris and Rome?")
    cards = page.get_by_role("region", name="Call of get_weather")
    expect(cards).to_have_count(2)
    expect(page.locator("article.model").last.locator("strong")).to_have_text("sunny")
    wait_for_end(page)
    results = scripted.prompts[1].rsplit("<|im_start|>user", 1)[-1]
    assert results.count("<tool_response>") == 2 and '"rain"' in results and '"cloudy"' in results
    expect(page.locator("#inspector")).to_contain_text("Prompt:")
    page.get_by_role("tab", name="Request").click()
    paths = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
    expect(page.locator("#inspector")).to_contain_text(f"POST {scripted.url}{paths[surface]}")
    page.get_by_role("tab", name="Frames").click()
    expect(page.locator("#inspector .frames li").first).to_be_visible()


def test_a_custom_grammar_holds_what_the_model_writes(visitor: Visitor, live: Live) -> None:
    """The tool's text is a date whatever the model would have liked to write."""
    page = visitor.open(live.url)
    add_example(page, "A date, by a grammar")
    page.get_by_role("combobox", name="Tool choice", exact=True).select_option("day_of_week")
    page.get_by_label("go on when all calls are answered").uncheck()
    say(page, "Which day of the week is 2026-11-26?")
    card = page.get_by_role("region", name="Call of day_of_week")
    expect(card).to_contain_text("answered")
    written = card.locator(".arguments").inner_text()
    assert len(written) == 10 and written.startswith("20") and written[4] == written[7] == "-"
    expect(page.locator("#inspector")).to_contain_text("Grammar:")


def test_a_call_is_answered_by_hand_and_the_loop_goes_on(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays(call_of("send_email", to="ada@example.com", subject="Lunch", body="Noon"), "It is sent.")
    page = visitor.open(scripted.url)
    add_example(page, "E-mail, answered by hand")
    page.get_by_role("button", name="Send", exact=True).click()
    card = page.get_by_role("region", name="Call of send_email")
    expect(card).to_contain_text("waits for its result")
    card.get_by_role("textbox").fill('{"sent": "at once"}')
    card.get_by_role("button", name="Return this result").click()
    expect(page.locator("article.model").last).to_contain_text("It is sent.")
    assert '{"sent": "at once"}' in scripted.prompts[1]


def test_a_value_and_a_changed_result_go_to_the_model(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays(call_of("get_weather", city="Oslo"), "Cold.", "Warm.")
    page = visitor.open(scripted.url)
    open_tool(page, "get_weather")
    page.get_by_role("combobox", name="Calls are answered", exact=True).select_option("value")
    page.get_by_role("textbox", name="Value", exact=True).fill("minus 4")
    say(page, "Oslo?")
    expect(page.locator("article.model").last).to_contain_text("Cold.")
    card = page.get_by_role("region", name="Call of get_weather")
    card.get_by_role("button", name="Change").click()
    card.get_by_role("textbox").fill("plus 30")
    card.get_by_role("button", name="Return this result").click()
    expect(page.locator("article.model").last).to_contain_text("Warm.")
    expect(page.locator("article.model")).to_have_count(2)
    assert "minus 4" in scripted.prompts[1] and "plus 30" in scripted.prompts[2]


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("(args) => args.city.toUpperCase();", "OSLO"),
        ("async ({ city }) => ({ city })", '{"city": "Oslo"}'),
        ("(args) => { throw new Error('no such city') }", "no such city"),
        ("(args) => { for (;;); }", "longer than 5 s"),
        ("(args) => fetch('/v1/models').then(() => 'read')", "The function failed"),
        ("(args) => { importScripts('https://example.com/x.js') }", "The function failed"),
        ("(args) => typeof document + typeof localStorage", "undefinedundefined"),
        ("this is no code", "The function failed"),
        ("42", "this is no function"),
    ],
)
def test_functions_run_apart_from_the_page(visitor: Visitor, scripted: ScriptedModel, source: str, result: str) -> None:
    """A function has neither network nor the page's key, and one that never ends does not stop the page."""
    scripted.plays(call_of("get_weather", city="Oslo"), "Done.")
    page = visitor.open(scripted.url)
    open_tool(page, "get_weather")
    page.get_by_label("Function of the arguments").fill(source)
    say(page, "Oslo?")
    expect(page.locator("article.model").last).to_contain_text("Done.")
    sent = scripted.prompts[1].rsplit("<tool_response>", 1)[-1]
    assert result in sent
    visitor.faults = [fault for fault in visitor.faults if "Content Security Policy" not in fault]


def test_arguments_fill_in_as_they_are_written(visitor: Visitor, slow: ScriptedModel) -> None:
    """A card that appears only when its call is complete shows nothing for as long as the call is written."""
    slow.plays(call_of("get_weather", city="a very long name of a city that takes its time to be written"), "Done.")
    page = visitor.open(slow.url)
    say(page, "Where?")
    card = page.get_by_role("region", name="Call of get_weather")
    expect(card).to_contain_text("being written")
    expect(card.locator(".arguments")).to_contain_text('{"city": "a very')
    assert "written" not in card.locator(".arguments").inner_text()
    expect(card).to_contain_text("answered")
    expect(page.locator("article.model").last).to_contain_text("Done.")


def test_the_programs_of_an_export_repeat_the_request(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays('It\'s "quoted".')
    page = visitor.open(scripted.url)
    say(page, "Say 'quoted' \\ \"twice\" $HOME `id`")
    wait_for_end(page)
    page.get_by_role("button", name="Export").click()
    text = page.locator("#export-text")
    kept = json.loads(text.inner_text())
    assert kept["turns"][1]["text"] == 'It\'s "quoted".' and kept["tools"][0]["name"] == "get_weather"
    for form in ("curl", "Python", "JavaScript"):
        page.get_by_role("button", name=form, exact=True).click()
        expect(text).to_contain_text(scripted.url)
        scripted.plays("Again.")
        assert run_program(form, text.text_content() or "") and scripted.prompts[0].count("`id`") == 1


def run_program(form: str, program: str) -> bool:
    """Run an exported program; whether it printed the reply."""
    command = {
        "curl": ["bash", "-c", program],
        "Python": [sys.executable, "-c", program],
        "JavaScript": ["node", "--input-type=module", "-e", program],
    }[form]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return "chat.completion.chunk" in ended.stdout


def open_tool(page: Page, name: str) -> None:
    page.locator("li.tool summary", has_text=name).click()
