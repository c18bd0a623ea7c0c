"""`toolwire config`: every option, its value and where it came from."""

import dataclasses

from rich.console import Console
from rich.table import Table

from server.settings import GROUPS, Resolved

HIDDEN = "********"


def print_settings(resolved: Resolved) -> None:
    """Print one row an option; the values of secret ones are not shown."""
    table = Table("option", "value", "from")
    for group, kind in GROUPS.items():
        values = getattr(resolved.settings, group)
        for field in dataclasses.fields(kind):
            value = getattr(values, field.name)
            text = ", ".join(value) if isinstance(value, tuple) else str(value)
            shown = HIDDEN if field.metadata["secret"] and value else text
            table.add_row(field.name, shown, resolved.origins[field.name])
    Console().print(table)
