"""Conversations that the adapter is trained on: every call is valid for its tool and holds what was said."""

import json

import jsonschema_rs

from demo.adapter.conversations import Teacher
from demo.adapter.sketches import read_sketches


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
