"""Short version of benchmarks/faults.py: concurrent, malformed and slow clients, kill -9, SIGTERM."""

import pytest

from benchmarks.crowd import MalformedReply, check_stream
from benchmarks.faults import Footprint, Scale, leaks, run_parts
from benchmarks.malformed import KINDS, Malformed, Raw, fault_in, malformed

# After a short warm-up caches and allocators still grow: by at most 16 % of the API process's 100 MB and 7 % of the
# engine's 440 MB, over three seeds. The long version allows 5 %.
SHORT = Scale(
    clients=24,
    seconds=2,
    malformed=200,
    slow_clients=16,
    faults="engine killed",
    fault_streams=6,
    drained_streams=16,
    warm_up_s=2,
    rss_tolerance=0.35,
)
SEED = 7


def test_a_server_survives_faults_and_leaks_nothing() -> None:
    """All parts run on one server, so that a fault of one shows in the next."""
    parts = list(run_parts(SHORT, SEED))
    assert {part.name: part.faults for part in parts} == {part.name: [] for part in parts}
    crowd, bad = parts[0].figures, parts[1].figures
    assert crowd["ends"]["complete"] > 0
    assert crowd["ends"]["disconnected in the stream"] > 0
    assert len(bad["kinds"]) == len(KINDS)


def test_the_same_number_and_seed_are_the_same_bytes() -> None:
    """A fault that cannot be reproduced cannot be fixed."""
    assert [malformed(number, 1) for number in range(50)] == [malformed(number, 1) for number in range(50)]
    assert malformed(0, 1) != malformed(0, 2)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (Raw(0, {}, b""), "closed"),
        (Raw(500, {}, b"{}"), "500"),
        (Raw(400, {}, b"{}"), "x-request-id"),
        (Raw(400, {"x-request-id": "r"}, b"Bad Request"), "no error object"),
        (Raw(400, {"x-request-id": "r"}, b'{"error": {"message": "m"}}'), "lacks"),
    ],
)
def test_malformed_replies_are_faults(reply: Raw, word: str) -> None:
    assert word in fault_in(Malformed("kind", b""), reply)


def test_a_well_formed_error_is_no_fault() -> None:
    body = b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'
    assert fault_in(Malformed("kind", b""), Raw(400, {"x-request-id": "r"}, body)) == ""


@pytest.mark.parametrize("data", [[], ['{"choices": []}'], ['{"id": "a", "choices": []}', "[DONE]"]])
def test_an_incomplete_stream_is_a_malformed_reply(data: list[str]) -> None:
    with pytest.raises(MalformedReply):
        check_stream(data)


def test_leaks_are_named() -> None:
    clean = Footprint(100 << 20, 200 << 20, 20, 30, 0, 0, 0)
    assert leaks(clean, Footprint(104 << 20, 209 << 20, 21, 30, 0, 0, 0), 0.05) == []
    assert len(leaks(clean, Footprint(106 << 20, 211 << 20, 23, 33, 1, 1, 1), 0.05)) == 7
