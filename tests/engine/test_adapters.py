"""Adapters in the engine without a model: their cached prefixes, their lives, and loading beside the steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.engine.adapters.loader import AdapterLoader
from server.engine.adapters.table import AdapterTable
from server.engine.blocks import root_hash
from server.errors import CannotStart
from server.messages import AdapterChanged, Failed, Generate, LoadAdapter
from server.model.batch import Batch
from tests.engine.toys import Bench, ask

PROMPT = [1, 2, 3, 4, 5, 6, 1, 2, 3]


def bench_with(*names: str) -> Bench:
    """A bench whose scheduler knows adapters of these names, each with a digest of its own."""
    bench = Bench(num_blocks=64, block_size=4)
    for name in names:
        bench.scheduler.adapters.add(name, name.encode(), 1)
    return bench


def test_adapters_share_no_cached_prefix_with_each_other_or_with_the_base_model() -> None:
    """Keys and values of one adapter are wrong for another: a shared block would change replies without a sign."""
    bench = bench_with("one", "two")
    for number, adapter in enumerate(("", "one", "two", "one", "")):
        bench.add(ask(str(number), PROMPT, max_tokens=1, adapter=adapter))
        bench.run()
    assert [bench.cached(str(number)) for number in range(5)] == [0, 0, 0, 8, 8]


def test_the_same_name_with_other_weights_shares_nothing_and_the_same_weights_do() -> None:
    bench = bench_with("one")
    table = bench.scheduler.adapters
    for number, digest in enumerate((b"one", b"other", b"one")):
        if number:
            table.remove("one")
            table.add("one", digest, 1)
        bench.add(ask(str(number), PROMPT, max_tokens=1, adapter="one"))
        bench.run()
    assert [bench.cached(str(number)) for number in range(3)] == [0, 0, 8]


def test_no_salt_stands_for_an_adapter() -> None:
    """A client that could choose an adapter's root would fill its cache with the base model's blocks."""
    digest = b"0123456789abcdef"
    salts = ("", "x", digest.decode(), f"{digest.decode()}:x")
    roots = [root_hash(salt, adapter) for salt in salts for adapter in (b"", digest)]
    assert len(set(roots)) == len(roots)


def test_rows_carry_the_handle_whichever_way_they_are_made() -> None:
    """Chunks of prompts, decoded tokens, drafts, and steps that are launched before the one before is read."""
    handles: dict[str, set[int]] = {}
    for overlap in (False, True):
        bench = Bench(
            num_blocks=64, block_size=4, max_batch_tokens=5, overlap=overlap, draft_tokens=0 if overlap else 3
        )
        adapter = bench.scheduler.adapters.add("one", b"one", 1)
        seen = handles.setdefault(str(overlap), set())
        launch = bench.model.launch

        def watch(batch: Batch, launch: Callable[[Batch], Batch] = launch, seen: set[int] = seen) -> Batch:
            seen.update(row.adapter for row in batch.rows)
            return launch(batch)

        bench.model.launch = watch  # type: ignore[method-assign]
        bench.add(ask("a", PROMPT * 2, max_tokens=12, adapter="one", ignore_eos=True))
        bench.run()
        assert len(bench.ids("a")) == 12 and seen == {adapter.handle}
        assert not overlap or bench.model.num_overlapped > 0


def test_an_unknown_adapter_is_refused() -> None:
    bench = bench_with("one")
    assert not bench.add(ask("a", PROMPT, adapter="two"))
    assert bench.end("a") == "unknown_model"


def test_an_adapter_lives_as_long_as_its_last_sequence() -> None:
    """Freed too early, its weights would be read after they are gone; freed never, memory would leak."""
    bench = bench_with("one")
    table = bench.scheduler.adapters
    bench.add(ask("runs", PROMPT, max_tokens=50, adapter="one", ignore_eos=True))
    bench.add(ask("aborted", PROMPT, max_tokens=50, adapter="one", ignore_eos=True))
    bench.step()
    assert table.remove("one") and not table.remove("one")
    assert table.take_unused() == [] and table.num_bytes == 1
    assert not bench.add(ask("late", PROMPT, adapter="one"))
    bench.scheduler.abort("aborted")
    assert table.take_unused() == []
    bench.run()
    assert [one.name for one in table.take_unused()] == ["one"] and table.num_bytes == 0


@dataclass
class ToyAdapter:
    digest: bytes
    num_bytes: int


@dataclass
class ToyHolder:
    """Reads the adapter `bad` as none, `broken` with a fault of its own, and others when the test lets it."""

    may_measure: threading.Event = field(default_factory=threading.Event)
    may_read: threading.Event = field(default_factory=threading.Event)
    installed: dict[int, Any] = field(default_factory=dict)

    def size_of_adapter(self, folder: str) -> int:
        assert self.may_measure.wait(10)
        if folder == "missing":
            raise CannotStart("there is no such folder")
        if folder == "odd":
            raise OSError("a fault nobody thought of")
        return 10

    def read_adapter(self, folder: str) -> ToyAdapter:
        assert self.may_read.wait(10)
        if folder == "bad":
            raise CannotStart("it is of another model")
        if folder == "broken":
            raise ValueError("a fault nobody thought of")
        return ToyAdapter(folder.encode(), 12)

    def install_adapter(self, handle: int, adapter: Any) -> None:
        self.installed[handle] = adapter

    def drop_adapter(self, handle: int) -> None:
        del self.installed[handle]


class Setting:
    """A loader over a toy holder, with room for some bytes."""

    def __init__(self, room: int = 100) -> None:
        self.holder, self.table = ToyHolder(), AdapterTable()
        self.room = room
        self.woken = threading.Event()
        self.loader = AdapterLoader(self.holder, self.table, self.reserve, self.woken.set)

    def reserve(self, num_bytes: int) -> str:
        if num_bytes > self.room:
            return "there is no memory for it"
        self.room -= num_bytes
        return ""

    def finish(self) -> tuple[list[AdapterChanged], list[Generate]]:
        """What has been read when the holder may read, header and weights."""
        self.holder.may_measure.set()
        self.holder.may_read.set()
        while True:
            assert self.woken.wait(10)
            self.woken.clear()
            changed, requests = self.loader.finish()
            if changed:
                return changed, requests


@pytest.fixture
def setting() -> Any:
    made = Setting()
    yield made
    made.holder.may_measure.set()
    made.holder.may_read.set()
    made.loader.close()


def test_a_header_on_a_slow_disk_holds_up_no_step(setting: Setting) -> None:
    """It was read by the thread that computes the steps: every stream stood still until the disk answered."""
    computes = threading.Thread(target=lambda: setting.loader.load(LoadAdapter("one", "folder")))
    computes.start()
    computes.join(5)
    assert not computes.is_alive()
    waiting = ask("a", [1], adapter="one")
    assert setting.loader.defer(waiting)
    assert setting.loader.finish() == ([], []) and setting.room == 100
    assert setting.finish() == ([AdapterChanged("one")], [waiting])
    assert setting.room == 88


def test_requests_behind_a_load_wait_for_it(setting: Setting) -> None:
    """An engine that was started again gets loads and requests in one go; none of them may be refused."""
    assert setting.loader.load(LoadAdapter("one", "folder")) is None
    first, second = ask("a", [1], adapter="one"), ask("b", [1], adapter="one")
    assert setting.loader.defer(first) and setting.loader.defer(second)
    assert not setting.loader.defer(ask("c", [1]))
    setting.loader.abort("b")
    assert setting.loader.finish() == ([], [])
    assert setting.finish() == ([AdapterChanged("one")], [first])
    assert setting.table.find("one") is not None and setting.room == 88
    assert setting.loader.unload("one") == AdapterChanged("one")
    setting.loader.finish()
    assert setting.room == 100 and setting.holder.installed == {}


@pytest.mark.parametrize(("folder", "words"), [("bad", "another model"), ("broken", "nobody thought of")])
def test_a_load_that_fails_gives_its_memory_back(setting: Setting, folder: str, words: str) -> None:
    assert setting.loader.load(LoadAdapter("one", folder)) is None
    waiting = ask("a", [1], adapter="one")
    assert setting.loader.defer(waiting)
    (changed,), requests = setting.finish()
    assert words in changed.fault and requests == [waiting]
    assert setting.room == 100 and setting.table.find("one") is None


def test_loads_that_cannot_begin(setting: Setting) -> None:
    assert setting.loader.load(LoadAdapter("one", "folder")) is None
    fault = setting.loader.load(LoadAdapter("one", "folder"))
    assert fault is not None and "already" in fault.fault
    assert "being loaded" in setting.loader.unload("one").fault
    setting.finish()
    fault = setting.loader.load(LoadAdapter("one", "folder"))
    assert fault is not None and "already" in fault.fault


@pytest.mark.parametrize(
    ("folder", "room", "words"),
    [
        ("missing", 100, "no such folder"),
        ("odd", 100, "nobody thought of"),  # which would end the engine's loop
        ("folder", 5, "no memory"),
    ],
)
def test_loads_that_end_at_the_header(setting: Setting, folder: str, room: int, words: str) -> None:
    setting.room = room
    assert setting.loader.load(LoadAdapter("two", folder)) is None
    waiting = ask("a", [1], adapter="two")
    assert setting.loader.defer(waiting)
    (changed,), requests = setting.finish()
    assert words in changed.fault and requests == [waiting]
    assert setting.room == room and setting.table.find("two") is None
    assert setting.loader.load(LoadAdapter("two", folder)) is None


def test_an_adapter_that_is_larger_than_its_header_said_is_refused_where_there_is_no_memory(setting: Setting) -> None:
    """Installed although nothing was counted for the rest, it took memory of others, and gave back too much later."""
    setting.room = 11
    assert setting.loader.load(LoadAdapter("one", "folder")) is None
    (changed,), _ = setting.finish()
    assert "no memory" in changed.fault
    assert setting.room == 11 and setting.holder.installed == {} and setting.table.find("one") is None


def test_an_adapter_that_is_not_there_can_be_unloaded(setting: Setting) -> None:
    """An engine that was started again could not load it: else its name could be neither unloaded nor loaded."""
    assert setting.loader.unload("one") == AdapterChanged("one")


def test_a_refusal_names_the_adapter() -> None:
    bench = bench_with()
    bench.add(ask("a", PROMPT, adapter="gone"))
    (failed,) = bench.told["a"]
    assert isinstance(failed, Failed) and "gone" in failed.text
