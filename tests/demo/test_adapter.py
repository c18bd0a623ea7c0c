"""Conversations that the adapter is trained on: every call is valid for its tool and holds what was said."""

import json
import random

import jsonschema_rs

from demo.adapter.conversations import Mix, Teacher
from demo.adapter.quantities import FAMILIES, INPUTS, OTHERS, QuantitySketch, another_quantity, draw_quantity
from demo.adapter.requests import offer, request_in_parts
from demo.adapter.sketches import Wording, read_sketches
from demo.adapter.trials import read_trials
from demo.adapter.values import Draws, lists
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


def test_a_request_for_another_quantity_of_the_same_inputs_is_for_none_that_is_offered() -> None:
    """A refusal of what a tool computes would teach the model not to call it."""
    rng = Draws(1)
    for _ in range(200):
        offered = draw_quantity(rng)
        other = another_quantity(rng, offered, [draw_quantity(rng)])
        assert isinstance(other, QuantitySketch)
        assert (other.family, other.slots) == (offered.family, offered.slots)
        assert other.thing != offered.thing
    assert all(set(keys) <= INPUTS.keys() and len(set(asked)) == len(asked) > 2 for _, keys, asked in FAMILIES)
    required = {sketch.key: {slot.key for slot in sketch.slots if slot.required} for sketch in read_sketches()}
    assert all(Wording(text).places() <= required[key] for key, texts in OTHERS.items() for text in texts)


def test_the_assistant_asks_for_each_value_that_a_request_lacks() -> None:
    """A call with a value that nobody has said is what the model makes up."""
    mix = Mix(one_call=0, parallel=0, none_fits=0, missing=1, small_talk=0, several_turns=0)
    teacher, num_whole = Teacher(read_sketches(), 4, mix, (1,)), 0
    for _ in range(120):
        lesson = teacher.lesson()
        for conversation in lesson.conversations:
            if len(conversation) != 4 or conversation[1].get("tool_calls"):
                continue
            (tool,) = lesson.tools
            parameters = tool["function"]["parameters"]
            inner = next(iter(parameters["properties"].values())).get("required") if len(parameters) == 3 else None
            question, (call,) = conversation[1]["content"], conversation[3]["tool_calls"]
            asked = [name for name in inner or parameters["required"] if name.replace("_", " ") in question]
            assert asked
            assert call["function"]["name"] == tool["function"]["name"]
            num_whole += len(asked) == len(parameters["required"])
    assert num_whole > 50


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
