"""The context window to the token, on every template: what fits, what is refused, what may be dropped."""

import re
from typing import Any

import pytest

from server.checkpoint.capabilities import TemplateCapabilities
from server.errors import PromptTooLong
from server.prompt.normalize import normalize_messages
from server.prompt.window import droppable, max_prompt_tokens, reply_tokens, without
from tests.model_templates import BUILT_IN, TEMPLATES, ask, prompter, text_of
from tests.prompt.conversations import Inventor, as_sent
from tests.typed_messages import typed

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris, and in Rome?"},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]


def called(i: int, *ids: str) -> list[dict[str, Any]]:
    calls = [{"id": one, "type": "function", "function": {"name": "look", "arguments": "{}"}} for one in ids]
    results = [{"role": "tool", "tool_call_id": one, "content": f"result {i} {one}"} for one in ids]
    return [{"role": "assistant", "content": f"round {i}", "tool_calls": calls}, *results]


@pytest.mark.parametrize("name", TEMPLATES)
def test_c21_the_limit_holds_to_the_token(name: str) -> None:
    """An off-by-one at the limit either refuses what fits or lets the engine run over its positions."""
    tokens = prompter(name).prepare(ask(MESSAGES, tools=TOOLS)).prompt_tokens
    roomy = prompter(name, limit=tokens + 2).prepare(ask(MESSAGES, tools=TOOLS))
    assert roomy.generates[0].sampling.max_tokens == 2
    full = prompter(name, limit=tokens + 1).prepare(ask(MESSAGES, tools=TOOLS))
    assert full.generates[0].sampling.max_tokens == 1
    for limit in (tokens, tokens - 1):
        with pytest.raises(PromptTooLong):
            prompter(name, limit=limit).prepare(ask(MESSAGES, tools=TOOLS))


def test_case_41_the_refusal_is_openais_to_the_letter() -> None:
    """Agents shorten the conversation when they see this code, and show these numbers."""
    tokens = prompter("qwen3").prepare(ask(MESSAGES, tools=TOOLS)).prompt_tokens
    with pytest.raises(PromptTooLong) as refusal:
        prompter("qwen3", limit=64).prepare(ask(MESSAGES, tools=TOOLS))
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")
    found = re.fullmatch(
        r"This model's maximum context length is 64 tokens\. However, your messages resulted in (\d+) tokens "
        r"\((\d+) in the messages, (\d+) in the functions\)\. Please reduce the length of the messages or functions\.",
        str(refusal.value),
    )
    assert found
    total, messages, functions = map(int, found.groups())
    assert total == tokens == messages + functions
    without_tools = prompter("qwen3").prepare(ask(MESSAGES)).prompt_tokens
    assert abs(functions - (tokens - without_tools)) <= 4


def test_the_refusal_without_tools_speaks_of_messages_alone() -> None:
    """OpenAI's text names functions only where there are some."""
    with pytest.raises(PromptTooLong, match=r"resulted in \d+ tokens\. Please reduce the length of the messages\.$"):
        prompter("qwen3", limit=16).prepare(ask(MESSAGES))


def test_a_text_far_beyond_the_window_is_refused_without_encoding_it() -> None:
    """15 MiB of spaces took 70 s and 7 GB until they were found to be too long."""
    request = ask([{"role": "user", "content": " " * (4 << 20)}], tools=TOOLS)
    builder = prompter("qwen3", limit=64)
    for work in (builder.prepare, builder.count):
        with pytest.raises(PromptTooLong, match=r"resulted in at least \d{5} tokens\. Please reduce"):
            work(request)


def test_the_reply_is_cut_to_what_is_left() -> None:
    """A client that always asks for 4096 tokens must not be refused near the end of the window."""
    tokens = prompter("qwen3").prepare(ask(MESSAGES)).prompt_tokens
    limit = tokens + 100
    lengths = {None: 100, 50: 50, 100: 100, 4096: 100}
    for wanted, granted in lengths.items():
        prepared = prompter("qwen3", limit=limit).prepare(ask(MESSAGES, max_tokens=wanted))
        assert prepared.generates[0].sampling.max_tokens == granted
    assert reply_tokens(32768, 10, None, 2048) == 2048


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "qwen15"])
def test_case_42_dropping_takes_whole_turns_and_never_orphans_a_result(name: str) -> None:
    """A tool result without its call makes templates fail and models invent; a lost system message changes rules."""
    turns = [{"role": "user", "content": f"question {i}"} for i in range(6)]
    messages = [MESSAGES[0]]
    for i, question in enumerate(turns):
        messages += [question, *called(i, f"functions.look:{i}", f"functions.look:{i}b")]
        messages += [{"role": "assistant", "content": f"answer {i}"}] if i < 5 else []
    whole = prompter(name).prepare(ask(messages, tools=TOOLS))
    seen = set()
    for limit in range(whole.prompt_tokens, whole.prompt_tokens // 2, -30):
        request = ask(messages, tools=TOOLS, on_overflow="drop-oldest", max_tokens=8)
        prepared = prompter(name, limit=limit).prepare(request)
        text = text_of(name, prepared.generates[0].token_ids)
        assert prepared.prompt_tokens <= max_prompt_tokens(limit, 8, 2048)
        assert "Be brief." in text
        assert "look" in text
        assert "question 5" in text
        assert "result 5" in text
        kept = [i for i in range(6) if f"question {i}" in text]
        assert kept == list(range(kept[0], 6))
        assert [i for i in range(6) if f"result {i}" in text] == kept
        assert prepared.dropped_messages == kept[0] * 5
        seen.add(kept[0])
    assert len(seen) > 2


def test_dropping_drops_no_more_than_it_must() -> None:
    """One turn too many is lost context for nothing."""
    messages = [{"role": "user", "content": f"question {i} " + "word " * 50} for i in range(8)]
    turns = [one for message in messages for one in (message, {"role": "assistant", "content": "yes"})][:-1]
    for limit in range(120, 520, 57):
        prepared = prompter("qwen3", limit=limit).prepare(ask(turns, on_overflow="drop-oldest", max_tokens=4))
        assert prepared.dropped_messages % 2 == 0
        if prepared.dropped_messages:
            more = ask(turns[prepared.dropped_messages - 2 :], max_tokens=4)
            assert prompter("qwen3").prepare(more).prompt_tokens > limit - 4


def test_rounds_of_the_last_turn_go_when_no_turn_is_left() -> None:
    """An agent's whole run is one turn: without this, dropping would never help it."""
    messages = [MESSAGES[0], MESSAGES[1], *(one for i in range(20) for one in called(i, f"{i}a", f"{i}b"))]
    whole = prompter("qwen3").prepare(ask(messages, tools=TOOLS))
    prepared = prompter("qwen3", limit=whole.prompt_tokens // 2).prepare(
        ask(messages, tools=TOOLS, on_overflow="drop-oldest", max_tokens=8)
    )
    text = text_of("qwen3", prepared.generates[0].token_ids)
    assert prepared.dropped_messages > 0
    assert prepared.dropped_messages % 3 == 0
    assert "What is the weather in Paris" in text
    assert "result 19 19b" in text
    for i in range(20):
        assert (f"round {i}<" in text or f"round {i}\n" in text) == (f"result {i} " in text)


def test_what_cannot_be_dropped_is_refused() -> None:
    """The last question alone is too long: dropping everything else must not hide that."""
    messages = [*MESSAGES, {"role": "assistant", "content": "x"}, {"role": "user", "content": "long " * 500}]
    with pytest.raises(PromptTooLong):
        prompter("qwen3", limit=200).prepare(ask(messages, on_overflow="drop-oldest"))


def test_the_server_setting_counts_where_the_request_says_nothing() -> None:
    """`--on-overflow drop-oldest` would otherwise do nothing."""
    messages = [{"role": "user", "content": "old " * 90}, {"role": "user", "content": "new"}]
    assert prompter("qwen3", limit=80, on_overflow="drop-oldest").prepare(ask(messages)).dropped_messages == 1
    with pytest.raises(PromptTooLong):
        prompter("qwen3", limit=80, on_overflow="drop-oldest").prepare(ask(messages, on_overflow="refuse"))


def test_groups_are_ordered_oldest_first_and_leave_the_last_turn_for_last() -> None:
    messages = [MESSAGES[0], MESSAGES[1], *called(0, "a"), MESSAGES[1], *called(1, "b", "c"), *called(2, "d")]
    shaped = normalize_messages(typed(messages), TemplateCapabilities())
    assert droppable(shaped) == [[1, 2, 3], [5, 6, 7]]
    assert [one.role for one in without(shaped, droppable(shaped))] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_dry_run_sums_to_the_prompt(name: str) -> None:
    """A count that differs from the bill is worse than none."""
    inventor = Inventor(seed=7)
    for _ in range(20):
        messages, tools = inventor.conversation(name != "qwen15", name != "qwen15")
        request = ask(as_sent(messages), tools=tools)
        shares = prompter(name).count(request)
        assert sum(share.tokens for share in shares) == prompter(name).prepare(request).prompt_tokens
        assert len({share.part for share in shares}) == len(shares)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("qwen15", BUILT_IN)])
def test_the_dry_run_names_who_costs_what(name: str) -> None:
    """A tool of a hundred words must be seen to cost them, and not its neighbour."""
    tools = [
        {"type": "function", "function": {"name": f"t{i}", "description": "word " * n}} for i, n in enumerate((5, 90))
    ]
    messages = [{"role": "system", "content": "rule " * 40}, {"role": "user", "content": "ask " * 70}]
    shares = {share.part: share.tokens for share in prompter(name).count(ask(messages, tools=tools))}
    for part, words in {"tools[0]:t0": 5, "tools[1]:t1": 90, "system": 40, "messages[1]": 70}.items():
        assert words <= shares[part] <= words + 40, shares


def test_the_dry_run_counts_what_would_be_refused() -> None:
    """Who is told that a prompt is too long wants to know by how much, and of what."""
    request = ask(MESSAGES, tools=TOOLS)
    assert prompter("qwen3", limit=16).count(request) == prompter("qwen3").count(request)
