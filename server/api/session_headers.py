"""Headers by which routers keep a client's session on one server; passed on to engines behind such a router."""

from starlette.datastructures import Headers

# The names that gateways and coding agents use. No header that says who somebody is: they go to other programs.
NAMES = (
    "x-session-id", "session-id", "session_id", "x-session-token", "x-session-affinity", "x-conversation-id",
    "conversation-id", "conversation_id", "x-smg-routing-key",
)  # fmt: skip
MAX_LENGTH = 256  # characters; longer values, and those that are no printable ASCII, are not passed on
STATE = "session_headers"  # in a request's state


def session_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Name and value of those that a request has."""
    sent = ((name, headers.get(name, "")) for name in NAMES)
    return tuple((name, value) for name, value in sent if _is_passed_on(value))


def _is_passed_on(value: str) -> bool:
    return 0 < len(value) <= MAX_LENGTH and value.isascii() and value.isprintable()
