"""Thoughts as opaque strings that clients carry: authenticated by a key of the state directory, so that a thought that
comes back is one that this server wrote.
"""

import base64
import binascii
import contextlib
import hmac
import os
import secrets
import tempfile
import zlib
from hashlib import sha256
from pathlib import Path

from server.api.body import bad
from server.errors import CannotStart

PREFIX = "tw1."
SUMMARY_PREFIX = "tws1."  # of summaries of conversations
KEY_BYTES = 32
MAC_BYTES = 32
MAX_THOUGHT_BYTES = 1 << 24  # of one opened thought
KEY_FILE = "reasoning.key"


class ReasoningSeal:
    """Seals thoughts, or other texts under another prefix, and opens them again."""

    def __init__(self, key: bytes, prefix: str = PREFIX) -> None:
        self._key = key
        self._prefix = prefix

    def of_prefix(self, prefix: str) -> "ReasoningSeal":
        """A seal whose texts this one does not open."""
        return ReasoningSeal(hmac.digest(self._key, prefix.encode(), sha256), prefix)

    def seal(self, thought: str) -> str:
        """The opaque form of a thought."""
        packed = zlib.compress(thought.encode("utf-8", "surrogatepass"), 1)
        return self._prefix + base64.urlsafe_b64encode(self._mac(packed) + packed).decode()

    def open(self, sealed: str, param: str) -> str:
        """The thought. Raises RequestRefused (400) for what this server did not seal."""
        try:
            raw = base64.b64decode(sealed.removeprefix(self._prefix).encode(), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raw = b""
        mac, packed = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not sealed.startswith(self._prefix) or not hmac.compare_digest(mac, self._mac(packed)):
            text = f"Invalid '{param}': this server did not write it, or it was changed. Send it as it came, or leave"
            raise bad(f"{text} the item out.", param, "invalid_encrypted_content")
        unpacked = zlib.decompressobj().decompress(packed, MAX_THOUGHT_BYTES)
        return unpacked.decode("utf-8", "surrogatepass")

    def _mac(self, packed: bytes) -> bytes:
        return hmac.digest(self._key, packed, sha256)


def random_seal() -> ReasoningSeal:
    """A seal whose thoughts are valid as long as this process lives."""
    return ReasoningSeal(secrets.token_bytes(KEY_BYTES))


def seal_of(state: Path) -> ReasoningSeal:
    """The seal of a state directory; its key is made at the first start. Raises CannotStart, OSError."""
    path = state / KEY_FILE
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=state, prefix=KEY_FILE) as file:  # readable by its owner alone
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            with contextlib.suppress(FileExistsError):  # another server was first
                os.link(file.name, path)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise CannotStart(f"{path} holds {len(key)} bytes, not a key of {KEY_BYTES}; remove it")
    return ReasoningSeal(key)
