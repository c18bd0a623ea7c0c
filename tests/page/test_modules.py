"""Modules of the page, run in the browser: imports of tools, checks of schemas, Markdown, metrics."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.contract.scripted import ScriptedModel
from tests.page.conftest import Visitor

PYTHON = '''
async def search(
    query: str,  # what to look for
    limit: int = 10,
    *,
    kind: Literal["web", "news"] | None = None,
    tags: list[str] = [],
    near: Optional[dict[str, float]] = None,
    note: Annotated[str, "A note, with a comma"] = "a, b",
) -> list[dict[str, Any]]:
    """Search the web.

    Finds pages.

    Args:
        query: The words.
        limit (int): At most so many.
    """
    return []
'''


@pytest.fixture
def page(visitor: Visitor, scripted: ScriptedModel) -> Page:
    return visitor.open(scripted.url)


def call(page: Page, module: str, expression: str, argument: Any = None) -> Any:
    """The value of an expression of one module's exports, `m`, and the argument, `a`."""
    imported = f"const m = await import(new URL('web/{module}', document.baseURI))"
    return page.evaluate(f"async a => {{ {imported}; return {expression}; }}", argument)


def rendered(page: Page, text: str, what: str = "innerHTML") -> Any:
    """A property of the element that a text of Markdown is shown in."""
    lines = ("const n = document.createElement('div')", "new m.MarkdownView(n).update(a)", f"return n.{what}")
    return call(page, "markdown.js", f"(() => {{ {'; '.join(lines)} }})()", text)


def test_a_python_function_becomes_a_tool(page: Page) -> None:
    (tool,) = call(page, "python.js", "m.toolsOfPython(a)", PYTHON)
    properties = tool["parameters"]["properties"]
    assert (tool["name"], tool["description"]) == ("search", "Search the web.  Finds pages.")
    assert tool["parameters"]["required"] == ["query"]
    assert properties["query"] == {"type": "string", "description": "The words."}
    assert properties["limit"] == {"type": "integer", "default": 10, "description": "At most so many."}
    assert properties["kind"] == {"anyOf": [{"enum": ["web", "news"]}, {"type": "null"}], "default": None}
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}}
    assert properties["near"]["anyOf"][0] == {"type": "object", "additionalProperties": {"type": "number"}}
    assert properties["note"] == {"type": "string", "description": "A note, with a comma", "default": "a, b"}


def test_an_openapi_document_becomes_tools(page: Page, scripted: ScriptedModel) -> None:
    """Parameters and body in one schema, with the components that it refers to, itself among them."""
    reference = {"$ref": "#/components/schemas/Node"}
    node = {"type": "object", "properties": {"name": {"type": "string"}, "child": reference}}
    identifier = {"in": "path", "name": "id", "schema": {"type": "integer"}}
    document = {
        "components": {"schemas": {"Node": node}, "parameters": {"Id": identifier}},
        "paths": {
            "/nodes/{id}": {
                "parameters": [{"$ref": "#/components/parameters/Id"}],
                "get": {"summary": "Get a node"},
                "put": {
                    "operationId": "put.node",
                    "requestBody": {"content": {"application/json": {"schema": reference}}},
                },
            }
        },
    }
    tools = call(page, "openapi.js", "m.toolsOfOpenApi(JSON.stringify(a))", document)
    assert [tool["name"] for tool in tools] == ["get_nodes_id", "put_node"]
    assert tools[0]["parameters"] == {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    parameters = tools[1]["parameters"]
    assert set(parameters["properties"]) == {"id", "name", "child"}
    assert parameters["properties"]["child"] == {"$ref": "#/$defs/Node"}
    assert parameters["$defs"]["Node"]["type"] == "object"
    own = call(page, "openapi.js", "m.toolsOfOpenApi(await (await fetch('openapi.json')).text()).length")
    assert own > 10, "the server's own document"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"type": "object", "properties": {"a": {"type": "text"}}}', '"text" is none of'),
        ('{"type": "object", "properties": {"a": {"type": "string", "minlength": 1}}}', "is minLength meant?"),
        ('{"type": "object", "required": ["a"], "properties": {}}', '"a" is no property'),
        ('{"type": "object", "properties": {"a": {"$ref": "#/$defs/B"}}}', "there is nothing at #/$defs/B"),
        ('{"type": "object", "properties": []}', "an object of schemas"),
        ('{"type": "string"}', "arguments are an object"),
        ('{"type": "object", "properties": {"a": {"enum": []}}}', "a list of values"),
        ('{"type": "object", }', "no JSON"),
        ("[]", "a schema is an object"),
    ],
)
def test_faults_of_schemas_are_named(page: Page, text: str, problem: str) -> None:
    found = call(page, "schema.js", "m.checkText(a)", text)
    assert any(problem in one["text"] for one in found["problems"]), found


def test_schemas_without_faults_have_none(page: Page) -> None:
    properties = {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array", "items": {"enum": [1, "2"]}}}
    schema = {"type": "object", "properties": properties, "$defs": {"A": {"type": ["string", "null"]}}}
    assert call(page, "schema.js", "m.checkText(JSON.stringify(a))", schema)["problems"] == []


MARKDOWN = """# Title
Some *soft* and **strong** text, `code`, ~~gone~~, snake_case_name and 2 * 3 * 4.

1. one
2. two
   - inner

```python
print("**not bold**")
```
> quoted

| a | b |
|---|---|
| 1 | 2 |
"""


def test_markdown_of_every_kind(page: Page) -> None:
    shown = rendered(page, MARKDOWN)
    for part in (
        "<h3>Title</h3>", "<em>soft</em>", "<strong>strong</strong>", "<code>code</code>", "<del>gone</del>",
        "snake_case_name", "2 * 3 * 4", '<ol start="1"><li>one</li><li>two<ul><li>inner</li></ul></li></ol>',
        'print("**not bold**")', "<blockquote><p>quoted</p></blockquote>", "<th>a</th>", "<td>2</td>",
    ):  # fmt: skip
        assert part in shown, shown


def test_text_that_grows_is_shown_as_the_whole_text(page: Page) -> None:
    """Blocks that are settled are not rendered again; a fence or a table that is closed later must still be right."""
    grown, whole, kept = call(
        page, "markdown.js",
        """(() => {
          const [one, other] = [document.createElement('div'), document.createElement('div')];
          const view = new m.MarkdownView(one);
          let first = null;
          for (let end = 1; end <= a.length; end += 1) {
            view.update(a.slice(0, end));
            if (end === 150) first = one.firstChild;
          }
          new m.MarkdownView(other).update(a);
          return [one.innerHTML, other.innerHTML, one.firstChild === first];
        })()""",
        MARKDOWN,
    )  # fmt: skip
    assert grown == whole and kept


@pytest.mark.parametrize(
    "piece", ["*", "`", "[", "_a", "**a ", "![", "<h", "> ", "- ", "|", "a\n", "~~", "# ", "~~~", "- -  ", "1. "]
)
def test_long_texts_of_nothing_but_marks_are_shown_at_once(page: Page, piece: str) -> None:
    """A renderer that takes quadratic time for marks without a partner stops the page."""
    for begin in ("", "x "):
        assert "x" in rendered(page, f"{begin}{piece * 20_000}x")


def test_metrics_are_summed_over_labels(page: Page) -> None:
    lines = (
        'a_total{path="/x",outcome="200"} 2.0', 'a_total{path="}",outcome="4"} 3.0', 'h_bucket{le="0.5"} 1.0',
        'h_bucket{le="+Inf"} 4.0', "# EOF",
    )  # fmt: skip
    read = "m.readMetrics(a.join(String.fromCharCode(10)))"
    assert call(page, "openmetrics.js", f"{read}.values.get('a_total')", lines) == 5
    for share, edge in (("0.2", "0.5"), ("0.9", "Infinity")):
        assert call(page, "openmetrics.js", f"m.quantile({read}.buckets.get('h'), {share}) === {edge}", lines)
    assert call(page, "openmetrics.js", "m.quantile(undefined, 0.5)") is None


def test_python_as_people_write_it(page: Page) -> None:
    """An apostrophe or a bracket in a comment ended the signature; text in a docstring was read as a function."""
    text = '''
def first[T](
    a: T,  # what's looked for (optional
    *args: str,
    kind: Literal["x", 1, None,] = "x",
    span: tuple[int, ...] = (),
    note: Annotated[str, Field(max_length=9, description="A note, with a comma")] = "a, b=c: d",
    hook: Callable[[int], str] = lambda one: {"a": one},
    **more: float,
) -> dict[str, "Any: thing"]:  # it's done
    """Do it.

    def no(x): is an example

    Parameters
    ----------
    a : T
        The first
        of all.
    """

async def zweite_größe(x, y: list[str] | None = None): 'One line: short.'
'''
    first, second = call(page, "python.js", "m.toolsOfPython(a)", text)
    assert first["name"] == "first" and first["note"].startswith("*args is left out")
    assert first["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"description": "The first of all."},
            "kind": {"enum": ["x", 1, None], "default": "x"},
            "span": {"type": "array", "items": {"type": "integer"}},
            "note": {"type": "string", "description": "A note, with a comma", "default": "a, b=c: d"},
            "hook": {},
        },
        "additionalProperties": {"type": "number"},
        "required": ["a"],
    }
    assert (second["name"], second["description"]) == ("zweite_größe", "One line: short.")
    assert second["parameters"]["required"] == ["x"]


def test_openapi_documents_as_people_write_them(page: Page) -> None:
    """Properties with names of keywords were left out, components with equal names taken for one another."""
    schema = {
        "type": "object",
        "required": ["example", "size"],
        "properties": {
            "example": {"type": "string", "example": "left out"},
            "size": {
                "type": "integer",
                "minimum": 1,
                "exclusiveMinimum": True,
                "maximum": 9,
                "exclusiveMaximum": False,
            },
            "kind": {"type": "string", "enum": ["a"], "nullable": True, "default": {"$ref": "no reference"}},
            "next": {"$ref": "#/components/schemas/A"},
        },
    }
    document = {
        "components": {"schemas": {"A": schema}, "responses": {"A": {"type": "boolean"}}, "a/b": {"c d": {}}},
        "paths": {
            "/a": {
                "post": {
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}},
                    "parameters": [
                        {"in": "query", "name": "q", "schema": {"$ref": "#/components/responses/A"}},
                        {"in": "query", "name": "r", "schema": {"$ref": "#/components/a~1b/c%20d"}},
                        {"in": "cookie", "name": "session"},
                    ],
                }
            }
        },
    }
    (tool,) = call(page, "openapi.js", "m.toolsOfOpenApi(JSON.stringify(a))", document)
    assert tool["note"].endswith("left out: session")
    properties, definitions = tool["parameters"]["properties"], tool["parameters"]["$defs"]
    assert properties["example"] == {"type": "string"}
    assert properties["size"] == {"type": "integer", "exclusiveMinimum": 1, "maximum": 9}
    assert properties["kind"] == {"type": ["string", "null"], "enum": ["a", None], "default": {"$ref": "no reference"}}
    assert definitions[properties["q"]["$ref"].rpartition("/")[2]] == {"type": "boolean"}
    assert definitions[properties["next"]["$ref"].rpartition("/")[2]]["type"] == "object"
    assert definitions[properties["r"]["$ref"].rpartition("/")[2]] == {}


@pytest.mark.parametrize(
    ("media", "names", "note"),
    [
        ("application/json; charset=utf-8", ["q", "x"], ""),
        ("application/merge-patch+json", ["q", "x"], ""),
        ("multipart/form-data", ["q"], "a body of multipart/form-data is left out"),
    ],
)
def test_bodies_of_an_operation_are_read_or_named(page: Page, media: str, names: list[str], note: str) -> None:
    """A form was left out without a word, and so was JSON with a character set."""
    body = {"content": {media: {"schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}}}
    filters = {"in": "query", "name": "q", "content": {"application/json": {"schema": {"type": "object"}}}}
    document = {"paths": {"/a": {"post": {"requestBody": body, "parameters": [filters]}}}}
    (tool,) = call(page, "openapi.js", "m.toolsOfOpenApi(JSON.stringify(a))", document)
    assert (sorted(tool["parameters"]["properties"]), tool["note"]) == (names, note)
    assert tool["parameters"]["properties"]["q"] == {"type": "object"}


@pytest.mark.parametrize(
    ("reply", "rate"),
    [
        ({"trace": {"steps": [{"at_s": 0.5, "tokens": 1}, {"at_s": 1, "tokens": 3}, {"at_s": 2.5, "tokens": 1}]}}, 2),
        ({"trace": {"steps": [{"at_s": 0.5, "tokens": 9}]}, "times": {"first": 1, "end": 1.3}}, None),
        ({"times": {"first": 1, "end": 1.3}, "usage": {"completion": 24}}, None),
        ({"times": {"first": 1000, "end": 3000}, "usage": {"completion": 24}}, 12),
        ({"times": {"first": 1000, "end": None}, "usage": None}, None),
    ],
)
def test_a_rate_is_shown_where_it_was_measured(page: Page, reply: dict[str, Any], rate: float | None) -> None:
    """A reply that arrived as one piece was said to have been written with 80000 tokens a second."""
    assert call(page, "reply.js", "m.rateOf(a)", reply) == rate
