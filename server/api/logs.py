"""Log lines: one a record, for people or as JSON, with the request id and without credentials."""

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from server.api.log_writer import LogWriter

PROMPT_LOGGER = "toolwire.prompts"  # texts of prompts and replies; silent without `--log-prompts`
REDACTED = "********"
STDERR = 2
MAX_FIELD_LENGTH = 512  # characters
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "color_message"}
_CREDENTIAL = re.compile(r"""(?i)(bearer\s+|(?:x-)?api[-_]key['"]?\s*[:=]\s*['"]?)[^\s'",;&]+""")

_ONE_WORD = re.compile(r"[^\s\"'=\[\]\\]+")

# Context variables live at module level by their nature; each request sees its own value.
current_request_id: ContextVar[str] = ContextVar("toolwire_request_id", default="")


def configure_logging(
    format: Literal["human", "json"], *, log_prompts: bool = False, secrets: Callable[[], Collection[str]] = tuple
) -> None:
    """Send every log line to stderr in `format`; called once, by the composition root.

    What `secrets` returns at a line is redacted in it, and so is what looks like a credential.
    """
    stream: logging.StreamHandler[Any] = logging.StreamHandler(LogWriter(STDERR))
    stream.addFilter(_stamp_request_id)
    stream.setFormatter(LineFormatter(format, secrets))
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(logging.WARNING)
    logging.getLogger("toolwire").setLevel(logging.INFO)
    logging.getLogger(PROMPT_LOGGER).setLevel(logging.INFO if log_prompts else logging.CRITICAL + 1)


@contextmanager
def request_id_in_logs(request_id: str) -> Iterator[None]:
    """Within this block, and in tasks started there, log records carry `request_id`."""
    token = current_request_id.set(request_id)
    try:
        yield
    finally:
        current_request_id.reset(token)


class LineFormatter(logging.Formatter):
    """One line a record, in printable characters; fields given as `extra` follow its text.

    No client can forge a line or a field, or send control characters to a terminal: what is not printable is escaped,
    in lines for people a text is quoted where it would not be one word, and a field is cut at MAX_FIELD_LENGTH.
    """

    def __init__(self, format: Literal["human", "json"], secrets: Callable[[], Collection[str]] = tuple) -> None:
        super().__init__()
        self._line = _json_line if format == "json" else _human_line
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """The finished line, without its line break."""
        fields = {
            name: _cut(self._redact(value)) if isinstance(value, str) else value
            for name, value in vars(record).items()
            if name not in _STANDARD_FIELDS
        }
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return self._line(record, self._redact(text), fields)

    def _redact(self, text: str) -> str:
        for secret in sorted(filter(None, self._secrets()), key=len, reverse=True):
            text = text.replace(secret, REDACTED)
        return _CREDENTIAL.sub(rf"\g<1>{REDACTED}", text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FIELD_LENGTH else f"{text[:MAX_FIELD_LENGTH]}… ({len(text)} characters)"


def _escape(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escape(char) for char in text)


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
    text = msgspec.json.encode({**fields, **line}, enc_hook=str).decode()
    return _escape(text, lambda char: json.dumps(char)[1:-1])


def _human_line(record: logging.LogRecord, text: str, fields: Mapping[str, Any]) -> str:
    moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
    parts = [moment, f"{record.levelname:<7}", record.name, text]
    parts += [f"{name}={_quoted(value) if isinstance(value, str) else value}" for name, value in fields.items()]
    if request_id := getattr(record, "request_id", ""):
        parts.append(f"[{request_id}]")
    return _escape(" ".join(parts), lambda char: char.encode("unicode_escape").decode())


def _quoted(text: str) -> str:
    if _ONE_WORD.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
