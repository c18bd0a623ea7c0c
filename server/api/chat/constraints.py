"""Constraints of the answer as OpenAI, other servers and clients spell them, on every surface."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema

from server.api.body import bad
from server.api.chat.content import as_json
from server.api.chat.fields import Part, is_strict, name_of, tag_by, tagged
from server.api.chat.thinking import OTHER_NAME
from server.api.chat.validation_errors import fault, wrong_type
from server.dialects.base import CustomFormat, ResponseFormat
from server.dialects.grammar.json_grammar import quoted
from server.dialects.schema.check import check_answer
from server.dialects.schema.custom import MAX_DEFINITION_LENGTH, format_fault
from server.dialects.schema.patterns import ends_open, translated
from server.messages import MAX_SOURCE

MAX_CHOICES = 10_000
MAX_LITERALS = 64  # choices; each literal is an item of every parser row
DEFAULT_NAME = "response"
SCHEMA_WORDS = {"type", "properties", "$ref", "$defs", "anyOf", "oneOf", "allOf", "enum", "const", "items"}


def _read_schema(value: Any) -> Any:
    """A schema as an object or as its JSON; an empty text is none."""
    value = _unquoted(value, "") if value != "" else None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    return value


def _unquoted(value: Any, at: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise fault("invalid_value", "Invalid '{P}': it must be a JSON Schema, but is no JSON.", at) from error


def _read_choices(value: Any) -> Any:
    """Texts; numbers and booleans as their JSON."""
    if not isinstance(value, list):
        raise wrong_type("an array of strings", value)
    if not 0 < len(value) <= MAX_CHOICES:
        text = f"Invalid '{{P}}': expected from 1 to {MAX_CHOICES} strings, but got {len(value)}."
        raise fault("invalid_value", text)
    choices = [as_json(choice) if isinstance(choice, int | float) else choice for choice in value]
    for position, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise wrong_type("a string that is not empty", choice, f"[{position}]")
    return choices


def _read_structured(value: Any) -> Any:
    """vLLM's object: one of `json`, `regex`, `choice`, `grammar` and `json_object`."""
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    readers = {"json": _read_schema, "choice": _read_choices, "regex": _read_text, "grammar": _read_text}
    given = {name: item for name, item in value.items() if item not in _NOTHING}
    for name in given:
        if name not in (*readers, "json_object", *_WITHOUT_EFFECT):
            text = f"Invalid '{{P}}': '{name}' is not supported. Use one of 'json', 'regex', 'choice' and 'grammar'."
            raise fault("unsupported_value", text, f".{name}")
    return {name: readers.get(name, lambda item: item)(item) for name, item in given.items()}


_NOTHING = (None, False, "")  # as clients send fields that they do not use
_WITHOUT_EFFECT = ("whitespace_pattern", "disable_fallback", "disable_any_whitespace", "disable_additional_properties")


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    return value


_STRUCTURED = {"json": {}, "regex": {"type": "string"}, "choice": {"type": "array"}, "grammar": {"type": "string"}}
SchemaField = Annotated[dict[str, Any] | None, BeforeValidator(_read_schema)]
ChoicesField = Annotated[list[str], BeforeValidator(_read_choices)]
StructuredField = Annotated[
    dict[str, Any],
    BeforeValidator(_read_structured),
    WithJsonSchema({"type": "object", "properties": _STRUCTURED}),
]


class AnswerConstraints(Part):
    """Fields of requests that constrain the answer, beside those that a surface has of its own."""

    guided_json: SchemaField | None = Field(None, description="Extension. A JSON Schema that the answer satisfies.")
    guided_json_object: bool | None = Field(None, description="Extension. Whether the answer is some JSON object.")
    guided_regex: str | None = Field(None, description="Extension. A regular expression that the answer matches.")
    guided_choice: ChoicesField | None = Field(None, description="Extension. Texts of which the answer is one.")
    guided_grammar: str | None = Field(None, description="Extension. A grammar of the answer, in Lark or GBNF.")
    structured_outputs: StructuredField | None = Field(None, description="Extension. One of the four, as an object.")
    json_schema: SchemaField | None = Field(None, description=f"{OTHER_NAME} `guided_json`.")
    regex: str | None = Field(None, description=f"{OTHER_NAME} `guided_regex`.")
    ebnf: str | None = Field(None, description=f"{OTHER_NAME} `guided_grammar`.")
    grammar: str | None = Field(None, description=f"{OTHER_NAME} `guided_grammar`.")

    def answer(self, *of_surface: ResponseFormat | None) -> ResponseFormat | None:
        """What these fields and the surface's own demand of the answer. Raises RequestRefused or BadSchema.

        A field that demands no more than some JSON object is taken beside the schema of one.
        """
        found = [one for one in of_surface if one is not None]
        found += [_answer_of(param, kind, value) for param, kind, value in self._demands()]
        held = [one for one in found if one.schema is not None or one.format is not None]
        if not held:
            return found[0] if found else None
        first, last = held[0], held[-1]
        alike = all((one.schema, one.format) == (first.schema, first.format) for one in held)
        of_object = first.schema is not None and first.schema.get("type", "object") == "object"
        if not alike or (len(held) < len(found) and not of_object):
            text = f"Invalid '{last.param}': only one constraint of the answer can be given."
            raise bad(text, last.param, "invalid_parameter_combination")
        schema = first.schema if len(held) == len(found) else {**(first.schema or {}), "type": "object"}
        return replace(first, schema=schema, strict=any(one.strict for one in held))

    def _demands(self) -> Iterator[tuple[str, str, Any]]:
        """Field, kind and value of each."""
        fields = {
            "guided_json": "json", "json_schema": "json", "guided_json_object": "json_object", "guided_regex": "regex",
            "regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar", "ebnf": "grammar",
            "grammar": "grammar",
        }  # fmt: skip
        for name, kind in fields.items():
            if (value := getattr(self, name)) not in _NOTHING:
                yield name, kind, value
        for kind, value in (self.structured_outputs or {}).items():
            if kind in fields.values():
                yield f"structured_outputs.{kind}", kind, value


def _answer_of(param: str, kind: str, value: Any) -> ResponseFormat:
    """The constraint of one of `json`, `json_object`, `regex`, `choice` and `grammar`: a promise, so all of it holds.

    Raises RequestRefused or BadSchema.
    """
    if kind == "json":
        check_answer(value, True, False, param=param)
        return ResponseFormat(value, strict=True, param=param)
    if kind == "json_object":
        return ResponseFormat(param=param)
    try:
        format = CustomFormat("lark", _lark_of(kind, value))
    except ValueError as error:
        raise bad(f"Invalid '{param}': {error}", param, "invalid_value") from error
    if found := format_fault(format, MAX_SOURCE if kind == "choice" else MAX_DEFINITION_LENGTH):
        raise bad(f"Invalid '{param}': {found}", param, "invalid_value")
    return ResponseFormat(format=format, param=param)


def _lark_of(kind: str, value: Any) -> str:
    if kind == "regex":
        if ends_open(value):
            raise ValueError("the regular expression ends in a backslash that escapes nothing")
        return f"start: /{regex_to_lark(_without_anchors(translated(value)), '')}/"
    if kind == "choice":
        texts = " | ".join(map(quoted, dict.fromkeys(value)))
        return f"start: {texts}" if len(value) <= MAX_LITERALS else f"start: CHOICE\nCHOICE: {texts}"
    try:
        return str(any_to_lark(value))
    except GbnfToLarkError as error:
        raise ValueError(str(error)) from error


def _without_anchors(pattern: str) -> str:
    """Lark anchors every regular expression at both ends."""
    pattern = pattern.removeprefix("^")
    if not pattern.endswith("$"):
        return pattern
    num_backslashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
    return pattern if num_backslashes % 2 else pattern[:-1]


class PlainFormat(Part):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Part):
    """Some JSON object; with `schema` one that satisfies it (extension)."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


def _format_name(name: str, info: ValidationInfo) -> str:
    """The name has no effect, so that only OpenAI's own limits hold it."""
    return name_of(64)(name, info) if is_strict(info) else name


class AnswerSchema(Part):
    """A JSON Schema that the answer satisfies."""

    name: Annotated[str, AfterValidator(_format_name)]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: AnswerSchema


class FlatSchemaFormat(AnswerSchema):
    """JSON of a schema, as the Responses API writes it."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


KINDS = ("text", "json_object", "json_schema")


def _read_format(value: Any, info: ValidationInfo) -> Any:
    """A format in OpenAI's form: its schema may stand at another place, its type in other words."""
    if is_strict(info):
        if isinstance(value, dict) and value.get("schema") is not None:
            raise fault("unknown_parameter", "Unknown parameter: '{P}'.", ".schema")
        return value
    kind, holder = _parts_of(value)
    if kind == "json_schema" and holder is not None:
        return {"type": kind, "json_schema": holder}
    return value if kind is None else {"type": kind, "schema": (holder or {}).get("schema")}


def read_flat_format(value: Any, info: ValidationInfo) -> Any:
    """The same in the form of the Responses API, where the schema is next to the type."""
    if is_strict(info):
        return value
    kind, holder = _parts_of(value)
    return value if kind is None else {**(holder or {}), "type": kind}


def _parts_of(value: Any) -> tuple[str | None, dict[str, Any] | None]:
    """Type and `{"name", "schema", "strict", "description"}` of a format; None where it is in no form known here."""
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        return None, None
    kind = "json_object" if value.get("type") == "json" else value.get("type")
    beside = {name: value[name] for name in ("name", "description", "strict") if value.get(name) is not None}
    inner = _unquoted(value.get("json_schema"), ".json_schema")
    if not isinstance(inner, dict | None):
        return None, None
    if isinstance(inner, dict) and not {"schema", "value"} & inner.keys() and SCHEMA_WORDS & inner.keys():
        inner = {"schema": inner}  # the schema itself
    holders = [one for one in (inner, value) if one is not None]
    sent = [(f".{key}", one[key]) for one in holders for key in ("schema", "value") if one.get(key) is not None]
    schemas = [_unquoted(schema, at) for at, schema in sent]
    if any(schema != schemas[0] for schema in schemas):
        text = "Invalid '{P}': it has two different schemas; send one."
        raise fault("invalid_parameter_combination", text)
    if kind is None and (schemas or inner is not None):
        kind = "json_schema"
    if not isinstance(kind, str) or kind not in KINDS:
        return None, None
    if kind == "text" and (schemas or inner is not None):
        text = "Invalid '{P}': a schema is given, but the type is 'text'. Send the type 'json_schema'."
        raise fault("invalid_parameter_combination", text)
    if not schemas:
        return kind, beside | inner if inner is not None else beside or None
    sent_inside = {key: one for key, one in (inner or {}).items() if one is not None and key != "value"}
    return kind, {"name": DEFAULT_NAME, **beside, **sent_inside, "schema": schemas[0]}


FormatField = Annotated[
    Annotated[PlainFormat, Tag("~text")]
    | Annotated[JsonObjectFormat, Tag("~json_object")]
    | Annotated[JsonSchemaFormat, Tag("~json_schema")],
    Discriminator(tag_by("type")),
    tagged("type", KINDS),
    BeforeValidator(_read_format),
]
FlatFormatField = Annotated[
    Annotated[PlainFormat, Tag("~text")]
    | Annotated[JsonObjectFormat, Tag("~json_object")]
    | Annotated[FlatSchemaFormat, Tag("~json_schema")],
    Discriminator(tag_by("type")),
    tagged("type", KINDS),
    BeforeValidator(read_flat_format),
]
AnyFormat = PlainFormat | JsonObjectFormat | JsonSchemaFormat | FlatSchemaFormat


def answer_of_format(format_: AnyFormat | None, strict: bool, param: str = "response_format") -> ResponseFormat | None:
    """What a format demands of the answer; `strict` is the server's. Raises BadSchema, which names `param`."""
    if isinstance(format_, JsonObjectFormat):
        schema = format_.schema_ or None
        if schema is not None:
            check_answer(schema, True, False, param=param)
            return ResponseFormat(schema, strict=True, param=param, place=f"{param}.schema")
        return ResponseFormat(param=param)
    if not isinstance(format_, JsonSchemaFormat | FlatSchemaFormat):
        return None
    flat = isinstance(format_, FlatSchemaFormat)
    held = format_ if isinstance(format_, FlatSchemaFormat) else format_.json_schema
    place = f"{param}.schema" if flat else f"{param}.json_schema.schema"
    param = place if flat else param
    if held.schema_ is not None:
        check_answer(held.schema_, bool(held.strict), strict, held.name, param)
    return ResponseFormat(held.schema_, bool(held.strict), param=param, place=place)
