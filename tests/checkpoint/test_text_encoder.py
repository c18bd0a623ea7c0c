"""Text of any length: the same ids in pieces, other threads running meanwhile, and a bound found without encoding."""

import threading
import time
from bisect import bisect_left

import pytest
from tokenizers import Tokenizer

from server.checkpoint.text_encoder import PIECE_CHARACTERS, TextEncoder
from tests.checkpoints import qwen_vocabulary

LINE = "Ein Satz über 3 Äpfel, déjà vu; 你好！  \n\n\tif (x) { return 1; }\r\nAnd so on\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Qwen's own, with NFC normalization."""
    return qwen_vocabulary()


def test_the_ids_and_positions_of_pieces_are_those_of_the_whole(tokenizer: Tokenizer) -> None:
    text = "".join(f"{i} {LINE}" for i in range(5 * PIECE_CHARACTERS // 2 // len(LINE)))
    whole = tokenizer.encode(text, add_special_tokens=False)
    encoder = TextEncoder(tokenizer)
    assert encoder.ids(text) == whole.ids
    starts = [start for start, _ in whole.offsets]
    places = [0, 1, 700, 701, 2 * PIECE_CHARACTERS, 2 * PIECE_CHARACTERS, len(text) - 1, len(text), len(text) + 5]
    assert encoder.count_before(text, places) == [bisect_left(starts, place) for place in places]


def test_other_threads_run_while_a_text_is_encoded(tokenizer: Tokenizer) -> None:
    """Every stream stood for as long as a long prompt was encoded: 1.5 s for 2 MB."""
    text = "".join(f"{i} {LINE}" for i in range(400_000 // len(LINE)))
    encoder = TextEncoder(tokenizer)
    thread = threading.Thread(target=encoder.ids, args=(text,))
    thread.start()
    started_s = last_s = time.perf_counter()
    worst_s = 0.0
    while thread.is_alive():
        time.sleep(0.001)
        now_s = time.perf_counter()
        worst_s, last_s = max(worst_s, now_s - last_s), now_s
    assert worst_s < (time.perf_counter() - started_s) / 3


@pytest.mark.parametrize("text", [" ", "e\u0301", "\u1112\u1161\u11ab", "a\n"])
def test_a_text_has_at_least_the_tokens_of_its_bound(tokenizer: Tokenizer, text: str) -> None:
    """The second and third are two and three characters that the normalizer composes."""
    encoder = TextEncoder(tokenizer)
    long = text * 20_000
    bound = encoder.min_tokens(long, 0)
    assert 20_000 // 128 <= bound <= len(encoder.ids(long))
