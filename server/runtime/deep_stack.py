"""Threads for llguidance, which recurses once for each rule of a chain of rules when it compiles a grammar."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

# 64 KiB of Lark or 512 KiB of schema hold chains of some 15,000 rules; one level takes less than 8 KiB. The usual 8 MiB
# of stack overflow at 3,000. Memory of a stack is taken only as far as it is used.
STACK_BYTES = 256 * 1024 * 1024
T = TypeVar("T")
NUM_SHARED = 2
_starting = threading.Lock()


def deep_stack_threads(num_threads: int, name: str, niceness: int = 0) -> ThreadPoolExecutor:
    """A pool whose threads have a stack of STACK_BYTES; all of them are started here. Niceness is ignored off Linux."""
    all_started = threading.Barrier(num_threads)
    threads = ThreadPoolExecutor(num_threads, name, _renice, (niceness,))
    with _starting:
        usual_bytes = threading.stack_size(STACK_BYTES)
        try:
            for start in [threads.submit(all_started.wait) for _ in range(num_threads)]:
                start.result()
        finally:
            threading.stack_size(usual_bytes)
    return threads


def with_deep_stack(function: Callable[[], T]) -> T:
    """Call a function in one of NUM_SHARED threads with a deep stack, and wait for it. Raises what it raises."""
    return _shared_threads().submit(function).result()


@cache
def _shared_threads() -> ThreadPoolExecutor:
    return deep_stack_threads(NUM_SHARED, "deep-stack")


def _renice(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
