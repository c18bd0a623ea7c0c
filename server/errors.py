"""Errors of requests and of the start. The API maps the classes to HTTP statuses.

ServeError
├── Rejected            the request cannot be served as it is; a retry does not help
│   ├── BadRequest          a field is missing, of the wrong type, or out of range
│   │   └── TemplateExhausted   the chat template needs too much time or memory for it
│   ├── PromptTooLong       prompt and reply exceed the context window
│   ├── BadSchema           a tool's parameters or a response format are not a usable schema or grammar
│   ├── ConstraintFailed    the engine could not compile the constraint of the reply
│   ├── Unsupported         not supported by this model or server
│   └── UnknownModel        the model, or the adapter, is not served here
├── Busy                the request is valid; a retry may succeed
│   ├── QueueFull           the queue is full
│   ├── NoMemory            the device has no memory left for it
│   ├── Starting            the engine is loading the model, or restarting after a failure
│   └── ShuttingDown        the server ends; another one may serve the request
├── Broken              the server failed
│   ├── RequestFailed       this request alone
│   ├── DeadlinePassed      this request exceeded its deadline
│   └── EngineDied          no engine process can take it over
└── CannotStart         the server cannot start: printed in one line, exit code 2
"""


class ServeError(Exception):
    """Base of all errors that a user may see; `str(error)` says what to change."""

    def __init__(self, text: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.param = param
        self.code = code


class Rejected(ServeError):
    """The request cannot be served as it is."""


class BadRequest(Rejected):
    """A field is missing, of the wrong type, out of range, or at odds with another."""


class TemplateExhausted(BadRequest):
    """The chat template needs too much time or memory."""


class PromptTooLong(Rejected):
    """Prompt and reply exceed the context window: the prompt has `num_tokens`, at least, of `limit`."""

    def __init__(
        self, text: str, num_tokens: int = 0, limit: int = 0, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(text, param=param, code=code)
        self.num_tokens = num_tokens
        self.limit = limit


class BadSchema(Rejected):
    """A tool's parameters or a response format are not a usable schema or grammar."""


class ConstraintFailed(Rejected):
    """The engine could not compile the constraint."""


class Unsupported(Rejected):
    """Not supported by this model or server."""


class UnknownModel(Rejected):
    """The model, or the adapter, is not served here, or no more."""


class Busy(ServeError):
    """The request is valid, but cannot be served now; `retry_after_s` is when to retry."""

    def __init__(self, text: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """The queue is full."""


class NoMemory(Busy):
    """The device has no memory left for the request."""


class Starting(Busy):
    """The engine is loading the model, or restarting after a failure; `fraction` (0 to 1) of `stage` is done."""

    def __init__(self, stage: str, fraction: float, *, retry_after_s: float = 2.0) -> None:
        super().__init__(f"the model is loading: {stage}, {fraction:.0%}", retry_after_s=retry_after_s)
        self.stage = stage
        self.fraction = fraction


class ShuttingDown(Busy):
    """The server ends; another one, or the next, may serve the request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; the reply was cut off")


class Broken(ServeError):
    """The server failed, not the request."""


class RequestFailed(Broken):
    """This request alone failed."""


class DeadlinePassed(Broken):
    """This request exceeded its deadline."""


class EngineDied(Broken):
    """The engine process ended, and no other one takes the request over."""


class CannotStart(ServeError):
    """The server cannot start."""
