"""Hybrid checkpoints in their published form: a conditional-generation model around the text model."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import Kind, tiny_checkpoint

TEMPLATE = Path(__file__).parent / "templates" / "qwen35.jinja"


def write_published(kind: Kind, folder: Path) -> Path:
    """Text weights below `model.language_model`, with a vision tower and an MTP head; thinking by default."""
    source = tiny_checkpoint(kind)
    shutil.copytree(source, folder)
    weights = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: weight
        for name, weight in load_file(source / "model.safetensors").items()
    }
    weights["model.visual.patch_embed.proj.weight"] = torch.zeros(4, 4)
    weights["mtp.fc.weight"] = torch.zeros(4, 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((source / "config.json").read_text())
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    outer = {
        "architectures": [text["architectures"][0].replace("ForCausalLM", "ForConditionalGeneration")],
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "vision_config": vision,
    }
    (folder / "config.json").write_text(json.dumps(outer))
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    return folder
