"""Caches of models and tokenizers that are emptied when a test module ends, so that a run's memory has a bound."""

import ctypes
import functools
import gc
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_caches: list["functools._lru_cache_wrapper[object]"] = []


def cached(function: Callable[P, R], maxsize: int | None = None) -> Callable[P, R]:
    """As functools.lru_cache, until the test module ends."""
    wrapper = functools.lru_cache(maxsize)(function)
    _caches.append(wrapper)
    return wrapper  # type: ignore[return-value]


def latest(function: Callable[P, R]) -> Callable[P, R]:
    """As `cached`, for the last arguments alone."""
    return cached(function, maxsize=1)


def clear() -> None:
    """Empty them all and hand the memory back to the operating system."""
    if any(cache.cache_info().currsize for cache in _caches):
        for cache in _caches:
            cache.cache_clear()
        gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
