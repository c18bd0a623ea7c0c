"""Merge of the base and an adapter into a folder that any server of transformers' format loads.

python -m demo.adapter.merge --base FILE.gguf --adapter FOLDER --into FOLDER
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from demo.adapter.base import open_network
from demo.adapter.network import Network, module_of
from demo.adapter.packing import TEMPLATE
from demo.adapter.peft_format import read_adapter, read_sizes
from server.gguf.config import model_config
from server.gguf.header import read_header
from server.gguf.tokenizer import tokenizer_config, tokenizer_json


def merged_weights(network: Network) -> dict[str, Tensor]:
    """All weights under transformers' names."""
    weights = {"model.embed_tokens.weight": network.embedding, "model.norm.weight": network.final_norm}
    for layer, (norms, groups) in enumerate(zip(network.norms, network.groups, strict=True)):
        head = f"model.layers.{layer}"
        for name, norm in zip(("input_layernorm", "post_attention_layernorm"), norms, strict=True):
            weights[f"{head}.{name}.weight"] = norm
        for group in groups:
            for name, (first, last) in zip(group.names, group.spans, strict=True):
                weights[f"{head}.{module_of(name)}.weight"] = group.merged[first:last].contiguous()
    return weights


def write_merged(base: Path, adapter: Path, into: Path) -> None:
    """Write the folder, in bfloat16, with the adapter's template."""
    network = open_network(base, *read_sizes(adapter), torch.bfloat16)
    read_adapter(network, adapter)
    network.merge()
    into.mkdir(parents=True, exist_ok=True)
    header = read_header(base, vocabulary=True)
    save_file(merged_weights(network), into / "model.safetensors", metadata={"format": "pt"})
    (into / "config.json").write_text(json.dumps(model_config(header), indent=2) + "\n", encoding="utf-8")
    (into / "tokenizer.json").write_text(tokenizer_json(header), encoding="utf-8")
    config = {name: value for name, value in tokenizer_config(header).items() if name != "chat_template"}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # else guessed by the model, which splits text otherwise
    (into / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE, into / "chat_template.jinja")


def main() -> None:
    """Merge."""
    parser = argparse.ArgumentParser(description="Merges an adapter into its base.")
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--into", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    write_merged(options.base, options.adapter, options.into)


if __name__ == "__main__":
    main()
