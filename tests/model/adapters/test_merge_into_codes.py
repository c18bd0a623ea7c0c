"""Adapters merged into the weights of a GGUF file, whose codes no adapter can change."""

from pathlib import Path

import torch
from torch import Tensor

from server.config_json import read_config
from server.model.adapters.merging import open_merged_adapter
from server.model.adapters.weights import read_adapter
from server.model.loading.gguf_codes import StoredCodes
from server.model.loading.gguf_weights import GgufWeights
from server.model.loading.plain import convert, read_plain_config
from server.model.quantization.packed_weight import PackedWeight
from server.settings import EngineSettings
from tests.adapter_folders import write_adapter
from tests.gguf.written import gguf_checkpoint


def test_a_part_that_is_merged_becomes_numbers_and_the_rest_stays_codes(tmp_path: Path) -> None:
    """A weight that was kept as codes refused the adapter as that of a quantized model."""
    file = gguf_checkpoint("qwen3") / "model.gguf"
    adapter = write_adapter(tmp_path / "adapter", file.parent, modules=["self_attn.q_proj"])
    config, merge = read_plain_config(read_config(file)), open_merged_adapter(str(adapter))
    assert config is not None and merge is not None
    stored = StoredCodes(file, torch.float32, EngineSettings(device="cpu"), None, merge=merge)
    found = dict(convert(stored, config, 0, torch.float32, None, lambda fraction: None, merge))
    numbers, name = GgufWeights(file, torch.float32), "model.layers.1.self_attn.q_proj.weight"
    (factors,) = (own for part, own in read_adapter(adapter, None, torch.float32).factors.items() if part.layer == 1)
    merged = found[name]
    assert isinstance(merged, Tensor)
    torch.testing.assert_close(merged, numbers[name] + factors.scale * (factors.up @ factors.down))
    kept = StoredCodes(file, torch.float32, EngineSettings(device="cpu"), None).kept.keys()
    codes = {other for other, weight in found.items() if isinstance(weight, PackedWeight)}
    assert name in kept and codes == {other for other in kept if "q_proj" not in other} != set()
