"""Deployment of engines: each replica runs one engine program, says where it listens, and how much it has to do."""

import contextlib
import logging
import math
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext

from deploy.ray.engine_table import REPORT_INTERVAL_S
from deploy.ray.options import Options
from deploy.ray.registry import open_registry, own_key
from server.checkpoint.locate import locate
from server.errors import CannotStart

logger = logging.getLogger("ray.serve")

VLLM_MODULE = ("-m", "vllm.entrypoints.openai.api_server")
METRICS = {"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting"}
TARGET = "requests_per_engine"
TIMEOUT_S = 2.0
READY_POLL_S = 0.2
KNOWN_TIMEOUT_S = 30.0
CONNECT_S = 3.0  # that an API replica needs at most to read its list again and to connect
KILL_TIMEOUT_S = 10.0
# Runs the program behind it, which gets SIGTERM when this replica dies, whatever it dies of.
END_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the replica has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Engine:
    """One engine. Serve sends it no requests: API replicas connect to its address."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._registry = open_registry(serve.get_replica_context().app_name)
        self._key = own_key() or self._shared_key()
        host, port = ray.util.get_node_ip_address(), _free_port()
        self._address = f"http://{host}:{port}"
        starter = [sys.executable, "-c", END_WITH_PARENT, str(os.getpid())]
        self._process = subprocess.Popen(
            [*starter, *command(options, host, port)], env=environment(options, self._key), stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._is_ending = threading.Event()
        self._reporter = threading.Thread(target=self._report, name="report to the registry", daemon=True)
        try:
            self._wait_until_ready()
            self._reporter.start()
            self._wait_until_known()
        except BaseException:
            self._kill()
            raise

    def _shared_key(self) -> str:
        """The key of the other engines, or a new one."""
        proposed = secrets.token_urlsafe(32)
        while not (key := str(ray.get(self._registry.key.remote(proposed)))):
            time.sleep(READY_POLL_S)
        return key

    def _wait_until_ready(self) -> None:
        path = "/ready" if self._options.engine == "toolwire" else "/health"
        with httpx.Client(timeout=TIMEOUT_S) as client:
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the engine ended with exit code {self._process.returncode}; see its output")
                try:
                    if client.get(self._address + path).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # it does not listen yet
                time.sleep(READY_POLL_S)

    def _wait_until_known(self) -> None:
        """Return when the API replicas use this engine: then Serve stops one that it replaces, perhaps the last one."""
        deadline_s = time.monotonic() + KNOWN_TIMEOUT_S
        ray.get(self._registry.report.remote(self._address, self._key))
        while not ray.get(self._registry.is_known.remote(self._address)) and time.monotonic() < deadline_s:
            time.sleep(READY_POLL_S)
        time.sleep(CONNECT_S)

    def _report(self) -> None:
        """Tell the registry once a second that the engine is there."""
        while not self._is_ending.wait(REPORT_INTERVAL_S) and self._process.poll() is None:
            try:
                ray.get(self._registry.report.remote(self._address, self._key))
            except RayError:  # it is being restarted
                logger.exception("the engine at %s cannot be reported", self._address)

    def check_health(self) -> None:
        """Called by Serve: raises where the engine has ended, and the replica is replaced."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the engine ended with exit code {self._process.returncode}")
        if not self._reporter.is_alive():
            raise RuntimeError("the engine is no longer reported to the registry")

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """Called by Serve: the requests that the engine has, running and waiting."""
        headers = {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            text = (await client.get(f"{self._address}/metrics", headers=headers)).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        found = {name: sum(one.value for one in samples if one.name == metric) for name, metric in METRICS.items()}
        return {**found, TARGET: self._options.requests_per_engine}

    def __del__(self) -> None:
        """Called by Serve before it ends the replica: no new request, and what runs ends or goes on elsewhere."""
        if not hasattr(self, "_reporter") or self._is_ending.is_set():  # it was never started, or has ended
            return
        self._is_ending.set()
        try:
            ray.get(self._registry.withdraw.remote(self._address), timeout=TIMEOUT_S)
        except RayError:
            logger.exception("the engine at %s cannot be withdrawn", self._address)
        if self._options.engine == "vllm":  # it fails requests that come later; toolwire's own engine sends them on
            time.sleep(CONNECT_S)
        self._process.terminate()
        try:
            self._process.wait(self._options.drain_timeout_s + KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        """With what it has started: vLLM's processes that hold the GPU are not the one that listens."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def command(options: Options, host: str, port: int) -> list[str]:
    """The command line of an engine that listens there."""
    more = shlex.split(options.engine_options)
    if options.engine == "toolwire":
        own = ["--model", options.model, "--drain-timeout-s", str(options.drain_timeout_s)]
        return [sys.executable, "-m", "server", "engine", "--listen", f"{host}:{port}", *own, *more]
    try:
        model = str(locate(options.model))
    except CannotStart as error:
        raise RuntimeError(str(error)) from error
    grammars = ["--enable-scale-out", "--structured-outputs-config", '{"backend": "guidance"}']
    drain = ["--shutdown-timeout", str(math.ceil(options.drain_timeout_s))]  # without it replies are aborted
    program = options.engine_program or "vllm"
    is_python = Path(program).name.startswith("python")
    start = [program, *VLLM_MODULE, "--model", model] if is_python else [program, "serve", model]
    return [*start, "--host", host, "--port", str(port), *grammars, *drain, *more]


def environment(options: Options, key: str) -> dict[str, str]:
    """The engine's environment: that of the replica, in which Ray names the GPUs, and the key."""
    name = "TOOLWIRE_ENGINE_KEY" if options.engine == "toolwire" else "VLLM_API_KEY"
    return {**os.environ, name: key}


def engines_for_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Autoscaling policy: as many engines as the requests need that run and wait on all of them together.

    Serve calls it in its controller, which has no options: the replicas report the target beside their load.
    """
    reported = context.aggregated_metrics or {}
    target = max(reported.get(TARGET, {}).values(), default=0.0)
    if not target:  # no replica has reported yet
        return context.target_num_replicas, {}
    num_requests = sum(sum(reported.get(name, {}).values()) for name in METRICS)
    return math.ceil(num_requests / target), {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
