"""Merge of the base and an adapter into a GGUF file, for servers that read nothing else; needs the package `gguf`.

python -m demo.adapter.merge_gguf --base FILE.gguf --adapter FOLDER --into FILE.gguf
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from demo.adapter.base import open_network
from demo.adapter.merge import merged_weights
from demo.adapter.packing import TEMPLATE
from demo.adapter.peft_format import read_adapter, read_sizes
from server.gguf.header import read_header
from server.gguf.weights import RowOrder, stored_weights

MERGED = gguf.GGMLQuantizationType.BF16
CHAT_TEMPLATE, ARCHITECTURE = "tokenizer.chat_template", "general.architecture"


def stored_order(weight: Tensor, order: RowOrder | None) -> Tensor:
    """The rows as the file has them, from transformers' order."""
    if order is None:
        return weight
    sides = list(order.sides)
    at = order.swapped
    sides[at], sides[at + 1] = sides[at + 1], sides[at]
    split = weight[order.first :].reshape(*sides, *weight.shape[1:]).transpose(at, at + 1)
    return torch.cat((weight[: order.first], split.reshape(-1, *weight.shape[1:])))


def write_merged_gguf(base: Path, adapter: Path, into: Path) -> None:
    """Write the base's file with merged weights in bfloat16 and the adapter's template; the rest stays as it is."""
    network = open_network(base, *read_sizes(adapter), torch.bfloat16)
    read_adapter(network, adapter)
    network.merge()
    merged = merged_weights(network)
    changed = {
        one.tensors[0].name: stored_order(merged[one.name], one.order)
        for one in stored_weights(read_header(base))
        if one.name.endswith("_proj.weight")
    }
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(into, reader.fields[ARCHITECTURE].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (ARCHITECTURE, CHAT_TEMPLATE):
            kind = field.types[0]
            of_items = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=of_items)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))
    for tensor in reader.tensors:
        if tensor.name in changed:
            content = changed[tensor.name].contiguous().view(torch.uint8).numpy()
            writer.add_tensor(tensor.name, content, raw_dtype=MERGED)
        else:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Merge."""
    parser = argparse.ArgumentParser(description="Merges an adapter into its base, as a GGUF file.")
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--into", type=Path, required=True, help="GGUF file to write")
    options = parser.parse_args()
    write_merged_gguf(options.base, options.adapter, options.into)


if __name__ == "__main__":
    main()
