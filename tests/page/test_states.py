"""Conversations that are stopped, retried, edited, kept, refused, and cut off by a server that goes away."""

import signal

import pytest
from playwright.sync_api import expect

from tests.contract.scripted import ScriptedModel
from tests.live import live_server
from tests.page.conftest import Visitor, say, wait_for_end

LONG = "Once upon a time there was a server that wrote and wrote, word by word, until somebody pressed a button."


def test_a_reply_is_stopped_in_the_middle_and_the_conversation_goes_on(visitor: Visitor, slow: ScriptedModel) -> None:
    slow.plays(LONG, "Yes.")
    page = visitor.open(slow.url)
    say(page, "Tell me")
    reply = page.locator("article.model").first
    expect(reply).to_contain_text("Once upon")
    page.get_by_role("button", name="Stop").click()
    expect(reply).to_contain_text("stopped")
    assert "button" not in reply.locator(".text").last.inner_text()
    say(page, "Still there?")
    expect(page.locator("article.model").last).to_contain_text("Yes.")
    assert "Once upon" in slow.prompts[1] and "Still there?" in slow.prompts[1]


def test_escape_stops_too(visitor: Visitor, slow: ScriptedModel) -> None:
    slow.plays(LONG)
    page = visitor.open(slow.url)
    say(page, "Tell me")
    expect(page.locator("article.model")).to_contain_text("Once")
    page.keyboard.press("Escape")
    expect(page.locator("article.model")).to_contain_text("stopped")


def test_retry_and_edit_drop_what_follows(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays("First.", "Second.", "Third.", "Fourth.")
    page = visitor.open(scripted.url)
    say(page, "One")
    wait_for_end(page)
    say(page, "Two")
    wait_for_end(page)
    page.get_by_role("button", name="Write this reply again").last.click()
    expect(page.locator("article.model").last).to_contain_text("Third.")
    page.get_by_role("button", name="Edit this message and go on from it").first.click()
    page.get_by_role("textbox", name="Your message").fill("Other")
    page.get_by_role("button", name="Send from here").click()
    expect(page.locator("article.model").last).to_contain_text("Fourth.")
    expect(page.locator("article")).to_have_count(2)
    assert "Other" in scripted.prompts[3] and "One" not in scripted.prompts[3].rsplit("<|im_start|>user", 1)[-1]


def test_a_conversation_outlives_the_page(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays("Kept.", "Again.")
    page = visitor.open(scripted.url)
    say(page, "Keep this")
    wait_for_end(page)
    page.reload()
    expect(page.locator("article.user")).to_contain_text("Keep this")
    expect(page.locator("article.model")).to_contain_text("Kept.")
    say(page, "And?")
    expect(page.locator("article.model").last).to_contain_text("Again.")
    assert "Kept." in scripted.prompts[1]
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("article")).to_have_count(0)


@pytest.mark.parametrize(
    "kept", ["{", "null", '{"version": 1}', '{"version": 1, "turns": [{"role": "x"}], "tools": [{}]}', "[1]"]
)
def test_a_store_that_holds_something_else_does_not_stop_the_page(
    visitor: Visitor, scripted: ScriptedModel, kept: str
) -> None:
    """A page of another version, or of another program on this port, may have written it."""
    scripted.plays("Here.")
    page = visitor.open(scripted.url)
    page.evaluate("kept => localStorage.setItem('toolwire.conversation', kept)", kept)
    page.reload()
    say(page, "There?")
    expect(page.locator("article.model").last).to_contain_text("Here.")


def test_a_key_is_asked_for_and_kept_for_the_session(visitor: Visitor) -> None:
    """Each tab asks once; the key is in no storage that outlives it, and in no export.

    The server is strict, and so refuses the page's trace: the page goes on without.
    """
    with live_server("--api-key", "sesame", "--strict") as server:
        page = visitor.open(server.url)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server needs a key")
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button", name="Use it").click()
        expect(dialog).to_contain_text("Incorrect API key")
        dialog.get_by_label("Key").fill("sesame")
        dialog.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).not_to_be_empty()
        page.reload()
        expect(page.locator("#model")).not_to_be_empty()
        page.get_by_role("button", name="What is the weather in Paris?").click()
        expect(page.get_by_role("region", name="Call of get_weather")).to_contain_text("answered")
        wait_for_end(page)
        assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
        page.get_by_role("button", name="Export").click()
        for form in ("JSON", "curl", "Python", "JavaScript"):
            page.get_by_role("button", name=form, exact=True).click()
            assert "sesame" not in page.locator("#export-text").inner_text()
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Forget key").click()
        say(page, "Hello")
        expect(page.get_by_role("dialog")).to_contain_text("This server needs a key")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("article.model").last).to_contain_text("failed")


def test_a_server_that_restarts_in_the_middle(visitor: Visitor) -> None:
    """The reply is kept as far as it came, and can be written again once the server is back."""
    with live_server() as server:
        page = visitor.open(server.url)
        page.get_by_role("button", name="A date, by a grammar").click()
        page.get_by_role("textbox", name="Grammar", exact=True).fill("[a-z]{1200}")
        page.get_by_role("combobox", name="Tool choice", exact=True).select_option("day_of_week")
        say(page, "Write")
        reply = page.locator("article.model").last
        expect(reply.locator(".arguments")).not_to_be_empty()
        server.process.send_signal(signal.SIGKILL)
        expect(reply.get_by_role("alert")).to_contain_text("The connection broke")
        expect(reply).to_contain_text("cut off")
        expect(page.locator("#state")).to_have_text("no answer")
        say(page, "Still there?")
        expect(page.locator("article.model").last.get_by_role("alert")).to_contain_text("does not answer")
        server.process.wait()
    with live_server("--port", server.url.rpartition(":")[2]):
        expect(page.locator("#state")).to_have_text("ready")
        page.get_by_role("combobox", name="Tool choice", exact=True).select_option("none")
        page.get_by_role("button", name="Write this reply again").last.click()
        wait_for_end(page)
        expect(page.locator("article.model").last.get_by_role("alert")).to_be_hidden()
        expect(page.locator("article.model").last.locator(".text").last).not_to_be_empty()


def test_what_the_server_refuses_is_shown_where_the_reply_would_be(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The error names the tool, the path, and what to change."""
    page = visitor.open(scripted.url)
    page.get_by_role("button", name="A date, by a grammar").click()
    page.get_by_role("combobox", name="Written in", exact=True).select_option("lark")
    page.get_by_role("textbox", name="Grammar", exact=True).fill("start: (")
    say(page, "Go")
    alert = page.locator("article.model").last.get_by_role("alert")
    expect(alert).to_contain_text("tools[1].custom")
    page.get_by_role("button", name="Check with the server").click()
    expect(page.locator(".editor")).to_contain_text("tools[0].custom")
