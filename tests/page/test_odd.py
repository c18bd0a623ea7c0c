"""Odd turns of a conversation: clicks at the wrong time, cut replies, two tabs, a store that is full or refused."""

import json
from typing import Any

from playwright.sync_api import FilePayload, Page, Route, expect

from tests.contract.scripted import ScriptedModel, call_of
from tests.page.conftest import Visitor, add_example, say, wait_for_end

SLEEP = "() => new Promise((done) => setTimeout(() => done('late'), 3000))"
ROUNDS = 20  # without a word of the user
RECORDED = 50  # replies whose traces and frames are kept


def set_function(page: Page, source: str) -> None:
    page.locator("li.tool summary", has_text="get_weather").click()
    page.get_by_label("Function of the arguments").fill(source)


def streamed(chunks: list[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def call_chunks(arguments: str, finish: str) -> str:
    """One call of `get_weather`, of which nothing is noted."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return streamed(
        [
            {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        ]
    )


def play_once(page: Page, body: str) -> None:
    """Have the next request answered by this stream."""

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer, times=1)


def test_arguments_are_shown_with_their_own_digits(visitor: Visitor, scripted: ScriptedModel) -> None:
    """A number that JavaScript cannot hold was shown as another one, `1.0` as `1`, and of equal names one alone."""
    scripted.plays("Done.")
    page = visitor.open(scripted.url)
    set_function(page, "() => 'seen'")
    play_once(page, call_chunks('{"9": 12345678901234567890, "1": [1.0, {}, []], "1": "a\\", {"}', "tool_calls"))
    say(page, "Go")
    expect(page.locator("article.model").last).to_contain_text("Done.")
    shown = page.locator(".call .arguments").inner_text()
    assert shown == '{\n  "9": 12345678901234567890,\n  "1": [\n    1.0,\n    {},\n    []\n  ],\n  "1": "a\\", {"\n}'


def test_a_whole_call_of_a_cut_reply_is_answered_by_hand(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Its form took the result, and nothing happened."""
    scripted.plays("It goes on.")
    page = visitor.open(scripted.url)
    play_once(page, call_chunks('{"city": "Oslo"}', "length"))
    say(page, "Go")
    card = page.get_by_role("region", name="Call of get_weather")
    expect(card).to_contain_text("waits for its result")
    card.get_by_role("textbox").fill("snow")
    card.get_by_role("button", name="Return this result").click()
    expect(page.locator("article.model").last).to_contain_text("It goes on.")
    assert "snow" in scripted.prompts[0]


def test_a_call_that_is_cut_in_its_arguments_waits_for_nothing(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Without the server's flags too."""
    scripted.plays("Again.")
    page = visitor.open(scripted.url)
    play_once(page, call_chunks('{"city": "Os', "length"))
    say(page, "Go")
    card = page.get_by_role("region", name="Call of get_weather")
    expect(card).to_contain_text("cut off")
    expect(card.get_by_role("textbox")).to_have_count(0)
    say(page, "Go on")
    expect(page.locator("article.model").last).to_contain_text("Again.")


def test_stop_while_a_function_runs(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The page stayed busy until the function ended, and then added a reply that was stopped before it began."""
    scripted.plays(call_of("get_weather", city="Oslo"), "Yes.")
    page = visitor.open(scripted.url)
    set_function(page, SLEEP)
    say(page, "Go")
    card = page.get_by_role("region", name="Call of get_weather")
    expect(card).to_contain_text("its function runs")
    page.get_by_role("button", name="Stop").click()
    expect(card).to_contain_text("waits for its result", timeout=2000)
    card.get_by_role("textbox").fill("by hand")
    card.get_by_role("button", name="Return this result").click()
    expect(page.locator("article.model").last).to_contain_text("Yes.")
    page.wait_for_timeout(3000)  # until the function would have ended
    expect(page.locator("article")).to_have_count(3)
    expect(card).to_contain_text("by hand")


def test_a_new_conversation_while_the_old_one_is_written(visitor: Visitor, slow: ScriptedModel) -> None:
    """The old reply came back: into Inspect at once, and into the conversation after its function had run."""
    slow.plays("word " * 200)
    page = visitor.open(slow.url)
    set_function(page, SLEEP)
    say(page, "Go")
    expect(page.locator("article.model")).to_contain_text("word")
    page.get_by_role("button", name="New", exact=True).click()
    wait_for_end(page)
    expect(page.locator("#inspector")).to_contain_text("A reply shows here")
    slow.plays(call_of("get_weather", city="Oslo"))
    say(page, "Go")
    expect(page.get_by_role("region", name="Call of get_weather")).to_contain_text("its function runs")
    page.get_by_role("button", name="New", exact=True).click()
    page.wait_for_timeout(3500)
    expect(page.locator("article")).to_have_count(0)


def test_an_edit_while_a_reply_is_written(visitor: Visitor, slow: ScriptedModel) -> None:
    """The edited text was thrown away."""
    slow.plays("word " * 200, "Better.", "Best.")
    page = visitor.open(slow.url)
    say(page, "First")
    expect(page.locator("article.model")).to_contain_text("word")
    page.get_by_role("button", name="Edit this message").click()
    field = page.get_by_role("textbox", name="Your message")
    field.fill("  ")
    page.get_by_role("button", name="Send from here").click()
    field.fill("Second")
    page.get_by_role("button", name="Send from here").click()
    expect(page.locator("article.user")).to_have_text("YouEditSecond")
    expect(page.locator("article.model")).to_contain_text("Better.")
    wait_for_end(page)
    page.get_by_role("button", name="Write this reply again").click()
    expect(page.locator("article.model")).to_contain_text("Best.")
    for prompt in slow.prompts[1:]:
        assert "Second" in prompt and "First" not in prompt and "word" not in prompt


def test_a_loop_without_end_is_ended_and_says_so(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Only a screen reader was told."""
    scripted.plays(*[call_of("get_weather", city="Oslo")] * ROUNDS, "At last.")
    page = visitor.open(scripted.url)
    say(page, "Go")
    expect(page.get_by_role("alert").first).to_contain_text(f"{ROUNDS} replies called tools")
    expect(page.locator("article.model")).to_have_count(ROUNDS)
    say(page, "Go on")
    expect(page.locator("article.model").last).to_contain_text("At last.")
    expect(page.locator("#notice")).to_be_hidden()


def test_two_tabs_show_the_same_conversation(visitor: Visitor, scripted: ScriptedModel) -> None:
    """The tab that wrote last had overwritten the other's messages."""
    scripted.plays("One.", "Two.", "Three.")
    first = visitor.open(scripted.url)
    second = visitor.open(scripted.url)
    say(first, "In the first")
    wait_for_end(first)
    expect(second.locator("article.model")).to_contain_text("One.")
    say(second, "In the second")
    expect(second.locator("article.model").last).to_contain_text("Two.")
    expect(first.locator("article.model").last).to_contain_text("Two.")
    first.get_by_role("button", name="What happened").first.click()
    expect(first.locator("#inspector")).to_contain_text("Prompt:")  # of its own reply: it is not replaced
    second.get_by_role("textbox", name="Instructions for the model").fill("Be brief.")
    say(second, "Again")
    expect(first.locator("article.model").last).to_contain_text("Three.")
    expect(first.get_by_role("textbox", name="Instructions for the model")).to_have_value("Be brief.")
    second.evaluate("localStorage.setItem('toolwire.conversation', '{')")
    expect(first.locator("#notice")).to_contain_text("cannot be read")
    expect(first.locator("article.model").last).to_contain_text("Three.")


def test_a_tab_that_writes_says_that_another_has_changed_the_conversation(
    visitor: Visitor, slow: ScriptedModel
) -> None:
    slow.plays("word " * 100)
    first = visitor.open(slow.url)
    second = visitor.open(slow.url)
    say(first, "Go")
    expect(first.locator("article.model")).to_contain_text("word")
    second.get_by_role("button", name="New", exact=True).click()
    expect(first.locator("#notice")).to_contain_text("Another tab")
    first.get_by_role("button", name="Stop").click()
    wait_for_end(first)


def test_a_full_store_is_reported_each_time_it_fills(visitor: Visitor, scripted: ScriptedModel) -> None:
    scripted.plays("One.", "Two.")
    page = visitor.open(scripted.url)
    fill = """() => {
      for (let size = 1 << 22; size; size >>= 1) {
        try {
          for (;;) localStorage.setItem(`other-${localStorage.length}`, "x".repeat(size));
        } catch {}
      }
    }"""
    for text in ("One.", "Two."):
        page.evaluate(fill)
        say(page, "Say much more than the room that is left: " + "y" * 10_000)
        expect(page.locator("#notice")).to_contain_text("keeps no more")
        expect(page.locator("article.model").last).to_contain_text(text)
        wait_for_end(page)
        page.evaluate(
            "for (const key of Object.keys(localStorage)) if (key.startsWith('other')) localStorage.removeItem(key)"
        )
        page.get_by_role("button", name="New", exact=True).click()
        expect(page.locator("#notice")).to_be_hidden()


def test_a_browser_that_refuses_its_storage(visitor: Visitor, scripted: ScriptedModel) -> None:
    """With cookies blocked its storage throws when it is looked up: the page showed a server that does not answer."""
    scripted.plays("Here.")
    visitor.context.add_init_script("""for (const name of ["localStorage", "sessionStorage"]) {
      Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
    }""")
    page = visitor.open(scripted.url)
    expect(page.locator("#state")).to_have_text("ready")
    say(page, "There?")
    expect(page.locator("article.model")).to_contain_text("Here.")


def test_a_conversation_of_somebody_else(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Values that the page does not know stopped it when they were used; instructions were sent and not shown."""
    scripted.plays("Fine.")
    call = {"id": "a", "name": "f", "done": True, "arguments": "{}", "result": {"text": "no", "failed": True}}
    turns = [
        {"role": "user", "text": "Hi"},
        {"role": "assistant", "finish": "stop", "notes": {"notes": 1, "calls": [{"flags": "x"}, 2], "uncalled": [{}]}},
        {"role": "assistant", "finish": "tool_calls", "calls": [call, None, 3], "usage": [1]},
    ]
    options = {"surface": "toString", "thinking": "much", "temperature": "hot", "loop": 1}
    saved = {"version": 1, "system": "Rhyme.", "turns": turns, "tools": [], "options": options}
    page = visitor.open(scripted.url)
    page.get_by_role("button", name="Export").click()
    for number, text in enumerate(("[]", '{"version": 1, "turns": [null], "tools": []}', json.dumps(saved))):
        file = FilePayload(name="a.json", mimeType="application/json", buffer=text.encode())
        page.locator("#export-open").set_input_files(file)
        if number < 2:
            expect(page.locator("#export-problem")).to_contain_text("no conversation of this page")
    expect(page.locator("article")).to_have_count(3)
    expect(page.get_by_role("textbox", name="Instructions for the model")).to_have_value("Rhyme.")
    for reply in page.get_by_role("button", name="What happened").all():
        reply.click()
    expect(page.locator(".result.failed")).to_have_text("no")
    say(page, "Well?")
    expect(page.locator("article.model").last).to_contain_text("Fine.")


def test_only_the_last_replies_keep_what_happened(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Traces and frames of every reply, up to megabytes each, were kept as long as the page was open."""
    scripted.plays(*["Yes."] * (RECORDED + 2))
    page = visitor.open(scripted.url)
    counted = page.evaluate(
        """async (count) => {
          const { Conversation } = await import(new URL("web/conversation.js", document.baseURI));
          const { Loop } = await import(new URL("web/loop.js", document.baseURI));
          const conversation = new Conversation();
          const loop = new Loop(conversation);
          await loop.say("Hi");
          for (let number = 1; number < count; number += 1) await loop.go();
          return conversation.turns.slice(1).map((turn) => turn.trace !== null && turn.raw !== null);
        }""",
        RECORDED + 2,
    )
    assert counted == [False, False] + [True] * RECORDED


def test_the_focus_goes_on_at_the_message(visitor: Visitor, scripted: ScriptedModel) -> None:
    """By keyboard alone, from a first visit to a call answered by hand; the focus was lost wherever a button went."""
    arguments = {"to": "ada@example.com", "subject": "Lunch", "body": "Noon"}
    scripted.plays(call_of("send_email", **arguments), "It is sent.", "It is sent again.")
    page = visitor.open(scripted.url)
    tab_to(page, "E-mail, answered by hand")
    page.keyboard.press("Enter")
    message = page.get_by_role("textbox", name="Message", exact=True)
    expect(message).to_be_focused()
    tab_to(page, "Send")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Call of send_email")).to_contain_text("waits for its result")
    expect(message).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Result of send_email":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("done")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("article.model").last).to_contain_text("It is sent.")
    expect(message).to_be_focused()
    wait_for_end(page)
    page.get_by_role("button", name="Write this reply again").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article.model").last).to_contain_text("again")
    expect(message).to_be_focused()
    assert "done" in scripted.prompts[1]


def tab_to(page: Page, text: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == text:
            return
    raise AssertionError(f"{text} is reached by no Tab")


def test_two_calls_on_a_phone_of_320_pixels(visitor: Visitor, scripted: ScriptedModel) -> None:
    """Long names, the editor of a tool, cards, notes and dialogs: nothing makes the page scroll sideways."""
    name = "a_" + "very_" * 12 + "1"
    scripted.plays(call_of(name, **{"k" * 90: "v" * 300}))
    page = visitor.open(scripted.url)
    page.set_viewport_size({"width": 320, "height": 640})
    show = page.get_by_role("navigation").get_by_role("button", name="Tools", exact=True)
    show.click()
    add_example(page, "A date, by a grammar")
    definition = {"name": name, "description": "d" * 200, "parameters": {"type": "object", "properties": {}}}
    page.get_by_role("button", name="Paste tools").click()
    page.locator("#import-text").fill(json.dumps(definition))
    assert_fits(page)
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("textbox", name="Name", exact=True).last.fill("🌤️" * 60)
    page.get_by_role("textbox", name="Name", exact=True).last.fill(name)
    page.get_by_role("combobox", name="Surface", exact=True).select_option("messages")
    expect(page.locator("#options .chip")).to_contain_text("day_of_week")
    assert_fits(page)
    page.get_by_role("navigation").get_by_role("button", name="Chat", exact=True).click()
    say(page, "Go")
    expect(page.locator(".call")).to_contain_text("waits for its result")
    wait_for_end(page)
    assert_fits(page)
    page.get_by_role("button", name="What happened").click()
    for tab in ("What happened", "Request", "Frames"):
        page.get_by_role("tab", name=tab).click()
        assert_fits(page)
    page.get_by_role("button", name="Export").click()
    assert_fits(page)


def assert_fits(page: Page) -> None:
    wide = page.evaluate("""[...document.querySelectorAll("html, body, main > section, dialog[open]")]
      .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1)
      .map((node) => `${node.tagName} ${node.id} ${node.scrollWidth} ${node.clientWidth}`)""")
    assert wide == []
