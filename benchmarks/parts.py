"""Result of one part of a run of faults."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Part:
    """Figures of one part, and what was wrong in it."""

    name: str
    figures: dict[str, Any]
    faults: list[str]
