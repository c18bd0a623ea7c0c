"""Which dialects there are, and which one a chat template writes."""

from server.dialects.base import Dialect
from server.dialects.glm4 import GLM4
from server.dialects.hermes import HERMES
from server.dialects.kimi_k2 import KIMI_K2
from server.dialects.qwen3_coder import QWEN3_CODER
from server.dialects.react import REACT
from server.errors import CannotStart

DIALECTS: tuple[Dialect, ...] = (QWEN3_CODER, GLM4, KIMI_K2, HERMES, REACT)
# Templates are asked in this order; the first that recognises its own format wins.


def find(name: str) -> Dialect:
    """The dialect of this name; raises CannotStart, listing those there are."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    known = ", ".join(dialect.name for dialect in DIALECTS)
    raise CannotStart(f"there is no tool format '{name}'; choose one of: {known}")


def detect(template: str) -> Dialect | None:
    """The dialect that a chat template writes, None if it knows no tools."""
    return next((dialect for dialect in DIALECTS if dialect.recognise(template)), None)
