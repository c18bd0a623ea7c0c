"""Tools on the page: names, schemas and grammars with faults, a very large one, and what imports leave out."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.contract.scripted import ScriptedModel, call_of
from tests.live import Live
from tests.page.conftest import Visitor, add_example, say, wait_for_end

MANY = 300  # properties


def kept(page: Page) -> dict[str, Any]:
    """The conversation as the browser keeps it."""
    value: dict[str, Any] = json.loads(page.evaluate("localStorage.getItem('toolwire.conversation')"))
    return value


def paste(page: Page, text: str) -> None:
    page.get_by_role("button", name="Paste tools").click()
    page.locator("#import-text").fill(text)


def test_a_name_that_no_tool_may_have_is_kept_and_named_as_a_fault(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The page once sent another name than the one in the field: `tool` for an emoji."""
    page = visitor.open(scripted.url)
    page.locator("li.tool summary").click()
    name = page.get_by_role("textbox", name="Name", exact=True).first
    name.fill("🌤️")
    expect(page.locator(".problems").first).to_contain_text("letters a-z, digits")
    expect(page.get_by_role("checkbox", name="Offer 🌤️")).to_be_checked()
    assert kept(page)["tools"][0]["name"] == "🌤️"
    say(page, "Go")
    expect(page.locator("article.model").last.get_by_role("alert")).to_contain_text("tools[0].function.name")
    page.get_by_role("button", name="New tool").click()
    page.get_by_role("textbox", name="Name", exact=True).last.fill("🌤️")
    expect(page.locator(".tool").last.locator(".problems").first).to_contain_text("letters a-z")
    name.fill("new")
    page.get_by_role("textbox", name="Name", exact=True).last.fill("new")
    expect(page.locator(".tool").last.locator(".problems").first).to_contain_text("another tool has this name")


def test_a_tool_with_hundreds_of_properties(visitor: Visitor, scripted: ScriptedModel) -> None:
    properties = {f"property_{number}": {"type": "string"} for number in range(MANY)}
    scripted.plays(call_of("wide", **dict.fromkeys(properties, "x")), "Done.")
    page = visitor.open(scripted.url)
    paste(page, json.dumps({"name": "wide", "parameters": {"type": "object", "properties": properties}}))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("li.tool summary").last).to_contain_text(f"{MANY} parameters")
    page.get_by_role("combobox", name="Calls are answered", exact=True).select_option("value")
    say(page, "All of them")
    expect(page.locator("article.model").last).to_contain_text("Done.")
    written = page.get_by_role("region", name="Call of wide").locator(".arguments")
    assert written.inner_text().count("property_") == MANY and "property_299" in scripted.prompts[0]


def test_a_schema_with_a_fault_is_not_checked_as_the_one_before(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The server was asked about the last schema without faults, and its praise stood below the faulty one."""
    page = visitor.open(scripted.url)
    page.locator("li.tool summary").click()
    page.get_by_role("textbox", name="Parameters (JSON Schema)").fill('{"type": "object", ')
    expect(page.locator(".problems").last).to_contain_text("the schema before it is offered")
    page.get_by_role("button", name="Check with the server").click()
    expect(page.locator(".editor .answer")).to_have_text("Mend the parameters first.")


@pytest.mark.parametrize("reference", ["#/%", "#/$defs/%E0%A4%A", "#/constructor"])
def test_a_reference_that_is_no_address_is_a_fault_of_the_schema(
    visitor: Visitor, scripted: ScriptedModel, reference: str
) -> None:
    """It once raised URIError while it was typed; names that every object has led somewhere."""
    page = visitor.open(scripted.url)
    page.locator("li.tool summary").click()
    schema = {"type": "object", "properties": {"a": {"$ref": reference}}}
    page.get_by_role("textbox", name="Parameters (JSON Schema)").fill(json.dumps(schema))
    expect(page.locator(".problems").last).to_contain_text(f"there is nothing at {reference}")


def test_an_example_that_was_switched_off_is_offered_again(visitor: Visitor, scripted: ScriptedModel) -> None:
    page = visitor.open(scripted.url)
    page.get_by_role("checkbox", name="Offer get_weather").uncheck()
    add_example(page, "Weather")
    expect(page.get_by_role("checkbox", name="Offer get_weather")).to_be_checked()
    assert [tool["enabled"] for tool in kept(page)["tools"]] == [True]


def test_a_fault_of_a_grammar_points_at_its_place(visitor: Visitor, live: Live) -> None:
    """The server's lines and its caret were run together into one line, in which the caret points at nothing."""
    page = visitor.open(live.url)
    add_example(page, "A date, by a grammar")
    page.get_by_role("combobox", name="Written in", exact=True).select_option("lark")
    page.get_by_role("textbox", name="Grammar", exact=True).fill('start: "a"\nb: (\nc: "d"')
    page.get_by_role("button", name="Check with the server").click()
    answer = page.locator(".editor .answer")
    expect(answer).to_contain_text("Expected token")
    say(page, "Go")
    fault = page.locator("article.model").last.get_by_role("alert")
    expect(fault).to_contain_text("Expected token")
    for place in (answer, fault):
        lines = place.inner_text().split("\n")
        at = next(number for number, line in enumerate(lines) if "b: (" in line)
        assert "^" in lines[at + 1]
        assert "monospace" in place.evaluate("node => getComputedStyle(node).fontFamily")


def test_imports_say_what_they_leave_out(visitor: Visitor, scripted: ScriptedModel) -> None:
    page = visitor.open(scripted.url)
    paste(page, 'def f(a: int, *rest: str, **more: float):\n    "Add."')
    found = page.locator("#import-found")
    expect(found).to_contain_text("*rest is left out")
    operation = {"operationId": "list", "parameters": [{"in": "header", "name": "X-Tenant", "required": True}]}
    page.locator("#import-text").fill(json.dumps({"paths": {"/a": {"get": operation}}}))
    expect(found).to_contain_text("left out: X-Tenant")
    page.locator("#import-text").fill('[{"name": "größe"}]')
    expect(found).to_contain_text("letters a-z")
    page.locator("#import-text").fill("{paths: 1}")
    expect(page.locator("#import-problem")).to_contain_text("This is no JSON")
    page.locator("#import-text").fill(json.dumps({"swagger": "2.0", "paths": {"/a": {"get": operation}}}))
    expect(page.locator("#import-problem")).to_contain_text("convert it to OpenAPI 3")
    page.locator("#import-text").fill('[{"name": "files.read"}]')
    page.get_by_role("button", name="Add", exact=True).click()
    tool = kept(page)["tools"][-1]
    assert tool["name"] == "files.read" and "note" not in tool
    wait_for_end(page)
