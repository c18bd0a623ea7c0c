"""The short version of benchmarks/faults.py: crowd, malformed requests, slow clients, kill -9, SIGTERM."""

import pytest

from benchmarks.crowd import OutOfShape, check_stream
from benchmarks.faults import Footprint, Scale, leaks, play
from benchmarks.malformed import KINDS, Malformed, Raw, fault_in, malformed

# After so short a warm-up caches and allocators still grow: by 16 % of the API process's 100 MB and 7 % of the engine's
# 440 MB at most, over three seeds. The long version allows 5 %.
SHORT = Scale(
    clients=24,
    seconds=5,
    malformed=400,
    lorises=16,
    killed_streams=8,
    drained_streams=32,
    warm_up_s=3,
    rss_tolerance=0.35,
)
SEED = 7


def test_a_server_survives_and_holds_nothing_afterwards() -> None:
    """One server through all of it, so that a fault of one scene shows in the next."""
    scenes = list(play(SHORT, SEED))
    assert {scene.name: scene.faults for scene in scenes} == {scene.name: [] for scene in scenes}
    crowd, bad = scenes[0].figures, scenes[1].figures
    assert crowd["ends"]["complete"] > 0
    assert crowd["ends"]["left in the middle"] > 0
    assert len(bad["kinds"]) == len(KINDS)


def test_the_same_number_and_seed_are_the_same_bytes() -> None:
    """A fault that cannot be repeated cannot be mended."""
    assert [malformed(number, 1) for number in range(50)] == [malformed(number, 1) for number in range(50)]
    assert malformed(0, 1) != malformed(0, 2)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (Raw(0, {}, b""), "hung up"),
        (Raw(500, {}, b"{}"), "500"),
        (Raw(400, {}, b"{}"), "x-request-id"),
        (Raw(400, {"x-request-id": "r"}, b"Bad Request"), "no error object"),
        (Raw(400, {"x-request-id": "r"}, b'{"error": {"message": "m"}}'), "lacks"),
    ],
)
def test_replies_out_of_shape_are_faults(reply: Raw, word: str) -> None:
    assert word in fault_in(Malformed("kind", b""), reply)


def test_a_reply_in_shape_is_none() -> None:
    body = b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'
    assert fault_in(Malformed("kind", b""), Raw(400, {"x-request-id": "r"}, body)) == ""


@pytest.mark.parametrize("data", [[], ['{"choices": []}'], ['{"id": "a", "choices": []}', "[DONE]"]])
def test_a_stream_that_ends_early_is_noticed(data: list[str]) -> None:
    with pytest.raises(OutOfShape):
        check_stream(data)


def test_leaks_are_named() -> None:
    clean = Footprint(100 << 20, 200 << 20, 20, 30, 0, 0, 0)
    assert leaks(clean, Footprint(104 << 20, 209 << 20, 21, 30, 0, 0, 0), 0.05) == []
    assert len(leaks(clean, Footprint(106 << 20, 211 << 20, 23, 33, 1, 1, 1), 0.05)) == 7
