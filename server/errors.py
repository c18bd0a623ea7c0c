"""Everything the server refuses or fails at. The API turns the classes into statuses; this file knows no HTTP.

ServeError
├── Rejected            the request cannot be served as it stands; sending it again changes nothing
│   ├── BadRequest          a field is missing, of the wrong type, or out of range
│   ├── PromptTooLong       prompt and reply exceed the context window
│   ├── BadSchema           a tool's parameters or a response format are no usable schema or grammar
│   ├── ConstraintFailed    the engine could not compile what was to constrain the reply
│   └── Unsupported         this model or server does not do that
├── Busy                the request is fine, the moment is not
│   ├── QueueFull           too many requests wait already
│   ├── NoMemory            the device's memory is taken
│   └── Starting            the engine loads the model, or starts again after a fault
├── Broken              our fault
│   ├── RequestFailed       this request alone
│   ├── DeadlinePassed      this request took longer than it was allowed
│   └── EngineDied          every request that was running
└── CannotStart         the server cannot begin its work: said in one line at start-up, exit code 2
"""


class ServeError(Exception):
    """Base of all errors that a user may see; `str(error)` says what to change."""

    def __init__(self, text: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.param = param
        self.code = code


class Rejected(ServeError):
    """The request cannot be served as it stands."""


class BadRequest(Rejected):
    """A field is missing, of the wrong type, out of range, or at odds with another."""


class PromptTooLong(Rejected):
    """Prompt and reply exceed the context window."""


class BadSchema(Rejected):
    """A tool's parameters or a response format are no usable schema or grammar."""


class ConstraintFailed(Rejected):
    """The engine could not compile the constraint."""


class Unsupported(Rejected):
    """This model or server does not do that."""


class Busy(ServeError):
    """The request is fine, the moment is not; `retry_after_s` says when to come back."""

    def __init__(self, text: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """Too many requests wait already."""


class NoMemory(Busy):
    """The device's memory is taken."""


class Starting(Busy):
    """The engine loads the model, or starts again after a fault; `fraction` (0 to 1) of `stage` is done."""

    def __init__(self, stage: str, fraction: float, *, retry_after_s: float = 2.0) -> None:
        super().__init__(f"the model is loading: {stage}, {fraction:.0%}", retry_after_s=retry_after_s)
        self.stage = stage
        self.fraction = fraction


class Broken(ServeError):
    """Our fault, not the request's."""


class RequestFailed(Broken):
    """This request alone failed."""


class DeadlinePassed(Broken):
    """This request took longer than it was allowed."""


class EngineDied(Broken):
    """The engine process ended; every running request failed."""


class CannotStart(ServeError):
    """The server cannot begin its work."""
