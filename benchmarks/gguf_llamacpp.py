"""llama.cpp's side of `benchmarks/gguf_text.py`; run with the interpreter of its environment.

    PEERS_DIR/llamacpp/bin/python -m benchmarks.gguf_llamacpp FILE.gguf < REQUEST.json > ANSWER.json

Decodes greedily behind each prompt and scores windows of a text, with llama.cpp's own products. Times
are those of `llama_decode` alone.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Request:
    """Work for llama.cpp."""

    texts: list[str]  # to be encoded
    prompts: list[list[int]]
    count: int  # greedy ids behind each
    windows: list[list[int]]  # to be scored
    threads: int


@dataclass(frozen=True)
class Decoded:
    """Greedy ids, by how many logits each was ahead of the second, and the seconds that those behind the first took."""

    ids: list[int]
    margins: list[float]
    seconds: float = 0.0


class LlamaCpp:
    """One model and one sequence, through llama.cpp's C interface."""

    def __init__(self, path: str, length: int, threads: int) -> None:
        # Here, not at the top: it is installed beside llama.cpp alone.
        import llama_cpp

        self._lib: Any = llama_cpp
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(path.encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self._size = self._lib.llama_vocab_n_tokens(self._vocabulary)
        self._position = 0
        self.seconds = 0.0

    def encode(self, text: str) -> list[int]:
        """The ids of plain text."""
        raw = text.encode()
        ids = (self._lib.llama_token * (len(raw) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), ids, len(raw) + 8, False, False)
        return list(ids[0:count])

    def begin(self) -> None:
        """Forget everything decoded so far."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._position = 0

    def logits(self, token_ids: list[int], *, of_all: bool = False) -> NDArray[np.float64]:
        """Logits behind the last of these further ids, or behind each: [ids, vocabulary]."""
        batch = self._lib.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for place, token_id in enumerate(token_ids):
            batch.token[place], batch.pos[place] = token_id, self._position + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = of_all or place == len(token_ids) - 1
        began_s = time.perf_counter()
        if self._lib.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot decode this batch")
        self.seconds += time.perf_counter() - began_s
        self._position += len(token_ids)
        places = range(len(token_ids)) if of_all else [len(token_ids) - 1]
        pointers = [self._lib.llama_get_logits_ith(self._context, place) for place in places]
        rows = [np.ctypeslib.as_array(pointer, (self._size,)).astype(np.float64) for pointer in pointers]
        self._lib.llama_batch_free(batch)
        return np.stack(rows)


def decode(model: LlamaCpp, prompt: list[int], count: int) -> Decoded:
    """Greedy ids behind a prompt, and by how much each was ahead of the second."""
    model.begin()
    ids, margins, pending = list[int](), list[float](), prompt
    for place in range(count):
        if place == 1:
            model.seconds = 0.0
        logits = model.logits(pending)[0]
        second, first = np.argsort(logits)[-2:]
        ids.append(int(first))
        margins.append(float(logits[first] - logits[second]))
        pending = [int(first)]
    return Decoded(ids, margins, model.seconds)


def score(model: LlamaCpp, window: list[int]) -> float:
    """Log probability of the ids of a window behind its first."""
    model.begin()
    logits = model.logits(window[:-1], of_all=True)
    return sum(log_probability(row, token_id) for row, token_id in zip(logits, window[1:], strict=True))


def log_probability(logits: NDArray[np.float64], token_id: int) -> float:
    """Of one id."""
    highest = logits.max()
    return float(logits[token_id] - highest - np.log(np.exp(logits - highest).sum()))


def main() -> None:
    """Answer the request on standard input."""
    request = Request(**json.load(sys.stdin))
    longest = max(map(len, [*request.prompts, *request.windows]))
    model = LlamaCpp(sys.argv[1], longest + request.count, request.threads)
    answer: dict[str, Any] = {
        "encoded": [model.encode(text) for text in request.texts],
        "decoded": [vars(decode(model, prompt, request.count)) for prompt in request.prompts],
        "scores": [score(model, window) for window in request.windows],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
