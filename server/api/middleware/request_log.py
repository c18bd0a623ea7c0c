"""What the server writes about itself: one line an event, for people or for machines.

Every record carries the request id that was current where it was written. Texts of prompts and replies go to the
logger `toolwire.prompts` alone, which is silent unless asked for. Keys are struck out of every line.
"""

import logging
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_logger = logging.getLogger("toolwire.access")
prompt_logger = logging.getLogger("toolwire.prompts")

# Context variables live at module level by their nature; each request sees its own value.
current_request_id: ContextVar[str] = ContextVar("toolwire_request_id", default="")

QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
STRUCK_OUT = "********"
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "color_message"}
_CREDENTIAL = re.compile(r"""(?i)(bearer\s+|(?:x-)?api[-_]key['"]?\s*[:=]\s*['"]?)[^\s'",;&]+""")


def configure_logging(
    format: Literal["human", "json"], *, log_prompts: bool = False, secrets: Collection[str] = ()
) -> None:
    """Send every log line to stderr in `format`; called once, by the composition root.

    `secrets` are struck out wherever they appear, beside what looks like a credential.
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.addFilter(_stamp_request_id)
    stream.setFormatter(LineFormatter(format, secrets))
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(logging.WARNING)
    logging.getLogger("toolwire").setLevel(logging.INFO)
    prompt_logger.setLevel(logging.INFO if log_prompts else logging.CRITICAL + 1)


@contextmanager
def request_id_in_logs(request_id: str) -> Iterator[None]:
    """Within this block, and in tasks started there, log records carry `request_id`."""
    token = current_request_id.set(request_id)
    try:
        yield
    finally:
        current_request_id.reset(token)


class LineFormatter(logging.Formatter):
    """One line a record, line breaks escaped, so that no client can forge a line; fields given as `extra` follow."""

    def __init__(self, format: Literal["human", "json"], secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._line = _json_line if format == "json" else _human_line
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The finished line, without its line break."""
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return self._line(record, self._strike_out(text), self._strike_out_of(fields))

    def _strike_out_of(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._strike_out(value) if isinstance(value, str) else value for name, value in fields.items()}

    def _strike_out(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, STRUCK_OUT)
        return _CREDENTIAL.sub(rf"\g<1>{STRUCK_OUT}", text)


class RequestLogMiddleware:
    """ASGI room: one line a request when it has ended, whichever way: method, path, status, seconds, bytes.

    Neither the query string nor any header is written: keys travel in both.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching what is sent back."""
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        status, num_bytes, outcome = 0, 0, "cut off"

        async def watch(message: Message) -> None:
            nonlocal status, num_bytes, outcome
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    outcome = "complete"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.perf_counter() - began_s, 4),
                "bytes": num_bytes,
                "outcome": outcome,
            }
            access_logger.info("request", extra=fields)


def _stamp_request_id(record: logging.LogRecord) -> bool:
    record.request_id = current_request_id.get()
    return True


def _json_line(record: logging.LogRecord, text: str, fields: Mapping[str, Any]) -> str:
    line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": text,
    }
    if request_id := getattr(record, "request_id", ""):
        line["request_id"] = request_id
    return msgspec.json.encode({**fields, **line}, enc_hook=str).decode()


def _human_line(record: logging.LogRecord, text: str, fields: Mapping[str, Any]) -> str:
    moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
    parts = [moment, f"{record.levelname:<7}", record.name, text]
    parts += [f"{name}={value}" for name, value in fields.items()]
    if request_id := getattr(record, "request_id", ""):
        parts.append(f"[{request_id}]")
    return " ".join(parts).replace("\r", "\\r").replace("\n", "\\n")
