"""Memory plan of an engine at start-up: called by the engine's composition root in this order.

probe = open_probe(...)                       readings of the device
estimate = refuse_early(..., reading)         CannotStart before a byte of weights is read
plan = replan(estimate, reading, ...)         after loading and the profile run; logs estimate against measurement
guard = Guard.for_engine(plan, io)
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.config_json import read_config
from server.errors import CannotStart
from server.memory.adapters import merged_parts, sizes_of
from server.memory.budget import Plan, demand_of, device_memory_of, divide, plan
from server.memory.headers import Tensor, read_headers
from server.memory.host import HostProbe
from server.memory.probe import DeviceSelector, GpuProbe
from server.memory.report import as_text, refuse, rows, size
from server.memory.shape import Shape, read_shape
from server.memory.watcher import Probe
from server.messages import DeviceReading
from server.settings import EngineSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes measured after loading and in a profile run."""

    weights: int  # with those of the adapters
    activations: int  # peak of the largest step above what is held at rest, without adapters


@dataclass(frozen=True, slots=True)
class Estimate:
    """The plan before loading, and its inputs."""

    shape: Shape
    tensors: tuple[Tensor, ...]
    plan: Plan


def open_probe(device: str, choice: Literal["auto", "nvml", "host"], selector: DeviceSelector) -> Probe:
    """The probe for a model on `device` ("cpu" or "cuda"); `choice` overrides it.

    Raises CannotStart if NVML is requested explicitly and neither NVML nor torch has figures.
    """
    if choice == "host" or (choice == "auto" and device == "cpu"):
        return HostProbe()
    probe = GpuProbe(selector)
    if not probe.read():
        raise CannotStart("--memory-probe nvml, but NVML shows no device; the warning above says why")
    return probe


def refuse_early(checkpoint: Path, max_model_len: int, engine: EngineSettings, reading: DeviceReading) -> Estimate:
    """Estimate the plan from headers and configuration; raises CannotStart with the table if it does not fit."""
    shape, tensors = read_shape(read_config(checkpoint)), read_headers(checkpoint, merged_parts(engine.merge_adapter))
    demand = demand_of(engine, max_model_len, shape, sizes_of(engine.adapter))
    found = plan(shape, tensors, demand, device_memory_of(reading))
    if not found.fits:
        raise refuse(shape, tensors, found)
    return Estimate(shape, tensors, found)


def replan(estimate: Estimate, reading: DeviceReading, measured: Measured) -> Plan:
    """The plan with measured sizes, computed after loading and before the KV pool is allocated.

    Raises CannotStart if the measurement leaves too little where the estimate did not.
    """
    expected = estimate.plan
    _compare("weights", expected.weights, measured.weights)
    activations = measured.activations + expected.demand.adapter_scratch
    _compare("activations", expected.activations, activations)
    device = device_memory_of(reading)
    overhead = max(0, device.own - measured.weights)
    found = divide(estimate.shape, expected.demand, device, measured.weights, activations, overhead)
    if not found.fits:
        raise refuse(estimate.shape, estimate.tensors, found)
    log.info("memory:\n%s", as_text(rows(found)))
    return found


def _compare(what: str, expected: int, measured: int) -> None:
    share = (measured - expected) / max(expected, 1)
    log.info("%s: %s estimated, %s measured (%+.1f %%)", what, size(expected), size(measured), 100 * share)
