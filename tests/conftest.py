"""Options and environment of a run, and one server with the built-in model that tests share."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest
from hypothesis import settings

from tests import caches
from tests.live import MODEL, Live, SharedServer

# What the engine sets for itself (server/settings.py): OpenMP threads sleep soon, and caches of products stay small.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    "MALLOC_ARENA_MAX": "1",
}

# Modules of ten seconds and more start first, so that no worker is left with one of them at the end.
SLOW_FIRST = (
    "tests/dialects/test_families.py",
    "tests/memory/test_engine.py",
    "tests/contract/test_c71_streaming.py",
    "tests/test_hybrids.py",
    "tests/test_faults.py",
    "tests/memory/test_out_of_memory.py",
    "tests/engine/test_real_models.py",
    "tests/model/attention/test_compile_kernels.py",
    "tests/memory/test_estimate.py",
    "tests/dialects/test_constraints.py",
    "tests/contract/compat/test_c88_clients.py",
    "tests/api/responses/test_openai_client.py",
    "tests/test_shutdown.py",
    "tests/test_isolation.py",
)

# Tests that need what `make test` does not install, by the option that runs them.
OPT_IN = {
    option: Path(__file__).parent / name for option, name in {"page": "page", "engine": "vllm", "ray": "ray"}.items()
}
TESTS_OF_MODELS = ("tests/model/", "tests/engine/test_real_models.py", "tests/memory/test_out_of_memory.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests marked long too, and the others with more cases")
    parser.addoption("--page", action="store_true", help="run the tests of the page, which need Chromium")
    parser.addoption("--pictures", action="store_true", help="let them take the pictures of the documents")
    parser.addoption("--ray", action="store_true", help="run the tests of the Ray Serve application, which need Ray")
    parser.addoption("--ray-vllm", metavar="PYTHON", help="run the tests of vLLM over Ray, with a Python that has vLLM")
    parser.addoption("--engine", metavar="URL", help="let the shared server compute there, and run the tests of vLLM")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests of other programs out of runs without their option: they have targets of their own."""
    left_out = [folder for option, folder in OPT_IN.items() if not config.getoption(option)]
    return True if collection_path in left_out else None


def pytest_configure(config: pytest.Config) -> None:
    """Set what torch, OpenMP and Triton read once, when they are imported. Workers inherit it.

    Properties are tried with few examples, with `--long` with many. Triton's kernels run in its interpreter, except in
    `make test-gpu`. Workers share the cores. A run that a shell has put into the background ignores SIGINT, and so
    would every server that a test starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.set_event_loop(None)  # else pytest-asyncio makes one that nobody closes
    os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="toolwire-state-"))  # none of the user's own
    for name, value in {**ENVIRONMENT, **MODEL}.items():
        os.environ.setdefault(name, value)
    if "SSL_CERT_FILE" not in os.environ:
        os.environ["SSL_CERT_FILE"] = _one_certificate()
    if workers := config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    settings.register_profile("fast", max_examples=60, deadline=None)
    settings.register_profile("long", max_examples=500, deadline=None)
    settings.load_profile("long" if config.getoption("long") else "fast")
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _one_certificate() -> str:
    """A file with one certificate: clients read all of theirs whenever one is made, for 20 ms, and here all is HTTP."""
    end = "-----END CERTIFICATE-----\n"
    first, *_ = Path(certifi.where()).read_text(encoding="utf-8").partition(end)
    path = Path(os.environ["XDG_STATE_HOME"]) / "certificate.pem"
    path.write_text(first + end, encoding="utf-8")
    return str(path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked long unless `--long` includes them; put the slow modules first.

    Tests of models are ordered by the kind of model within their module: of each, one is in memory at a time.
    """
    modules = dict.fromkeys((*SLOW_FIRST, *(item.location[0] for item in items)))
    order = {module: place for place, module in enumerate(modules)}
    items.sort(key=lambda item: (order[item.location[0]], _kind_of_model(item)))
    if not config.getoption("long"):
        left_out = [item for item in items if "long" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "long" not in item.keywords]


def _kind_of_model(item: pytest.Item) -> str:
    """The kind of model that a test of models needs, empty for most: tests without a kind use qwen3."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or not item.location[0].startswith(TESTS_OF_MODELS):
        return ""
    return str(callspec.params.get("kind", "")).removeprefix("qwen3")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests advise (`record_property("advice", ...)`); xdist sends it here from its workers."""
    reports = terminalreporter.getreports("passed")
    advice = [value for report in reports for name, value in report.user_properties if name == "advice"]
    if advice:
        terminalreporter.section("advice")
    for line in advice:
        terminalreporter.write_line(str(line))


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this run has `--long`."""
    return bool(request.config.getoption("long"))


@pytest.fixture(scope="module", autouse=True)
def _models_of_one_module() -> Iterator[None]:
    """Models and tokenizers that a module loads are dropped with it."""
    yield
    caches.clear()


@pytest.fixture(scope="session")
def built_in_server(request: pytest.FixtureRequest) -> Iterator[SharedServer]:
    """What `live` starts: one server a worker, restarted after a test that stops it."""
    engine = request.config.getoption("engine")
    shared = SharedServer(*(["--engine", engine] if engine else []))
    yield shared
    shared.close()


@pytest.fixture
def live(built_in_server: SharedServer) -> Live:
    """The built-in model behind a real server process. A test may stop it."""
    return built_in_server.get()
