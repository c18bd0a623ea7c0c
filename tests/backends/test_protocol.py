"""Messages between machines: their number, and sums of what several engines report."""

import hashlib
import json
from typing import Any, get_args

import msgspec

from server import messages
from server.backends import protocol
from server.backends.protocol import PROTOCOL, FromRemote, ToRemote, Welcome
from server.backends.reports import COUNTED, MEASURED, joined_pulse, joined_ready
from server.checkpoint.fingerprint import Fingerprint
from server.messages import DeviceReading, MemoryReport, Pulse, Ready

# Digest of the messages of each protocol. Another digest is another protocol: count PROTOCOL up and add a line.
DIGESTS = {1: "b7d9c2725ba6e232", 2: "aad0e3142c5fcce6", 3: "7914a3c80c1ff835"}


def test_another_form_of_a_message_is_another_protocol() -> None:
    """Machines are updated one after another: fields in another order would be read as each other."""
    kinds: list[Any] = [*get_args(ToRemote), *get_args(FromRemote), Welcome]
    _, components = msgspec.json.schema_components(kinds)
    structs = {**vars(messages), **vars(protocol), "Fingerprint": Fingerprint}
    form = {
        name: (_without_words(schema), [field.name for field in msgspec.structs.fields(structs[name])])
        for name, schema in components.items()
    }
    text = json.dumps(form, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[PROTOCOL]


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_words(value) for key, value in schema.items() if key != "description"}
    return [_without_words(one) for one in schema] if isinstance(schema, list) else schema


def test_every_count_of_a_heartbeat_is_summed() -> None:
    """A counter that is left out would stand at zero in the metrics of a server with engines elsewhere."""
    counts = {field.name for field in msgspec.structs.fields(Pulse)} - {"time_s", "memory"}
    assert counts - set(COUNTED) == {"num_adapters", "running_adapters", "waiting_adapters"}  # of an engine here
    pulse = Pulse(**{name: number for number, name in enumerate(["time_s", *COUNTED], start=5)})  # type: ignore[arg-type]
    joined = joined_pulse([pulse, pulse])
    assert joined == Pulse(5, **{name: 2 * getattr(pulse, name) for name in COUNTED})


def test_memory_reports_are_one_report() -> None:
    names = {field.name for field in msgspec.structs.fields(MemoryReport)}
    assert names - set(MEASURED) == {"level", "devices", "block_bytes", "events", "reading_age_s"}
    devices = [DeviceReading(name, name, "host", 10, 5, 5) for name in ("a", "b")]
    reports = [
        MemoryReport("tight", (devices[0],), kv_bytes=3, events=((2.0, "later"),), reading_age_s=1.0),
        MemoryReport("calm", (devices[1],), kv_bytes=4, events=((1.0, "first"),)),
    ]
    joined = joined_pulse([Pulse(0.0, 0, 0, 0, 0, 0, memory=one) for one in reports]).memory
    assert joined == MemoryReport(
        "tight", tuple(devices), kv_bytes=7, events=((1.0, "first"), (2.0, "later")), reading_age_s=1.0
    )
    assert joined_pulse([Pulse(0.0, 0, 0, 0, 0, 0)]).memory is None


def test_the_shortest_window_of_all_engines_is_the_server_s() -> None:
    """A prompt that fits one engine alone could not go on elsewhere."""
    engines = [Ready("cpu", "float32", 100, length, 10, 16, 1, 1.0) for length in (64, 32)]
    joined = joined_ready(engines)
    assert (joined.max_model_len, joined.num_blocks, joined.device) == (32, 20, "cpu")
