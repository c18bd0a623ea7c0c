"""CUDA_VISIBLE_DEVICES as CUDA reads it."""

import pytest

from server.memory.cuda_order import Card, Slice, same_device, visible_uuids

CARDS = (Card("GPU-aa11"), Card("GPU-aa22"), Card("GPU-cc33", (Slice("MIG-x", "MIG-GPU-cc33/7/0"),)))


@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "MIG-x"]),
        ("", []),
        ("-1", []),
        ("1,0", ["GPU-aa22", "GPU-aa11"]),
        (" 1 , 0 ", ["GPU-aa22", "GPU-aa11"]),
        ("0,9,1", ["GPU-aa11"]),  # the first that names nothing ends the list
        ("0,-1,1", ["GPU-aa11"]),
        ("0,0", []),  # naming a device twice shows none
        ("GPU-aa2", ["GPU-aa22"]),
        ("GPU-aa", []),  # two begin so
        ("2", ["MIG-x"]),
        ("MIG-x", ["MIG-x"]),
        ("MIG-GPU-cc33/7/0", ["MIG-x"]),
        ("MIG-", []),
    ],
)
def test_visible_devices(visible: str | None, shown: list[str]) -> None:
    assert visible_uuids(CARDS, visible) == shown


@pytest.mark.parametrize(
    ("torch_uuid", "found"),
    [("aa22", "GPU-aa22"), ("GPU-AA22", "GPU-aa22"), ("x", "MIG-x"), ("cc33", "MIG-x"), ("dd44", None)],
)
def test_torchs_spelling(torch_uuid: str, found: str | None) -> None:
    assert same_device(CARDS, torch_uuid) == found
