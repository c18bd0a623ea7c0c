"""Export of the model for transformers and toolwire: config, weights in bf16, tokenizer, template."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from demo.model import Shape, config_json
from demo.tokenizer import END_OF_TEXT, TURN_END, save_tokenizer

SHIPPED = Path(__file__).parent.parent / "server" / "demo_model"


def export_model(weights: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer, folder: Path = SHIPPED) -> None:
    """Write the files; equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    end_of_turn, end_of_text = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_turn is not None and end_of_text is not None
    write_json(folder / "config.json", config_json(shape, end_of_turn, end_of_text))
    generation = {"do_sample": False, "eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}
    write_json(folder / "generation_config.json", generation)
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    save_tokenizer(tokenizer, template, folder, shape.max_position_embeddings)
    rounded = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
