"""Chat templates render as in transformers, within a budget of time and text."""

import contextlib
import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.checkpoint.capabilities import find_capabilities
from server.checkpoint.template import ChatTemplate
from server.errors import BadRequest, CannotStart

MESSAGES = [{"role": "user", "content": "a <b> & 'c' é 東"}, {"role": "assistant", "content": "x\ny"}]
SAME = (
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ messages | tojson(separators=(',', ':'), sort_keys=True, ensure_ascii=True) }}",
    "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n",
    "{%- for m in messages -%}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{%- endfor -%}",
    "{%- for m in messages -%}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{%- endfor -%}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro f(x, y='z') %}{{ x ~ y }}{% endmacro %}{{ f(1) }}{{ f(messages[0].content, y=2) }}",
    "{{ '**%s**-%d' % ('a', 3) }}{{ '{}|{:>4}|{:*^5}'.format('b', 7, 'c') }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ ', '.join(['a', 'b']) }}",
    "{{ messages[0].content | replace('a', 'bb') }}{{ messages[0].content.replace('a', 'cc', 1) }}",
    "{{ 'x' * 3 ~ 2 ** 5 ~ (7 % 4) ~ [1] * 2 ~ ([1] + [2]) }}",
    "{{ 'abc'.ljust(5) }}|{{ 'abc' | center(9) }}|{{ 'a\nb' | indent(2) }}|{{ 'abcdef' | truncate(4) }}",
    "{{ dict(a=1) | items | list }}{{ {'a': {'b': 1}}.a.b }}{{ undefined_name }}{{ messages[0].nothing is defined }}",
    "{{ messages[0].get('role', 'x') }}{{ messages | length }}{{ messages[::-1] | map(attribute='role') | list }}",
    "{{ 1.0 }}{{ true }}{{ [1, 'a', none] }}{{ {'a': True} }}",
    "{{ ('<b>' | safe) ~ '<i>' }}{{ '<b>' | e }}{{ 'a' | upper }}{{ ' x ' | trim }}{{ 3 | string + '4' }}",
    "{%- set x -%} a {%- endset -%}{{ x }}{% filter upper %}abc{% endfilter %}",
    "{{ bos_token }}{{ 'a' if messages else 'b' }}{{ messages[-1].content.split('\n')[-1].strip() }}",
)


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, "test", {"bos_token": "<s>"}).render({"messages": MESSAGES, **variables}).text


@pytest.mark.parametrize("source", SAME)
def test_text_equals_that_of_transformers(source: str) -> None:
    """A helper that behaves differently changes the prompt of every model that uses it."""
    texts: Any = render_jinja_template([MESSAGES], chat_template=source, bos_token="<s>")
    assert render(source) == texts[0][0]


def test_strftime_now_and_raise_exception() -> None:
    """Published templates use both."""
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    with pytest.raises(BadRequest, match="only users please") as fault:
        render("{{ raise_exception('only users please') }}")
    assert fault.value.param == "messages"


ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ ('http://a.b ' * 9999999) | urlize }}",
)
MORE_ENDLESS = (
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "{{ 9 ** 9 ** 999 }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ ('%9999999d' * 999) % ((1,) * 999) }}",
    "{{ (('b' ~ 'a' * 9999999) | list | sort | map('upper') | unique | list) * 9 }}",
)


@pytest.mark.parametrize("source", [*ENDLESS, *(pytest.param(one, marks=pytest.mark.long) for one in MORE_ENDLESS)])
def test_a_rendering_is_bounded_in_time_and_memory(source: str) -> None:
    """The template of a checkpoint from the hub is an untrusted program, and no list of costly filters is complete."""
    template = ChatTemplate(source, "test", {})
    begin_s = time.monotonic()
    with pytest.raises(BadRequest):
        template.render({"messages": MESSAGES}, seconds=0.3)
    assert time.monotonic() - begin_s < 5
    assert render("{{ messages[0].role }}") == "user"  # the next rendering has a process again


def test_a_template_that_cannot_end_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one rendering, not after one for each capability."""
    monkeypatch.setattr("server.checkpoint.template.MAX_SECONDS", 0.3)
    template = ChatTemplate(ENDLESS[0], "test", {})
    with pytest.raises(CannotStart, match="takes longer"):
        find_capabilities(template)


def test_methods_of_strings_work_in_loops_and_blocks() -> None:
    """jinja2 gives calls in them arguments of its own."""
    assert render("{% for m in messages %}{{ m.role.replace('user', 'me') }}{% endfor %}") == "meassistant"
    assert render("{% for m in messages[1:] %}{{ '-'.join([m.role, 'x'.replace('x', 'z')]) }}{% endfor %}") == (
        "assistant-z"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context.environment.concat.__globals__ }}",
        "{{ 'a'.written.__class__.__mro__ }}",
    ],
)
def test_a_template_reaches_neither_python_nor_the_messages(source: str) -> None:
    """What is refused raises or prints nothing."""
    before = [dict(message) for message in MESSAGES]
    with contextlib.suppress(BadRequest):
        assert render(source) in ("", "null")
    assert before == MESSAGES


@pytest.mark.parametrize("source", ["{{ x }}", "{{ x | string }}", "{{ '' ~ x }}", "{{ x | tojson }}"])
def test_null_is_printed_as_json_writes_it(source: str) -> None:
    """Calls of the model say `null`: `None` in the prompt is a word of Python that no parser of the format reads."""
    assert render("{% set x = none %}" + source) == "null"


def test_a_source_that_does_not_compile_is_refused() -> None:
    """At start, not at the first request."""
    with pytest.raises(CannotStart, match="test"):
        ChatTemplate("{% for %}", "test", {})


def test_an_error_in_a_template_is_a_bad_request_with_its_cause() -> None:
    """A 500 would hide what the client can change."""
    with pytest.raises(BadRequest, match="TypeError"):
        render("{{ messages + 1 }}")
    with pytest.raises(BadRequest, match="undefined"):
        render("{{ nothing.at.all }}")
