"""The engine as a process: it starts, answers, ends when told, and never outlives who started it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from server.messages import (
    Abort,
    Constraint,
    Delta,
    EngineFailed,
    Failed,
    FromEngine,
    Generate,
    Progress,
    Pulse,
    Ready,
    Sampling,
    Shutdown,
)
from server.model.cpu.library import available_isas
from server.settings import EngineSettings

ROOT = Path(__file__).parent.parent.parent
MODEL = str(ROOT / "server" / "demo_model")
SILENCE_S = 120


@dataclass
class Driver:
    """An engine process and our end of its socket."""

    process: subprocess.Popen[bytes]
    socket: "zmq.Socket[bytes]"

    def send(self, *messages: Generate | Abort | Shutdown) -> None:
        for message in messages:
            self.socket.send(msgspec.msgpack.encode(message))

    def mail(self) -> Iterator[FromEngine]:
        """Everything it tells, until it is silent."""
        decode = msgspec.msgpack.Decoder(list[FromEngine]).decode
        while self.socket.poll(SILENCE_S * 1000):
            yield from decode(self.socket.recv())

    def until(self, *kinds: type) -> FromEngine:
        return next(mail for mail in self.mail() if isinstance(mail, kinds))

    def ask(self, *requests: Generate) -> dict[str, list[Delta | Failed]]:
        """Send them, and collect what each is told up to its end."""
        self.send(*requests)
        told: dict[str, list[Delta | Failed]] = {request.id: [] for request in requests}
        open_ids = set(told)
        for mail in self.mail():
            if isinstance(mail, Delta | Failed):
                told[mail.id].append(mail)
                if isinstance(mail, Failed) or mail.finish is not None:
                    open_ids.discard(mail.id)
            if not open_ids:
                break
        return told


def make_config(checkpoint: str = MODEL, **engine: int | str) -> str:
    settings = EngineSettings(threads=1, **engine)  # type: ignore[arg-type]
    fields = {"checkpoint": checkpoint, "max_model_len": 256, "engine": settings, "stop_ids": (2,)}
    return msgspec.json.encode(fields).decode()


@contextlib.contextmanager
def engine(folder: Path, settings: str) -> Iterator[Driver]:
    address = f"ipc://{folder}/door"
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind(address)
    command = [sys.executable, "-m", "server.engine", "--address", address]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(settings.encode())
    process.stdin.close()
    try:
        yield Driver(process, socket)
    finally:
        process.kill()
        process.wait()
        context.destroy(linger=0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with engine(tmp_path_factory.mktemp("engine"), make_config(kv_cache_tokens=1024, dtype="float32")) as driver:
        assert isinstance(driver.until(Ready, EngineFailed), Ready)
        yield driver


def ids(told: list[Delta | Failed]) -> list[int]:
    return [token_id for mail in told if isinstance(mail, Delta) for token_id in mail.token_ids]


def test_engine_writes_the_same_alone_and_in_company(running: Driver) -> None:
    def request(index: int, run: str) -> Generate:
        prompt = [5, 6, 7, *range(10, 10 + 3 * index)]
        return Generate(f"{run}{index}", prompt, Sampling(max_tokens=6, temperature=1.0, seed=index))

    alone = [ids(running.ask(request(index, "alone"))[f"alone{index}"]) for index in range(4)]
    together = running.ask(*(request(index, "together") for index in range(4)))
    assert [ids(together[f"together{index}"]) for index in range(4)] == alone


@pytest.mark.skipif(not available_isas(), reason="no kernels for this CPU")
def test_long_seeded_replies_in_bfloat16_are_the_same_alone_in_a_crowd_and_behind_a_cached_head(tmp_path: Path) -> None:
    """One rounding that depends on batch mates, chunks or the cache changes a sample somewhere in a thousand tokens."""

    def request(index: int, run: str) -> Generate:
        prompt = [5, 6, 7, *range(10, 80), *range(100, 100 + 5 * index)]
        return Generate(f"{run}{index}", prompt, Sampling(max_tokens=70, temperature=1.2, seed=index, ignore_eos=True))

    with engine(tmp_path, make_config(kv_cache_tokens=4096, dtype="bfloat16")) as driver:
        assert isinstance(driver.until(Ready, EngineFailed), Ready)
        alone = [ids(driver.ask(request(index, "alone"))[f"alone{index}"]) for index in range(16)]
        assert len(set(map(tuple, alone))) == 16 and all(len(reply) == 70 for reply in alone)
        for run in ("crowd", "again"):
            together = driver.ask(*(request(index, run) for index in range(16)))
            assert [ids(together[f"{run}{index}"]) for index in range(16)] == alone


RESUMED = {
    "greedy": Sampling(max_tokens=24, temperature=0.0, ignore_eos=True),
    "sampled": Sampling(max_tokens=24, seed=3, top_p=0.9, top_k=50),
    "penalized": Sampling(
        max_tokens=24, seed=4, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.3, ignore_eos=True
    ),
    "logprobs": Sampling(max_tokens=24, seed=5, num_logprobs=2, min_tokens=12),
    "constrained": Sampling(max_tokens=24, seed=6, temperature=1.2),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_reply_begun_by_another_engine_goes_on_with_the_same_ids(running: Driver, kind: str) -> None:
    """A grammar, penalties or a seed that began at its start would write another text behind the pause."""
    constraint = Constraint("start: /[a-f]{9} and ([0-9]{3}|then [a-f]{4})/") if kind == "constrained" else None
    request = Generate(f"whole {kind}", [5, 6, 7, *range(10, 40)], RESUMED[kind], (2,), constraint)
    whole = running.ask(request)[request.id]
    written = ids(whole)
    assert len(written) >= 8
    count = 0
    for step, mail in enumerate(whole[:-1]):
        assert isinstance(mail, Delta)
        count += len(mail.token_ids)
        if step % 4 == 0:
            again = msgspec.structs.replace(request, id=f"{kind} {step}", reply_ids=written[:count])
            rest = running.ask(again)[again.id]
            assert ids(rest) == written[count:]
            if kind == "logprobs":
                scored = [[one for mail in mails for one in mail.logprobs or ()] for mails in (whole, rest)]  # type: ignore[union-attr]
                assert [one.token_id for one in scored[1]] == written[count:]
                expected = [one.logprob for one in scored[0][count:]]
                assert [one.logprob for one in scored[1]] == pytest.approx(expected, abs=1e-3)


def test_engine_keeps_to_a_constraint(running: Driver) -> None:
    constraint = Constraint("start: /(yes|no) and (yes|no)/")
    told = running.ask(Generate("c", [5, 6], Sampling(max_tokens=60), constraint=constraint))["c"]
    last = told[-1]
    assert isinstance(last, Delta)
    assert last.finish == "stop"
    assert sum(mail.forced for mail in told if isinstance(mail, Delta)) > 0


def test_constraint_that_does_not_compile_is_refused(running: Driver) -> None:
    told = running.ask(Generate("bad", [5], Sampling(max_tokens=5), constraint=Constraint("start: missing")))["bad"]
    assert [mail.kind for mail in told if isinstance(mail, Failed)] == ["bad_constraint"]


def test_abort_frees_what_a_running_request_held(running: Driver) -> None:
    running.send(Generate("long", [5, 6], Sampling(max_tokens=250), (), None))
    assert isinstance(running.until(Delta), Delta)
    running.send(Abort("long"))
    pulses = (mail for mail in running.mail() if isinstance(mail, Pulse))
    assert any(pulse.running == 0 and pulse.used_blocks == 0 for pulse in (next(pulses), next(pulses), next(pulses)))


def test_signals_are_left_to_the_parent_and_shutdown_ends_cleanly(running: Driver) -> None:
    """Ctrl-C and a container's stop reach the whole group; an engine that died of them would cut draining replies."""
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGTERM)
    assert ids(running.ask(Generate("after", [5], Sampling(max_tokens=2)))["after"])
    running.send(Generate("cut", [5], Sampling(max_tokens=250)), Shutdown())
    assert running.process.wait(20) == 0


def test_engine_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with engine(tmp_path, make_config(checkpoint=str(tmp_path))) as driver:
        told = driver.until(EngineFailed, Ready)
        assert isinstance(told, EngineFailed)
        assert str(tmp_path) in told.text
        assert driver.process.wait(20) == 2


def test_engine_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """An orphan would hold the device's memory, and the next start would not fit."""
    script = (
        "import subprocess, sys, time\n"
        f"command = [sys.executable, '-m', 'server.engine', '--address', 'ipc://{tmp_path}/door']\n"
        "engine = subprocess.Popen(command, stdin=subprocess.PIPE)\n"
        f"engine.stdin.write({make_config().encode()!r})\n"
        "engine.stdin.close()\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind(f"ipc://{tmp_path}/door")
    assert isinstance(next(iter(Driver(starter, socket).mail())), Progress)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline_s = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "the engine is still there"
        time.sleep(0.1)
    context.destroy(linger=0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
