"""The process that renders chat templates: `python -m server.checkpoint.render_main`.

A timer of the kernel ends it when a rendering takes too long, wherever that is, and a limit on its address space fails
whatever takes too much memory.
"""

import os
import pickle
import resource
import signal
import sys
from functools import lru_cache

import jinja2
import msgspec

from server.checkpoint.render_process import RenderReply, RenderRequest, read_frame, write_frame
from server.checkpoint.template_environment import CompiledTemplate
from server.runtime.heap import trim_heap

MAX_ADDRESS_SPACE = 1 << 30  # bytes of the whole process
TRIM_BYTES = 1 << 18  # of a text, after which the heap is trimmed
MAX_COMPILED = 16  # templates kept; a server renders one


def main() -> None:
    """Render until standard input ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit(resource.RLIMIT_AS, MAX_ADDRESS_SPACE)
    _limit(resource.RLIMIT_CORE, 0)
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing but frames is written to the pipe
    while True:
        try:
            request: RenderRequest = pickle.loads(read_frame(requests))
        except (EOFError, MemoryError):
            return
        signal.setitimer(signal.ITIMER_PROF, request.seconds)
        reply, text = _answer(request)
        write_frame(replies, msgspec.json.encode(reply))
        write_frame(replies, text)
        replies.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) >= TRIM_BYTES:
            del request, reply, text
            trim_heap()


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (limit, limit))


def _answer(request: RenderRequest) -> tuple[RenderReply, bytes]:
    try:
        template = _compile(request.source)
        if request.variables is None:
            return RenderReply(variables=tuple(sorted(template.variables))), b""
        text = template.render(request.tokens, request.variables)
        return RenderReply(text.written), str.encode(text, "utf-8", "surrogatepass")
    except jinja2.TemplateError as error:
        return RenderReply(refusal=_readable(error)), b""
    except MemoryError:
        return RenderReply(failure="it needs too much memory"), b""
    except RecursionError:
        return RenderReply(failure="it goes too deep"), b""
    except Exception as error:  # noqa: BLE001  # a template may raise anything; the parent reports it
        return RenderReply(failure=f"{type(error).__name__}: {_readable(error)}"), b""


def _readable(error: Exception) -> str:
    return str(error).encode("utf-8", "replace").decode() or type(error).__name__


@lru_cache(MAX_COMPILED)
def _compile(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)


if __name__ == "__main__":
    main()
