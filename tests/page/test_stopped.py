"""Traces of replies that do not end by themselves, as far as they came."""

import signal

import pytest
from playwright.sync_api import Page, expect

from tests.contract.scripted import ScriptedModel, scripted_model
from tests.live import Live, live_server
from tests.page.conftest import Visitor, say, wait_for_end

LETTERS = (
    '{"type": "object", "properties": {"city": {"type": "string", "pattern": "^[a-z]{3000}$"}}, "required": ["city"]}'
)
STOP_IN_ARGUMENTS = """() => new MutationObserver((_, observer) => {
  const written = [...document.querySelectorAll(".arguments")].at(-1)?.textContent ?? "";
  if (written.length < 100) return;
  observer.disconnect();
  document.getElementById("stop").click();
}).observe(document.getElementById("thread"), { childList: true, subtree: true, characterData: true })"""
PROMPT, REPLY = "Tokens of the prompt", "Tokens of the reply"


def ask_for_letters(page: Page) -> None:
    """Have `get_weather` called with three thousand letters, which a page can stop in at any speed."""
    page.locator("li.tool summary", has_text="get_weather").click()
    page.get_by_role("textbox", name="Parameters (JSON Schema)").fill(LETTERS)
    page.get_by_role("combobox", name="Tool choice", exact=True).select_option("get_weather")


def marked(page: Page, label: str, kind: str) -> int:
    """How many tokens of a list have a mark."""
    return page.get_by_role("listbox", name=label).locator(f".token.{kind}").count()


def told(page: Page, label: str) -> str:
    """The text of a list of tokens."""
    return page.get_by_role("listbox", name=label).text_content() or ""


@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
def test_a_reply_that_is_stopped_in_its_arguments_shows_how_they_came_about(
    visitor: Visitor, live: Live, surface: str
) -> None:
    """The server sent the trace with the last chunk, so a reply that was stopped had none."""
    page = visitor.open(live.url)
    page.get_by_role("combobox", name="Surface", exact=True).select_option(surface)
    ask_for_letters(page)
    page.evaluate(STOP_IN_ARGUMENTS)
    say(page, f"Write letters, by {surface}")
    reply = page.locator("article.model")
    expect(reply.locator(".figures")).to_contain_text("stopped")
    page.evaluate(STOP_IN_ARGUMENTS)
    reply.get_by_role("button", name="Retry").click()
    expect(reply.locator(".figures")).to_contain_text("stopped")
    wait_for_end(page)
    expect(reply.get_by_role("region", name="Call of get_weather")).to_contain_text("cut off")
    written = reply.locator(".arguments").text_content() or ""
    assert 100 <= len(written) < 3000 and written in told(page, REPLY)
    assert "<|im_start|>" in told(page, PROMPT) and marked(page, PROMPT, "control") > 0
    assert marked(page, PROMPT, "cached") > 0, "the prompt of the first try is in the cache"
    assert marked(page, REPLY, "forced") > 0 and marked(page, REPLY, "accepted") > 0
    inspector = page.locator("#inspector")
    expect(inspector).to_contain_text("drafted accepted")
    expect(inspector).to_contain_text("Grammar:")
    number = page.get_by_role("listbox", name=REPLY).locator(".token").count()
    expect(inspector.get_by_role("heading", name="Reply:")).to_contain_text(f"{number} tokens")
    expect(reply.locator(".figures")).to_contain_text(f"{number} tokens")


def test_a_reply_that_is_stopped_before_its_first_token_shows_its_prompt(visitor: Visitor) -> None:
    with scripted_model(pause_s=10) as silent:
        silent.plays("Never.")
        page = visitor.open(silent.url)
        say(page, "Tell me")
        inspector = page.locator("#inspector")
        expect(inspector).to_contain_text("Prompt:")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("article.model .figures")).to_have_text("stopped · 0 tokens")
        expect(inspector).to_contain_text("Reply: 0 tokens in 0 steps")
        assert "Tell me" in told(page, PROMPT)


def test_a_reply_that_is_stopped_in_its_thoughts_shows_their_tokens(visitor: Visitor, slow: ScriptedModel) -> None:
    """And the conversation goes on."""
    slow.plays("<think>\nFirst I think of one thing, then of another, and of a third one.\n</think>\n\nSo.", "Yes.")
    page = visitor.open(slow.url)
    say(page, "Think")
    reply = page.locator("article.model").first
    reply.get_by_text("Thoughts").click()
    expect(reply).to_contain_text("First I think")
    page.keyboard.press("Escape")
    expect(reply.locator(".figures")).to_contain_text("stopped")
    assert "First I think" in told(page, REPLY) and "third" not in told(page, REPLY)
    say(page, "And?")
    expect(page.locator("article.model").last).to_contain_text("Yes.")


def test_a_reply_whose_connection_breaks_is_traced_as_far_as_it_came(visitor: Visitor) -> None:
    with live_server() as server:
        page = visitor.open(server.url)
        ask_for_letters(page)
        say(page, "Write")
        reply = page.locator("article.model").last
        expect(reply.locator(".arguments")).not_to_be_empty()
        server.process.send_signal(signal.SIGKILL)
        expect(reply.get_by_role("alert")).to_contain_text("The connection broke")
        assert (reply.locator(".arguments").text_content() or "") in told(page, REPLY)
        assert marked(page, REPLY, "forced") > 0
        server.process.wait()


def test_a_reply_that_the_page_is_left_in_is_kept_as_far_as_it_came(visitor: Visitor, slow: ScriptedModel) -> None:
    """What had been written was kept when a reply ended only: it came back as an empty one."""
    slow.plays("Once upon a time there was a page that was left in the middle of a reply.", "Again.")
    page = visitor.open(slow.url)
    say(page, "Tell me")
    expect(page.locator("article.model")).to_contain_text("Once upon")
    page.close(run_before_unload=True)
    page = visitor.open(slow.url)
    reply = page.locator("article.model")
    expect(reply).to_contain_text("Once upon")
    expect(reply).to_contain_text("interrupted")
    reply.get_by_role("button", name="What happened").click()
    expect(page.locator("#inspector")).to_contain_text("until the page is left")
    reply.get_by_role("button", name="Retry").click()
    expect(reply).to_contain_text("Again.")


def test_tokens_are_shown_as_they_are_written(visitor: Visitor, slow: ScriptedModel) -> None:
    """The one that is pointed at stays so; and who looks at another reply meanwhile goes on looking at it."""
    slow.plays("One.", "Two three four five six seven eight nine ten.", "Eleven twelve thirteen fourteen fifteen.")
    page = visitor.open(slow.url)
    say(page, "One")
    wait_for_end(page)
    say(page, "Two")
    inspector, tokens = page.locator("#inspector"), page.get_by_role("listbox", name=REPLY)
    expect(inspector).to_contain_text("being written")
    expect(tokens).to_contain_text("Two three")
    tokens.locator(".token").first.hover()
    assert "nine" not in told(page, REPLY)
    expect(tokens).to_contain_text("nine ten.")
    expect(tokens.locator("[aria-selected=true]")).to_have_count(1)
    wait_for_end(page)
    expect(tokens.locator("[aria-selected=true]")).to_have_count(1)
    expect(inspector).not_to_contain_text("being written")
    say(page, "Three")
    expect(tokens).to_contain_text("Eleven")
    page.locator("article.model").first.get_by_role("button", name="What happened").click()
    expect(tokens).to_contain_text("One.")
    wait_for_end(page)
    expect(tokens).to_contain_text("One.")
