"""The real pynvml against a library that tells what the test wants."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from server.messages import DeviceReading
from tests.memory.fake_nvml import DRIVER_NOT_LOADED, ENABLED, GIB, GPU_IS_LOST, NO_PERMISSION, FakeNvml

ROOT = Path(__file__).parents[2]
A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"


class Asked:
    """The probe in a process of its own."""

    def __init__(self, environment: dict[str, str], index: int, uuid: str, visible: str | None, reserved: int | None):
        arguments = [
            str(index),
            uuid,
            "unset" if visible is None else visible,
            "none" if reserved is None else str(reserved),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.memory.probe_process", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> list[DeviceReading]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return msgspec.json.decode(self.process.stdout.readline(), type=list[DeviceReading])

    def close(self) -> str:
        """Ends it; returns what it logged."""
        return self.process.communicate(timeout=20)[1]


Ask = Callable[..., Asked]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FakeNvml]:
    return lambda *options: FakeNvml(tmp_path_factory.mktemp("nvml"), *options)


@pytest.fixture
def nvml(library: Callable[..., FakeNvml]) -> FakeNvml:
    return library()


@pytest.fixture
def ask() -> Iterator[Ask]:
    started: list[Asked] = []

    def start(
        environment: dict[str, str],
        index: int = 0,
        uuid: str = "",
        visible: str | None = None,
        reserved: int | None = None,
    ) -> Asked:
        started.append(Asked(environment, index, uuid, visible, reserved))
        return started[-1]

    yield start
    for asked in started:
        if asked.process.poll() is None:
            asked.close()


def test_another_process_takes_8_gib_and_gives_them_back(nvml: FakeNvml, ask: Ask) -> None:
    card = nvml.add_card(A, 24 * GIB, used=5 * GIB, own=4 * GIB)
    asked = ask(nvml.environment)
    (before,) = asked.read()
    assert (before.source, before.uuid, before.name) == ("nvml", A, "Fake H1")
    assert (before.total, before.used, before.free, before.own) == (24 * GIB, 5 * GIB, 19 * GIB, 4 * GIB)
    nvml.take(card, 8 * GIB)
    (during,) = asked.read()
    assert during.free == before.free - 8 * GIB and during.own == before.own
    assert during.processes == ((4242, 8 * GIB), (asked.process.pid, 4 * GIB))
    nvml.take(card, -8 * GIB)
    assert asked.read()[0].free == before.free


def test_two_cards_in_swapped_order_are_matched_by_cuda_visible_devices(nvml: FakeNvml, ask: Ask) -> None:
    nvml.add_card(A, 24 * GIB)
    nvml.add_card(B, 80 * GIB)
    assert [reading.uuid for reading in ask(nvml.environment, visible="1,0").read()] == [B, A]
    assert [reading.uuid for reading in ask(nvml.environment, index=1, visible="1,0").read()] == [A, B]
    assert [reading.uuid for reading in ask(nvml.environment, visible="1").read()] == [B]
    assert [reading.uuid for reading in ask(nvml.environment, visible="GPU-bbbb").read()] == [B]


def test_torchs_uuid_wins_over_the_order(nvml: FakeNvml, ask: Ask) -> None:
    """CUDA sorts by speed where CUDA_DEVICE_ORDER is not set: an index alone names the wrong card."""
    nvml.add_card(A, 24 * GIB)
    nvml.add_card(B, 80 * GIB)
    assert ask(nvml.environment, index=0, uuid=B.removeprefix("GPU-")).read()[0].uuid == B


def test_a_mig_slice_is_read_not_its_card(nvml: FakeNvml, ask: Ask) -> None:
    card = nvml.add_card(A, 80 * GIB, used=60 * GIB)
    card.mig = ENABLED
    for place, uuid in ((1, "MIG-11111111"), (2, "MIG-22222222")):  # the first place is empty
        card.slices[place].uuid = uuid.encode()
        card.slices[place].instance, card.slices[place].compute = 6 + place, 0
        card.slices[place].total, card.slices[place].used = 20 * GIB, place * GIB
    (reading,) = ask(nvml.environment, visible="MIG-22222222").read()
    assert (reading.uuid, reading.total, reading.free) == ("MIG-22222222", 20 * GIB, 18 * GIB)
    assert reading.utilisation is None and reading.temperature_c == 55  # slices have no utilisation of their own
    assert ask(nvml.environment, visible=f"MIG-{A}/7/0").read()[0].uuid == "MIG-11111111"
    assert ask(nvml.environment, visible="0").read()[0].uuid == "MIG-11111111"
    assert ask(nvml.environment, uuid="22222222").read()[0].uuid == "MIG-22222222"


def test_health_and_throttling_are_told(nvml: FakeNvml, ask: Ask) -> None:
    card = nvml.add_card(A, 24 * GIB)
    card.throttle = 0x4 | 0x40
    asked = ask(nvml.environment)
    (fine,) = asked.read()
    assert fine.healthy and fine.throttled == ("power cap", "hardware thermal")
    assert (fine.utilisation, fine.temperature_c) == (0.4, 55)
    card.xid = 31  # a program's own fault
    assert asked.read()[0].healthy
    card.xid = 79  # fallen off the bus
    (broken,) = asked.read()
    assert not broken.healthy and broken.note == "Xid 79"


def test_uncorrected_memory_errors_make_a_card_unhealthy(nvml: FakeNvml, ask: Ask) -> None:
    nvml.add_card(A, 24 * GIB).memory_errors = 2
    assert ask(nvml.environment).read()[0].note == "2 uncorrected memory errors"


def test_a_lost_card_falls_back_to_torch_and_warns_once(nvml: FakeNvml, ask: Ask) -> None:
    card = nvml.add_card(A, 24 * GIB, used=5 * GIB)
    asked = ask(nvml.environment, reserved=3 * GIB)
    assert asked.read()[0].source == "nvml"
    card.fault = GPU_IS_LOST
    for _ in range(3):
        (lost,) = asked.read()
        assert lost.source == "torch" and not lost.healthy
        assert (lost.total, lost.free, lost.own) == (24 * GIB, 9 * GIB, 3 * GIB)
    card.fault = 0
    assert any(asked.read()[0].source == "nvml" for _ in range(60)), "a card that answers again is read again"
    log = asked.close()
    assert log.count("WARNING") == 1 and "GPU is lost" in log and "torch's own figures" in log


def test_a_lost_card_without_torch_keeps_the_last_figures(nvml: FakeNvml, ask: Ask) -> None:
    card = nvml.add_card(A, 24 * GIB, used=5 * GIB)
    asked = ask(nvml.environment)
    asked.read()
    card.fault = GPU_IS_LOST
    (lost,) = asked.read()
    assert (lost.free, lost.healthy, lost.note) == (19 * GIB, False, "NVML: GPU is lost")


@pytest.mark.parametrize("fault", [NO_PERMISSION, DRIVER_NOT_LOADED])
def test_nvml_that_refuses_means_torchs_figures(nvml: FakeNvml, ask: Ask, fault: int) -> None:
    nvml.figures.init_fault = fault
    asked = ask(nvml.environment, reserved=GIB)
    (reading,) = asked.read()
    assert (reading.source, reading.healthy, reading.own) == ("torch", True, GIB)
    asked.read()
    assert asked.close().count("WARNING") == 1


def test_a_card_that_denies_its_memory_means_torchs_figures(nvml: FakeNvml, ask: Ask) -> None:
    nvml.add_card(A, 24 * GIB).fault = NO_PERMISSION
    assert ask(nvml.environment, reserved=GIB).read()[0].source == "torch"


def test_a_library_that_cannot_be_loaded_means_torchs_figures(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # found first, and no library
    asked = ask({"LD_LIBRARY_PATH": str(tmp_path)}, reserved=GIB)
    assert asked.read()[0].source == "torch"
    assert "NVML Shared Library Not Found" in asked.close()


def test_an_old_driver_lacks_functions_but_tells_memory(library: Callable[..., FakeNvml], ask: Ask) -> None:
    nvml = library("-DOLD_DRIVER")
    nvml.add_card(A, 24 * GIB, used=GIB)
    (reading,) = ask(nvml.environment).read()
    assert (reading.source, reading.free, reading.throttled) == ("nvml", 23 * GIB, ())
    assert reading.temperature_c == 55


def test_in_a_container_torch_says_what_is_ours(nvml: FakeNvml, ask: Ask) -> None:
    """There NVML lists the host's process ids, or none: counting ours by pid would give 0."""
    nvml.add_card(A, 24 * GIB, used=5 * GIB)
    nvml.figures.no_process_list = 1
    (reading,) = ask(nvml.environment, reserved=4 * GIB).read()
    assert (reading.source, reading.own, reading.processes) == ("nvml", 4 * GIB, ())


def test_a_device_that_cuda_hides_is_refused(nvml: FakeNvml, ask: Ask) -> None:
    nvml.add_card(A, 24 * GIB)
    asked = ask(nvml.environment, index=0, visible="7", reserved=GIB)
    assert asked.read()[0].source == "torch"
    assert "NVML lists no device" in asked.close()
