"""Grammar rules of tagged arguments: strings as raw text up to their closing tag, other values as JSON."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import regex_to_lark

from server.dialects.base import ConstraintSpec, Tool
from server.dialects.grammar.json_grammar import json_value, quoted
from server.dialects.grammar.lark import callable_tools, check_length, marker, one_of_calls, pattern_of, raw_piece
from server.dialects.parsing.tagged import INPUT, declared_names
from server.dialects.schema.compiled import supported_arguments
from server.dialects.schema.normalize import PLAIN_WORDS, with_plain_parts
from server.dialects.schema.patterns import full_match
from server.dialects.schema.references import DEFINITIONS, definitions_of, resolved, with_reached_definitions
from server.dialects.schema.satisfiable import satisfiable
from server.dialects.schema.variants import variants
from server.errors import BadSchema

MAX_EXTRA_MEMBERS = 32  # members of a map
MAX_LITERALS = 64  # values of an enum
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])"
OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
LABEL = "[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "duration": "P([0-9]{1,9}W|[0-9]{1,9}D(T[0-9]{1,9}[HMS])?|T[0-9]{1,9}[HMS])",
    "email": f"[A-Za-z0-9._%+-]{{1,64}}@{LABEL}(\\.{LABEL}){{1,8}}",
    "hostname": f"{LABEL}(\\.{LABEL}){{0,8}}",
    "ipv4": f"{OCTET}(\\.{OCTET}){{3}}",
    "ipv6": "([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|::1|::",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": "[A-Za-z][-A-Za-z0-9+.]{0,31}:[-A-Za-z0-9._~:\\/?#\\[\\]@!$&'()*+,;=%]{1,2000}",
}


Beside = Literal["nothing", "a length", "an expression"]  # the other rules of a string, which share its lexer


@dataclass(frozen=True, slots=True)
class TagForm:
    """Markup of one argument: `head(name)`, the value, `tail`.

    `closing` is the tag that ends a raw value, and `ended` returns the pattern of the texts that are none, as something
    in them may end a value; its arguments are the names that are declared and what else the text must match. `tags` are
    those of the format's tags that a vocabulary may have as tokens.
    """

    head: Callable[[str], str]
    tail: str
    closing: str
    ended: Callable[[Collection[str], Beside], str]
    tags: tuple[str, ...] = ()


def _literal(spec: ConstraintSpec, form: TagForm, text: str) -> str:
    """Return an expression for this text, its tags as tokens where the vocabulary has them."""
    known = [tag for tag in form.tags if tag in spec.marker_ids]
    parts = re.split("(" + "|".join(map(re.escape, known)) + ")", text) if known else [text]
    return " ".join(marker(spec, part) for part in parts if part)


def tagged_calls(spec: ConstraintSpec, form: TagForm, around: Callable[[Tool], tuple[str, str]]) -> Iterator[str]:
    """Yield the rule `call`, one call in this form, and its parts; `around` gives the text around arguments."""
    tools = callable_tools(spec)
    yield one_of_calls(tools)
    names = {name for tool in tools for name in declared_names(tool)}
    ended = form.ended(names, "nothing")
    yield f"RAW: /(?s:.*)/ & ~/{ended}/"
    yield f"BOUNDED: /(?s:.*)/ & ~/{form.ended(names, 'a length')}/"
    yield f"MATCHING: /(?s:.*)/ & ~/{form.ended(names, 'an expression')}/"
    yield from _raw_rules(spec, form, "raw_value", "RAW")
    for i, tool in enumerate(tools):
        before, after = around(tool)
        yield f"call_{i}: {before} arguments_{i} {after}"
        if tool.custom:
            yield f"arguments_{i}: {_literal(spec, form, form.head(INPUT))} input_{i}"
            yield from _input_rules(f"input_{i}", spec, tool, form)
        else:
            yield from _tagged_rules(f"arguments_{i}", spec, tool, form, ended)


def _raw_rules(spec: ConstraintSpec, form: TagForm, rule: str, terminal: str) -> Iterator[str]:
    """Yield rules by which `rule` is raw text of this terminal, then the tail."""
    if form.closing in spec.marker_ids:  # a token ends the text, which cannot contain it
        yield f"{rule}: {terminal} {_literal(spec, form, form.tail)}"
        return
    yield f"{rule.upper()}_WHOLE: {terminal} /{pattern_of(form.tail)}/"
    yield f"{rule}[lazy]: {rule.upper()}_WHOLE"


def _tagged_rules(rule: str, spec: ConstraintSpec, tool: Tool, form: TagForm, ended: str) -> Iterator[str]:
    """Yield rules by which `rule` is the arguments of one call; no value matches the pattern `ended`."""
    held = variants(supported_arguments(spec, tool))
    plain = [one for variant in held if (one := satisfiable(variant).schema) is not False] or [
        satisfiable(variant, forgiving=True).schema or {"properties": {}} for variant in held
    ]
    yield f"{rule}: " + " | ".join(f"{rule}_v{i}" for i in range(len(plain)))
    values = _TaggedValues(rule, spec, tool, form, ended)
    for i, schema in enumerate(plain):
        yield f"{rule}_v{i}: {values.object(schema)}"
    yield from values.lines


class _TaggedValues:
    """Rules for the tagged values of one tool's arguments; their names begin with `prefix`."""

    def __init__(self, prefix: str, spec: ConstraintSpec, tool: Tool, form: TagForm, ended: str) -> None:
        self._prefix = prefix
        self._spec = spec
        self._tool = tool
        self._form = form
        self._ended = ended
        self._count = 0
        self._num_chars = 0  # of values, while they are built: definitions may come again with each
        self.lines: list[str] = []

    def object(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for all arguments, in the order of the schema."""
        required, extra = set(schema.get("required", ())), schema.get("additionalProperties", True)
        members = []
        for name, inner in schema["properties"].items():
            if inner is False:
                continue
            rule = self._rule(
                f"{self._literal(self._form.head(name))} ({self.value(_with_definitions(inner, schema))})"
            )
            members.append(rule if name in required else f"{rule}?")
        if extra is False or members:
            return " ".join(members) or '""'
        return self._map(_with_definitions(extra, schema), schema)

    def value(self, schema: Any) -> str:
        """Return an expression for one value with its tail."""
        pieces: list[str] = []
        for branch in _branches(schema, 8):
            piece = self._one(branch)
            if piece == "raw_value":
                return piece  # raw text includes every other branch: it is parsed as JSON where that fits the schema
            self._num_chars += len(piece)
            check_length(self._num_chars)
            pieces.append(piece)
        return " | ".join(dict.fromkeys(pieces))

    def _map(self, inner: Any, schema: Mapping[str, Any]) -> str:
        # Its names are free, so a repeated name cannot be excluded; the parser uses the first.
        rule = self._name()
        before, after = (self._literal(part) for part in self._form.head("\0").split("\0"))
        declared = "|".join(
            pattern_of(name) for name in schema["properties"]
        )  # none of them can be had, or it were a member
        self.lines += [
            f"{rule.upper()}_NAME: /[A-Za-z0-9_.-]{{1,64}}/" + (f" & ~/{declared}/" if declared else ""),
            f"{rule}: {before} {rule.upper()}_NAME {after} ({self.value(inner)})",
        ]
        low, high = schema.get("minProperties", 0), schema.get("maxProperties", MAX_EXTRA_MEMBERS)
        return f"{rule}{{{low},{max(low, min(high, MAX_EXTRA_MEMBERS))}}}"

    def _one(self, schema: Any) -> str:
        tail = self._form.tail
        if not isinstance(schema, Mapping) or not set(schema) - set(DEFINITIONS):
            return "raw_value"
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            texts = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
            # A value that contains the end of a value cannot be written in this format.
            whole = [text for text in texts if not re.fullmatch(self._ended, text)]
            return self._one_of_texts(whole or texts)
        if schema.get("type") == "string":
            return self._string(schema)
        if not any(key in schema for key in ("type", "properties", "items", "anyOf", "oneOf", "allOf")):
            return "raw_value"
        return f"{json_value(with_reached_definitions(schema), lenient=not self._tool.strict)} {self._literal(tail)}"

    def _one_of_texts(self, texts: Sequence[str]) -> str:
        """Return an expression for one of these texts and its tail.

        Many are one terminal, which the lexer walks like a tree; as literals each is an item of every parser row.
        """
        tail, known = self._form.tail, [tag for tag in self._form.tags if tag in self._spec.marker_ids]
        apart = [text for text in texts if not text or any(tag in text for tag in known)]
        if len(texts) - len(apart) <= MAX_LITERALS:
            return " | ".join(self._literal(text + tail) for text in texts)
        name, left_out = self._name(), frozenset(apart)
        self.lines.append(f"{name.upper()}: {' | '.join(quoted(text) for text in texts if text not in left_out)}")
        return " | ".join([f"{name.upper()} {self._literal(tail)}", *(self._literal(text + tail) for text in apart)])

    def _string(self, schema: Mapping[str, Any]) -> str:
        expressions = [rule for part in _parts(schema, 8) for rule in self._expressions_of(part)]
        rules = [*expressions, *(rule for part in _parts(schema, 8) for rule in _lengths_of(part))]
        if not rules:
            return "raw_value"
        name = self._name()
        kind = "MATCHING" if expressions else "BOUNDED"
        self.lines.append(f"{name.upper()}: {kind} & {' & '.join(f'/{rule}/' for rule in rules)}")
        self.lines += _raw_rules(self._spec, self._form, name, name.upper())
        return name

    def _expressions_of(self, schema: Mapping[str, Any]) -> Iterator[str]:
        """Yield regular expressions that a string of this schema matches, but for its length."""
        if "pattern" in schema:
            pattern = full_match(str(schema["pattern"]))
            if pattern is None and self._tool.strict:
                fault = f"this format cannot hold the pattern {json.dumps(schema['pattern'])}"
                code = "invalid_function_parameters"
                raise BadSchema(f"Invalid schema for function '{self._tool.name}': {fault}", param="tools", code=code)
            yield from [pattern] if pattern is not None else []
        if schema.get("format") in FORMATS:
            yield f"({FORMATS[schema['format']]})"

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"

    def _rule(self, expression: str) -> str:
        name = self._name()
        self.lines.append(f"{name}: {expression}")
        return name

    def _literal(self, text: str) -> str:
        return _literal(self._spec, self._form, text)


def _lengths_of(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield a regular expression of the texts that are as long as this schema says."""
    if "minLength" in schema or "maxLength" in schema:
        yield f"(?s:.){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"


def _input_rules(rule: str, spec: ConstraintSpec, tool: Tool, form: TagForm) -> Iterator[str]:
    """Yield rules by which `rule` is a custom tool's free text with its tail."""
    if tool.format is None:
        yield f"{rule}: raw_value"
    elif tool.format.syntax == "regex":
        yield f"{rule.upper()}: MATCHING & /({regex_to_lark(tool.format.definition, '')})/"
        yield from _raw_rules(spec, form, rule, rule.upper())
    else:
        yield f"{rule}: {raw_piece(tool.format)} {_literal(spec, form, form.tail)}"


def _with_definitions(schema: Any, whole: Mapping[str, Any]) -> Any:
    shared = definitions_of(whole)
    return {**shared, **schema} if isinstance(schema, Mapping) else {}


def _branches(schema: Any, depth: int) -> Iterator[Any]:
    """Yield the alternatives of a schema, one type each where they can be distinguished."""
    if not isinstance(schema, Mapping) or depth == 0:
        yield schema
        return
    shared = definitions_of(schema)
    if "$ref" in schema:
        yield from _branches(resolved(schema), depth - 1)
        return
    for key in ("anyOf", "oneOf"):
        beside = {word: value for word, value in schema.items() if word not in (key, *DEFINITIONS)}
        if key in schema and beside.keys() <= PLAIN_WORDS:
            for branch in schema[key]:
                one = with_plain_parts(beside, [branch]) if beside else branch
                yield from _branches({**shared, **one} if isinstance(one, Mapping) else one, depth - 1)
            return
    kinds = schema.get("type")
    if isinstance(kinds, list) and "enum" not in schema and "const" not in schema:
        for kind in kinds:
            yield {**schema, "type": kind}
        return
    yield schema


def _parts(schema: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and the parts of its `allOf`."""
    if not isinstance(schema, Mapping) or depth == 0:
        return
    yield schema
    shared = definitions_of(schema)
    for part in schema.get("allOf", ()):
        pointed = isinstance(part, Mapping) and "$ref" in part
        yield from _parts(resolved({**shared, **part}) if pointed else part, depth - 1)
