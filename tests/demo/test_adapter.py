"""Conversations that the adapter is trained on: every call is valid for its tool and holds what was said."""

import json
import random

import jsonschema_rs

from demo.adapter.conversations import Teacher
from demo.adapter.requests import offer, request_in_parts
from demo.adapter.sketches import read_sketches
from demo.adapter.trials import read_trials
from demo.adapter.values import lists
from demo.bfcl import Question, json_schema


def test_every_call_is_one_of_a_tool_that_is_offered_and_valid_for_it() -> None:
    """A model learns what it is shown: a wrong name or type among the examples comes back in its replies."""
    teacher, num_calls = Teacher(read_sketches(), 3), 0
    for _ in range(150):
        lesson = teacher.lesson()
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in lesson.tools}
        for conversation in lesson.conversations:
            for message in conversation:
                for call in message.get("tool_calls", ()):
                    function = json.loads(json.dumps(call["function"]))
                    jsonschema_rs.validate(schemas[function["name"]], function["arguments"])
                    num_calls += 1
    assert num_calls > 500


def test_values_that_are_said_in_clauses_of_their_own_belong_to_the_one_call() -> None:
    """A value that is in the call and not in the request teaches to make values up; the reverse, to leave them out."""
    rng, num_optional = random.Random(5), 0
    for sketch in read_sketches():
        for _ in range(10):
            tool = offer(rng, sketch)
            asked = request_in_parts(rng, tool)
            jsonschema_rs.validate(tool.definition["function"]["parameters"], asked.call["arguments"])
            for slot in sketch.slots:
                value = asked.arguments.get(tool.names.get(slot.key, ""))
                if not slot.required and slot.kind in lists() and value is not None:
                    assert value.lower() in asked.text.lower()
                    num_optional += 1
    assert num_optional > 100


def test_every_trial_means_calls_that_are_valid_for_its_tools_and_uses_a_tool_of_no_lesson() -> None:
    """A trial with a wrong answer measures nothing, and neither does one that was trained on."""
    trained = {name for sketch in read_sketches() for name in sketch.names}
    for trial in read_trials():
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in trial.tools}
        assert not trained & schemas.keys(), trial.text
        for name, arguments in trial.calls:
            jsonschema_rs.validate({**schemas[name], "additionalProperties": False}, arguments)


def test_types_of_bfcl_become_those_of_json_schema() -> None:
    """A server that checks schemas refuses `dict` and `float`, and the question would count as wrong."""
    parameters = {
        "type": "dict",
        "properties": {"at": {"type": "tuple", "items": {"type": "float"}}, "type": {"type": "any"}},
        "required": ["at"],
    }
    function = {"name": "a.b", "description": "d", "parameters": parameters}
    (tool,) = Question("simple_python", "0", (), (function,), ()).tools()
    assert tool["function"]["name"] == "a_b"
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"at": {"type": "array", "items": {"type": "number"}}, "type": {"type": "string"}},
        "required": ["at"],
    }
    assert json_schema({"type": "string", "enum": ["float"]}) == {"type": "string", "enum": ["float"]}
