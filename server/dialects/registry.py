"""Registry of dialects, and detection of the one that a chat template writes."""

from server.dialects.base import Dialect
from server.dialects.glm4 import GLM4
from server.dialects.hermes import HERMES
from server.dialects.kimi_k2 import KIMI_K2
from server.dialects.qwen3_coder import QWEN3_CODER
from server.dialects.react import REACT
from server.errors import CannotStart

DIALECTS: tuple[Dialect, ...] = (QWEN3_CODER, GLM4, KIMI_K2, HERMES, REACT)
# Tried in this order; the first that recognises its format in a template wins.


def find(name: str) -> Dialect:
    """Return the dialect of this name; raise CannotStart, listing the known ones."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    known = ", ".join(dialect.name for dialect in DIALECTS)
    raise CannotStart(f"there is no tool format '{name}'; choose one of: {known}")


def detect(template: str) -> Dialect | None:
    """Return the dialect that a chat template writes, None if it has no tool support."""
    return next((dialect for dialect in DIALECTS if dialect.recognise(template)), None)
