"""Time that prompts and new sequences take from running streams in one step."""

from tests.engine.toys import Bench, ask


def test_slow_device_computes_small_chunks_beside_streams() -> None:
    bench = Bench(num_blocks=600, block_size=4, max_batch_tokens=1000, max_model_len=2400)
    bench.model.on_launch = lambda num_tokens: bench.clock.advance(0.002 * num_tokens)
    bench.add(ask("stream", [1] * 40, max_tokens=100, ignore_eos=True))
    bench.step()
    bench.add(ask("long", [3] * 1800, max_tokens=2))
    for _ in range(10):
        bench.step()
    assert 64 <= bench.model.largest_step <= 110, "0.2 s is a hundred tokens on this device"
    assert len(bench.ids("stream")) == 11
    bench.scheduler.abort("stream")
    bench.step()
    assert bench.model.largest_step > 500, "nobody is held up any more"


def test_a_fast_model_pauses_streams_for_a_few_of_its_steps_alone() -> None:
    """Prompts took 0.2 s a step beside streams whose own steps take 5 ms: 40 times their pace."""
    bench = Bench(num_blocks=600, block_size=4, max_batch_tokens=1000, max_model_len=2400)
    bench.model.on_launch = lambda num_tokens: bench.clock.advance(0.005 + 0.0001 * num_tokens)
    bench.add(ask("stream", [1] * 40, max_tokens=100, ignore_eos=True))
    for _ in range(10):
        bench.step()
    bench.add(ask("long", [3] * 1800, max_tokens=2))
    for _ in range(5):
        before_s = bench.clock()
        bench.step()
        assert bench.clock() - before_s < 0.05
    assert len(bench.ids("stream")) == 15


def test_the_pause_stays_the_same_as_a_prompt_grows() -> None:
    """Attention over what stands before a chunk was not counted: chunks of 64 tokens took three times the pause."""
    bench = Bench(num_blocks=4000, block_size=4, max_batch_tokens=1000, max_model_len=3800)
    positions = {"long": 0, "next": 0}

    def compute(num_tokens: int) -> None:
        begins = [one.num_computed for one in bench.scheduler.running if one.id in positions and one.in_prefill]
        bench.clock.advance(0.005 + num_tokens * (0.0001 + sum(begins) * 3e-7))

    bench.model.on_launch = compute
    bench.add(ask("stream", [1] * 40, max_tokens=3000, ignore_eos=True))
    for _ in range(10):
        bench.step()
    durations_s = []
    for name, token_id in (("long", 3), ("next", 4)):
        bench.add(ask(name, [token_id] * 3000, max_tokens=1))
        while bench.end(name) is None:
            before_s = bench.clock()
            bench.step()
            durations_s.append(bench.clock() - before_s)
    assert max(durations_s) < 0.04, durations_s
    assert len(durations_s) < 500, "prompts progress beside the stream"


def test_a_crowd_begins_a_part_at_a_time_beside_a_stream() -> None:
    """A request for 128 choices began in one step, and every stream stood still while all its rows were computed."""
    bench = Bench(num_blocks=600, block_size=4, max_batch_tokens=1000, max_running=200)
    bench.add(ask("stream", [1, 2], max_tokens=40, ignore_eos=True))
    bench.step()
    for i in range(100):
        bench.add(ask(f"choice{i}", [3, 4, 5], max_tokens=1))
    for _ in range(4):
        num_ended = sum(bench.end(f"choice{i}") is not None for i in range(100))
        bench.step()
        assert sum(bench.end(f"choice{i}") is not None for i in range(100)) - num_ended <= 32
    assert all(bench.end(f"choice{i}") for i in range(100))
    assert len(bench.ids("stream")) == 5
