"""A checkpoint's folder as the API process knows it: tokenizer, template, stop ids, defaults, length. No weights.

What transformers reads from the same files, read without it. Every fault is a CannotStart with one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from server.checkpoint.capabilities import TemplateCapabilities, find_capabilities
from server.checkpoint.encode import ControlToken, Encoder, without_added_tokens
from server.checkpoint.folder import (
    add_late_tokens,
    check_folder,
    open_tokenizer,
    read_json,
    read_optional,
    read_text,
    special_strings,
    stored_template,
)
from server.checkpoint.mask import Mask
from server.checkpoint.template import ChatTemplate
from server.dialects.base import Dialect
from server.dialects.registry import find, guess
from server.errors import CannotStart

FALLBACK_TEMPLATE = Path(__file__).parent / "templates" / "react.jinja"
STOPS = ("<|im_end|>", "<|endoftext|>")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Keys of generation_config.json that say nothing about how ids are drawn, or are read elsewhere.
SILENT_KEYS = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens",
    "pad_token_id", "transformers_version", "use_cache",
}  # fmt: skip
DEFAULT_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the checkpoint's authors recommend; None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ThinkIds:
    """The two tokens of the think block."""

    open: int
    close: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything about a checkpoint that prompts and replies depend on.

    `control_tokens` are the tokenizer's added tokens, special or not, white space aside: what text from outside must
    never become. `marker_ids` maps each of their texts to its id. `notes` are lines for the start-up message.
    `own_template` is False where our ChatML with ReAct tools took the place of a template without tools.
    """

    folder: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    own_template: bool
    dialect: Dialect
    control_tokens: tuple[ControlToken, ...]
    marker_ids: Mapping[str, int]
    stop_ids: tuple[int, ...]
    think: ThinkIds | None
    defaults: SamplingDefaults
    max_model_len: int
    mask: Mask
    encoder: Encoder
    capabilities: TemplateCapabilities
    notes: tuple[str, ...] = ()

    @staticmethod
    def open(
        folder: Path,
        chat_template: str = "",
        dialect: str = "auto",
        generation_config: Literal["auto", "none"] = "auto",
        max_model_len: int = 0,
    ) -> "Checkpoint":
        """Reads the folder; `chat_template` is a file that replaces the checkpoint's template.

        Raises CannotStart naming the file that is missing or broken, or the option that does not fit.
        """
        check_folder(folder)
        config = read_json(folder / "config.json")
        tokenizer_config = read_optional(folder / "tokenizer_config.json")
        generation = read_optional(folder / "generation_config.json") if generation_config == "auto" else {}
        tokenizer_text = read_text(folder / "tokenizer.json")
        tokenizer = open_tokenizer(folder / "tokenizer.json", tokenizer_text)
        add_late_tokens(tokenizer, tokenizer_config)
        control_tokens = _control_tokens(tokenizer)
        marker_ids = {token.text: token.id for token in control_tokens}
        source, origin, own = _template_source(folder, chat_template, tokenizer_config, marker_ids)
        template = ChatTemplate(source, origin, special_strings(tokenizer_config, folder))
        notes = [] if own else [f"{origin} knows no tools: serving with ChatML and ReAct prompts instead"]
        chosen = _choose_dialect(dialect, template)
        unknown = sorted(generation.keys() - SILENT_KEYS - set(SAMPLING_KEYS))
        if unknown:
            notes.append(f"generation_config.json: not used here: {', '.join(unknown)}")
        return Checkpoint(
            folder=folder,
            tokenizer=tokenizer,
            template=template,
            own_template=own,
            dialect=chosen,
            control_tokens=control_tokens,
            marker_ids=marker_ids,
            stop_ids=_stop_ids(generation, config, tokenizer_config, marker_ids),
            think=_think_ids(marker_ids),
            defaults=_defaults(generation),
            max_model_len=_length(config, max_model_len),
            mask=Mask([token.text for token in control_tokens], template.literals),
            encoder=Encoder(without_added_tokens(tokenizer, tokenizer_text, control_tokens), control_tokens),
            capabilities=find_capabilities(template),
            notes=tuple(notes),
        )


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model can attend to, from its config.json; None if that file does not say.

    Rotary scaling that transformers applies by a factor (YaRN, linear, dynamic) stretches the original length.
    """
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return positions
    kind = rope.get("rope_type", rope.get("type"))
    factor = rope.get("factor")
    if kind not in ("yarn", "linear", "dynamic") or not isinstance(factor, int | float):
        return positions
    original = rope.get("original_max_position_embeddings")
    return max(positions, int((original if isinstance(original, int) else positions) * factor))


def _control_tokens(tokenizer: Tokenizer) -> tuple[ControlToken, ...]:
    added = tokenizer.get_added_tokens_decoder()
    return tuple(
        ControlToken(token.content, token_id, token.special, token.lstrip, token.rstrip, token.single_word)
        for token_id, token in sorted(added.items())
        if token.content
    )


def _template_source(
    folder: Path, chosen: str, tokenizer_config: Mapping[str, Any], marker_ids: Mapping[str, int]
) -> tuple[str, str, bool]:
    """The source, where it comes from, and whether it is the checkpoint's (or the operator's) own."""
    if chosen:
        if not Path(chosen).is_file():
            raise CannotStart(f"--chat-template {chosen} does not exist")
        return read_text(Path(chosen)), chosen, True
    origin, source = stored_template(folder, tokenizer_config)
    if source is not None and ChatTemplate(source, origin, {}).knows_tools:
        return source, origin, True
    if "<|im_start|>" not in marker_ids or "<|im_end|>" not in marker_ids:
        if source is not None:
            return source, origin, True
        raise CannotStart(
            f"{folder} has no chat template and its tokenizer no ChatML tokens; give one with --chat-template"
        )
    where = origin if source is not None else f"{folder} has no chat template, and the default"
    return read_text(FALLBACK_TEMPLATE), where, False


def _choose_dialect(name: str, template: ChatTemplate) -> Dialect:
    if name != "auto":
        return find(name)
    dialect = guess(template.source)
    if dialect is None:
        raise CannotStart(
            f"the chat template {template.origin} writes no tool format known here; name the nearest one with --dialect"
        )
    return dialect


def _stop_ids(
    generation: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    marker_ids: Mapping[str, int],
) -> tuple[int, ...]:
    listed: list[int] = []
    for source in (generation, config):
        eos = source.get("eos_token_id")
        listed += [one for one in (eos if isinstance(eos, list) else [eos]) if isinstance(one, int)]
    eos = tokenizer_config.get("eos_token")
    texts = (str(eos.get("content") if isinstance(eos, dict) else eos), *STOPS)
    listed += [marker_ids[text] for text in texts if text in marker_ids]
    return tuple(dict.fromkeys(listed))


def _think_ids(marker_ids: Mapping[str, int]) -> ThinkIds | None:
    if THINK_OPEN not in marker_ids or THINK_CLOSE not in marker_ids:
        return None
    return ThinkIds(marker_ids[THINK_OPEN], marker_ids[THINK_CLOSE])


def _defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    values = {key: generation[key] for key in SAMPLING_KEYS if isinstance(generation.get(key), int | float)}
    if generation.get("do_sample") is False:  # greedy is what its authors mean
        values["temperature"] = 0.0
    if "top_k" in values:
        values["top_k"] = int(values["top_k"])
    return SamplingDefaults(**values)


def _length(config: Mapping[str, Any], wanted: int) -> int:
    own = context_length(config)
    if wanted and own and wanted > own:
        raise CannotStart(f"--max-model-len {wanted} is more than the {own} tokens that this model can attend to")
    return wanted or own or DEFAULT_LENGTH
