"""CUDA device order: CUDA_VISIBLE_DEVICES read as the CUDA programming guide says.

An entry is a number, a UUID or an unambiguous beginning of one ("GPU-8f3a"), or a MIG device's UUID, in its new form
"MIG-<uuid>" or its old one "MIG-GPU-<uuid>/<GPU instance>/<compute instance>". The first entry that names nothing
ends the list. Numbers follow the bus here; CUDA's own order ("fastest first") can differ, which is why torch's UUID
is preferred where there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slice:
    """One MIG device of a card."""

    uuid: str
    old_name: str  # MIG-GPU-<uuid>/<GPU instance>/<compute instance>


@dataclass(frozen=True, slots=True)
class Card:
    """One physical card, in the order of the bus."""

    uuid: str
    slices: tuple[Slice, ...] = ()  # not empty where MIG is on: CUDA then shows slices only

    @property
    def shown(self) -> str:
        """The UUID of what CUDA shows for this card where it is named as a whole: its first slice under MIG."""
        return self.slices[0].uuid if self.slices else self.uuid


def visible_uuids(cards: Sequence[Card], visible: str | None) -> list[str]:
    """UUIDs of the devices that CUDA shows, in its order; `visible` is None where the variable is not set."""
    if visible is None:
        return [card.shown for card in cards]
    shown: list[str] = []
    for entry in visible.split(","):
        uuid = _find(cards, entry.strip())
        if uuid is None or uuid in shown:
            return shown if uuid is None else []  # CUDA shows nothing at all where a device is named twice
        shown.append(uuid)
    return shown


def same_device(cards: Sequence[Card], torch_uuid: str) -> str | None:
    """The UUID as NVML spells it of the device that torch names, with or without a prefix; None if there is none."""
    bare = _bare(torch_uuid)
    for card in cards:
        for uuid in (*(part.uuid for part in card.slices), card.uuid):
            if _bare(uuid) == bare:
                return uuid if uuid != card.uuid else card.shown
    return None


def _find(cards: Sequence[Card], entry: str) -> str | None:
    if entry.isdigit():
        return cards[int(entry)].shown if int(entry) < len(cards) else None
    if entry.startswith("MIG-"):
        parts = [part for card in cards for part in card.slices]
        return next((part.uuid for part in parts if entry in (part.uuid, part.old_name)), None)
    if not entry.startswith("GPU-"):
        return None
    found = [card.shown for card in cards if card.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
