"""Functions as tools: the definitions derived from them, and calls with valid and invalid arguments."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field

from clients.functions import Toolbox, functions_in_file


@dataclass
class Place:
    """A point on the map."""

    city: str
    zip: str = ""


def book(place: Place, nights: Annotated[int, Field(ge=1)], kind: Literal["room", "suite"] = "room", **_: Any) -> str:
    raise AssertionError("never called")


def search(query: str, limit: int = 5, tags: list[str] | None = None, json: bool = False) -> dict[str, Any]:
    """Search the catalogue.

    Args:
        query: What to look for,
            in plain words.
        limit (int): How many at most.
        json: a name that a model class could not have

    Returns:
        not: a parameter
    """
    return {"query": query, "limit": limit, "tags": tags, "json": json}


def test_signature_and_docstring_become_a_definition() -> None:
    function = Toolbox.of([search]).definitions[0]["function"]
    parameters = function["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert (function["name"], function["description"]) == ("search", "Search the catalogue.")
    assert list(parameters)[:2] == ["type", "properties"]
    assert parameters["required"] == ["query"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["query"] == {"type": "string", "description": "What to look for, in plain words."}
    assert parameters["properties"]["limit"] == {"type": "integer", "default": 5, "description": "How many at most."}
    assert "title" not in json.dumps(parameters)


def test_a_parameter_called_title_is_kept() -> None:
    """Striking out pydantic's titles must not strike out the tool's own parameter."""

    def rename(title: str) -> str:
        return title

    assert "title" in Toolbox.of([rename]).definitions[0]["function"]["parameters"]["properties"]


def test_arguments_are_converted_to_the_annotated_types() -> None:
    def price(place: Place, nights: Annotated[int, Field(ge=1)]) -> str:
        return f"{place.city}: {nights * 100}"

    tools = Toolbox.of([price])
    assert tools.call("price", '{"place": {"city": "Oslo"}, "nights": 2}') == "Oslo: 200"
    assert "nights" in json.loads(tools.call("price", '{"place": {"city": "Oslo"}, "nights": 0}'))["error"]


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("search", "{}", "query"),
        ("search", '{"query": "x", "colour": 1}', "colour"),
        ("search", '{"query": ', "JSON"),
        ("find", "{}", "search"),
    ],
)
def test_invalid_arguments_become_an_error_result(name: str, arguments: str, named: str) -> None:
    """A loop that raises on the model's mistake ends the conversation; an error result lets the model try again."""
    assert named in json.loads(Toolbox.of([search]).call(name, arguments))["error"]


def test_an_exception_of_a_tool_becomes_an_error_result() -> None:
    def fail() -> str:
        raise OSError("the disk\nis full")

    assert json.loads(Toolbox.of([fail]).call("fail", "")) == {"error": "OSError: the disk is full"}


def test_results_become_text() -> None:
    def name() -> str:
        return "plain"

    tools = Toolbox.of([name, search])
    assert tools.call("name", "{}") == "plain"
    assert json.loads(tools.call("search", '{"query": "ä"}'))["query"] == "ä"


def test_parameters_that_json_cannot_name_are_refused() -> None:
    async def later() -> None:
        return None

    for function in (book, later):
        with pytest.raises(TypeError, match=function.__name__):
            Toolbox.of([function])
    with pytest.raises(TypeError, match="two tools"):
        Toolbox.of([search, search])


def test_a_file_offers_its_own_public_functions(tmp_path: Path) -> None:
    """An imported or private function offered as a tool would let the model call what was not meant as one."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from os import remove\nfrom json import dumps\n\ndef _no(): ...\n\ndef yes(x: int) -> int:\n    return x\n"
    )
    assert [function.__name__ for function in functions_in_file(path)] == ["yes"]
    with pytest.raises(ValueError, match="not a Python file"):
        functions_in_file(tmp_path / "absent.py")


@pytest.mark.parametrize(
    "docstring",
    [
        "Add numbers.\n\n:param a: first\n   number\n:param int b: second\n:returns: sum",
        "Add numbers.\n\nParameters\n----------\na : int\n    first\n    number\nb : int\n    second\n",
        "Add\nnumbers.\n\nArgs:\n  a: first number\n  b (int): second\n\nRaises:\n  c: no parameter\n",
    ],
    ids=["sphinx", "numpy", "google"],
)
def test_docstrings_are_read(docstring: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    add.__doc__ = docstring
    function = Toolbox.of([add]).definitions[0]["function"]
    described = {name: schema["description"] for name, schema in function["parameters"]["properties"].items()}
    assert (function["description"], described) == ("Add numbers.", {"a": "first number", "b": "second"})


def test_a_function_without_docstring_is_a_tool() -> None:
    def ping() -> str:
        return "pong"

    assert Toolbox.of([ping]).definitions[0]["function"]["description"] == ""
