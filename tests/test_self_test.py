"""The self-test passes if template, tokenizer and parser match, and names the fault if they do not."""

from dataclasses import replace

import pytest

from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.encode import EncodedPiece, Encoder
from server.checkpoint.template import ChatTemplate, RenderedText
from server.dialects.registry import detect, find
from server.self_test import self_test
from tests.model_templates import TEMPLATES, native

WITH_TOOLS = [name for name in TEMPLATES if name != "qwen15"]


# The others are those of servers that the fast tests start, which do the same.
ALONE = ("qwen25", "qwen3_thinking", "qwen3_coder")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALONE else pytest.mark.long) for name in WITH_TOOLS]
)
def test_template_and_parser_of_one_family_agree(name: str) -> None:
    """Otherwise the server would refuse to start with a good checkpoint."""
    assert [str(fault) for fault in self_test(native(name))] == []


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_dialect_is_detected_from_the_template(name: str) -> None:
    """A wrong parser option is the most frequent question of users of other servers."""
    dialect = detect(native(name).template.source)
    assert dialect
    assert dialect.name == TEMPLATES[name][1]


@pytest.mark.parametrize("name, wrong", [("qwen3", "react"), ("qwen3", "qwen3_coder"), ("qwen3_coder", "kimi_k2")])
def test_the_wrong_parser_is_named(name: str, wrong: str) -> None:
    """A parser that finds no call returns every call as text, without an error."""
    faults = self_test(replace(native(name), dialect=find(wrong)))
    assert any(fault.case == "one call" and f"read as {wrong}" in fault.text for fault in faults)


@pytest.mark.parametrize(
    "old, new, case",
    [
        ("{{- call.arguments | tojson }}", "{{- '{}' }}", "one call"),
        ("{{- call.arguments | tojson }}", "{{- call.arguments | tojson(ensure_ascii=True) | upper }}", "unicode"),
        ("{{- tool | tojson }}", "{{- 'a tool' }}", "tools"),
        ("{%- for call in message.tool_calls %}", "{%- for call in message.tool_calls[:1] %}", "calls in parallel"),
        ("{%- if message.tool_calls %}", "{%- if message.tool_calls %}{{ raise_exception('no') }}", "template"),
    ],
)
def test_a_broken_template_is_named(old: str, new: str, case: str) -> None:
    """A quantised or fine-tuned copy often comes with an edited template."""
    source = native("qwen3").template.source
    assert old in source
    broken = ChatTemplate(source.replace(old, new), "broken", {})
    assert case in {fault.case for fault in self_test(replace(native("qwen3"), template=broken))}


def edited(name: str, *changes: tuple[str, str]) -> Checkpoint:
    """The checkpoint with these changes to its template."""
    source = native(name).template.source
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return replace(native(name), template=ChatTemplate(source, "edited", {}))


OPENS_THINKING = {  # the generation prompt opens a think block that earlier replies do not have
    "as QwQ": (
        "qwen25",
        [('"<|im_start|>assistant\\n" -}}{%- endif', '"<|im_start|>assistant\\n<think>\\n" -}}{%- endif')],
    ),
    "as QwQ, in one line": (
        "qwen25",
        [('"<|im_start|>assistant\\n" -}}{%- endif', '"<|im_start|>assistant\\n<think>" -}}{%- endif')],
    ),
    "as GLM-4.7": (
        "glm45",
        [
            ("'\\n<think></think>' }}", "'</think>' }}"),
            ("'\\n<think></think>' if", "'</think>' if"),
            ("'\\n<", "'<"),
            ("'\\n' + content.strip()", "content.strip()"),
            ("enable_thinking) else '' -}}\n{%- endif -%}", "enable_thinking) else '<think>' -}}\n{%- endif -%}"),
        ],
    ),
    "as GLM-5": (
        "glm45",
        [("enable_thinking) else '' -}}\n{%- endif -%}", "enable_thinking) else '\\n<think>' -}}\n{%- endif -%}")],
    ),
}


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.long if "GLM" in form else ()) for form in OPENS_THINKING]
)
def test_a_template_may_open_a_think_block_that_it_leaves_out_of_earlier_replies(form: str) -> None:
    """It was refused at start, for every case."""
    name, changes = OPENS_THINKING[form]
    checkpoint = edited(name, *changes)
    assert self_test(checkpoint) == []
    asked = checkpoint.template.render({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True})
    assert asked.text.rstrip().endswith("<think>")
    wrong = replace(checkpoint, dialect=find("react"))
    assert "one call" in {fault.case for fault in self_test(wrong)}


def test_a_template_that_answers_elsewhere_is_named() -> None:
    moved = edited("qwen25", ('"<|im_start|>assistant\\n" -}}{%- endif', '"<|im_start|>bot\\n<think>\\n" -}}{%- endif'))
    assert {"another place" in fault.text for fault in self_test(moved)} == {True}


@pytest.fixture
def trusting_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that takes every text for the template's own."""
    pieces = Encoder.pieces

    def trusting(self: Encoder, rendered: RenderedText) -> list[EncodedPiece]:
        return pieces(self, RenderedText(rendered.text, ((0, len(rendered.text)),)))

    monkeypatch.setattr(Encoder, "pieces", trusting)


def leak_of(checkpoint: Checkpoint) -> str:
    """The self-test's sentence on control tokens."""
    return {fault.case: fault.text for fault in self_test(checkpoint)}["control tokens"]


UNDONE = {
    "split": "(key.split('-')[0] ~ (key.split('-')[1:] | join))",
    "partition": "(key.partition('::')[0] ~ key.partition('::')[2])",
    "strip": "key.strip('._')",
    "trimmed on one side": "key.lstrip('#').rstrip('#')",
}


@pytest.mark.parametrize("operation", UNDONE)
def test_the_operations_of_the_template_on_text_are_undone(operation: str, trusting_encoder: None) -> None:
    """Replacements alone were: what a template splits, trims or joins was never tried."""
    expression = UNDONE[operation]
    unused = edited("qwen3_coder", ("'\\n<' ~ key ~ '>'", f"'\\n<' ~ key ~ (('', {expression})[0]) ~ '>'"))
    served = edited("qwen3_coder", ("'\\n<' ~ key ~ '>'", f"'\\n<' ~ {expression} ~ '>'"))
    counts = [int(leak_of(checkpoint).split()[0]) for checkpoint in (unused, served)]
    assert counts[0] < counts[1]


def test_a_leak_of_control_tokens_is_named(trusting_encoder: None) -> None:
    """The test runs on the template that is served, not only on those known here."""
    stripping = edited("qwen3_coder", ("'\\n<' ~ key ~ '>'", "'\\n<' ~ (key | replace('$', '') | lower) ~ '>'"))
    bracketed = edited("qwen3_coder", ("'\\n<' ~ key ~ '>'", "'\\n[' ~ key ~ ']'"))
    leaks = [leak_of(checkpoint) for checkpoint in (bracketed, native("qwen3_coder"), stripping)]
    assert "'<|endoftext|>' is one" in leaks[0]
    counts = [int(leak.split()[0]) for leak in leaks]
    assert counts[0] < counts[1] < counts[2]  # tokens; keys between "<" and ">"; keys in capitals or with a "$"


def test_a_template_that_calculates_control_tokens_is_named() -> None:
    """Its own markup would reach the model as plain text, and every reply would suffer in silence."""
    computed = edited("qwen3", ("{{- '<|im_start|>' + message.role", "{{- '{}im_start|>'.format('<|') + message.role"))
    assert "operations on text" in {fault.case: fault.text for fault in self_test(computed)}["control tokens"]
