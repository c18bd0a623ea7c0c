"""transformers' decode speed on a GPU, in a process of its own, which is ended when a measurement takes too long.

    python -m benchmarks.gpu_peers --shape 8B generate:256 continuous:256

Prints `ready` once the model is there, then one figure a line as JSON, in the order given. It ends where its standard
input ends, which `benchmarks.gpu` holds open.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, Any

import torch
import transformers

from benchmarks.engine import random_prompt
from benchmarks.gpu_figures import NO_TIME, TIME_LIMIT, Figure, Task, Way, measure, random_model

READY = "ready"
NAMES = {"generate": "generate", "continuous": "continuous batching"}
START_S, MEASUREMENT_S = 60.0, 30.0  # most seconds until the model is there, and of one measurement


@dataclass(frozen=True, slots=True)
class PeerTask:
    """One measurement: a way of `NAMES` and a batch size."""

    way: str
    batch: int

    def figure(self, shape: str, fault: str) -> Figure:
        """A figure without a measurement."""
        return Figure(shape, NAMES[self.way], self.batch, fault=fault)


def peer_tasks(batches: Sequence[int], *, continuous: bool) -> list[PeerTask]:
    """All measurements: generate() first, which is sure to end, and large batches, where speed counts most."""
    ways = ("generate", "continuous") if continuous else ("generate",)
    return [PeerTask(way, batch) for way in ways for batch in sorted(batches, reverse=True)]


def measure_peers(shape: str, device: torch.device, task: Task) -> list[Figure]:
    """Figures of transformers for a model of this shape, all of them until the task's deadline."""
    command = [
        *(sys.executable, "-m", "benchmarks.gpu_peers", "--shape", shape, "--device", str(device)),
        *("--prompt-tokens", str(task.prompt_tokens), "--steps", str(task.steps)),
    ]
    waiting = peer_tasks(task.batches, continuous=device.type == "cuda")
    return run_limited(command, shape, waiting, task.deadline_s)


def run_limited(
    command: Sequence[str],
    shape: str,
    waiting: list[PeerTask],
    deadline_s: float,
    measurement_s: float = MEASUREMENT_S,
) -> list[Figure]:
    """Figures of the process that `command` starts with tasks as last arguments, in the order of `waiting`.

    A measurement that takes longer than `measurement_s`, or longer than until the deadline, is recorded as `time
    limit`; the process is ended, and another one started for the rest.
    """
    figures: list[Figure] = []
    while waiting and time.monotonic() < deadline_s:
        found = _run_once(command, shape, waiting, deadline_s, measurement_s)
        figures += found
        waiting = waiting[len(found) :]
        if found and found[-1].fault == TIME_LIMIT:  # its other sizes would probably take as long
            waiting.sort(key=lambda one: NAMES[one.way] == found[-1].way)
    for one in waiting:
        _show(figures, one.figure(shape, NO_TIME))
    return figures


def _run_once(
    command: Sequence[str], shape: str, tasks: list[PeerTask], deadline_s: float, measurement_s: float
) -> list[Figure]:
    """Figures of the first tasks: up to the one that took too long or ended the process. At least one."""
    arguments = [f"{one.way}:{one.batch}" for one in tasks]
    figures: list[Figure] = []
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        reader = LineReader(process.stdout)
        try:
            first = reader.next(min(START_S, deadline_s - time.monotonic()))
            if first != READY:
                fault = TIME_LIMIT if first is None else f"the process ended: {_tail(errors)}"
                for one in tasks:
                    _show(figures, one.figure(shape, fault))
                return figures
            for one in tasks:
                line = reader.next(min(measurement_s, deadline_s - time.monotonic()))
                if line:
                    _show(figures, Figure(**json.loads(line)))
                    continue
                fault = TIME_LIMIT if line is None else f"the process ended: {_tail(errors)}"
                _show(figures, one.figure(shape, fault))
                return figures
        finally:
            process.kill()
            reader.join()
    return figures


def _show(figures: list[Figure], figure: Figure) -> None:
    print(json.dumps(asdict(figure)), flush=True)
    figures.append(figure)


class LineReader:
    """Lines of a process as they come: figures and `ready`, without what libraries print."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> str | None:
        """The next line, empty once the process has ended; None if there is none within this time."""
        try:
            return self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def join(self) -> None:
        """Wait for the end of the process."""
        self._thread.join()

    def _read(self) -> None:
        for line in self._stream:
            if line.startswith("{") or line.strip() == READY:
                self._lines.put(line.strip())
        self._lines.put("")


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-2:])[-250:]


def generate(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' generate() with two lengths, whose difference excludes prefill."""
    ids = torch.tensor([random_prompt(task.prompt_tokens, i) for i in range(batch)], device=model.device)
    seconds = []
    for new_tokens in (1, 1, 1 + task.steps):  # the first warms up
        began = time.perf_counter()
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)[0, -1].item()
        seconds.append(time.perf_counter() - began)
    return seconds[1], batch * task.steps / (seconds[2] - seconds[1])


def continuous(model: Any, batch: int, task: Task) -> tuple[float, float]:
    """transformers' continuous batching, by the times of its tokens: those while every stream is decoding."""
    prompts = [random_prompt(task.prompt_tokens, i) for i in range(batch)]
    new_tokens = 1 + task.steps
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1, pad_token_id=0)
    replies = list(model.generate_batch(prompts, generation_config=config, record_timestamps=True).values())
    written = sum(len(reply.generated_tokens) for reply in replies)
    if written != batch * new_tokens:
        faults = sorted({str(reply.error) for reply in replies if reply.error})
        raise RuntimeError(f"{written} tokens came back, {batch * new_tokens} were requested; {faults}")
    first_s = max(reply.timestamps[0] for reply in replies) - min(reply.created_time for reply in replies)
    return first_s, decode_rate([reply.timestamps for reply in replies])


def decode_rate(times_s: Sequence[Sequence[float]]) -> float:
    """Tokens per second from the last stream's first token to the first stream's last; raises ValueError if too few."""
    begin, end = max(times[0] for times in times_s), min(times[-1] for times in times_s)
    count = sum(begin < one <= end for times in times_s for one in times)
    if count < 2 * len(times_s):
        raise ValueError(f"only {count} tokens came while all streams were decoding; take more steps")
    return count / (end - begin)


def main(argv: list[str] | None = None) -> None:
    """Measure the given tasks in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("tasks", nargs="+", help="generate:256 or continuous:256")
    options = parser.parse_args(argv)
    task = Task((), options.prompt_tokens, options.steps, float("inf"))
    with torch.no_grad():  # in inference mode its batching, whose thread is not in it, fails
        model = random_model(options.shape, torch.device(options.device), "sdpa")
        ways: dict[str, Way] = {"generate": partial(generate, model), "continuous": partial(continuous, model)}
        print(READY, flush=True)
        for name in options.tasks:
            way, _, batch = name.partition(":")
            figure = measure(Figure(options.shape, NAMES[way], int(batch)), ways[way], None, task)
            print(json.dumps(asdict(figure)), flush=True)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    main()
