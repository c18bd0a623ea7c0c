"""Checkpoint as the API process needs it: tokenizer, template, stop ids, sampling defaults, context length.

Read without transformers, by its rules, and without the weights. Every fault is a CannotStart of one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from server.checkpoint.capabilities import TemplateCapabilities, find_capabilities
from server.checkpoint.encode import Encoder
from server.checkpoint.folder import read_text, stored_template
from server.checkpoint.template import RENDERER, THINK_CLOSE, THINK_OPEN, ChatTemplate
from server.checkpoint.texts import CheckpointTexts, read_texts
from server.checkpoint.tokenizer import (
    ControlToken,
    control_tokens,
    load_tokenizer,
    token_text,
    token_variables,
    without_added_tokens,
)
from server.config_json import FLAG, IDS, NUMBER, FieldKind, check_fields, context_length, text_fields
from server.dialects.base import Dialect
from server.dialects.registry import detect, find
from server.errors import CannotStart

FALLBACK_TEMPLATE = Path(__file__).parent / "templates" / "react.jinja"
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Keys of generation_config.json that do not affect sampling, or are read elsewhere.
OTHER_KEYS = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens",
    "pad_token_id", "transformers_version", "use_cache",
}  # fmt: skip
GENERATION_FIELDS: Mapping[str, FieldKind] = {
    "temperature": FieldKind("a number from 0 on", lambda value: NUMBER.admits(value) and value >= 0),
    "top_p": FieldKind("a number above 0, up to 1", lambda value: NUMBER.admits(value) and 0 < value <= 1),
    "top_k": FieldKind("a whole number from -1 on", lambda value: NUMBER.admits(value) and -1 <= value == int(value)),
    "min_p": FieldKind("a number from 0 to 1", lambda value: NUMBER.admits(value) and 0 <= value <= 1),
    "repetition_penalty": FieldKind("a number above 0", lambda value: NUMBER.admits(value) and value > 0),
    "do_sample": FLAG,
    "eos_token_id": IDS,
}
DEFAULT_LENGTH = 4096
MOST_IDS = 2**32  # of a tokenizer


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Sampling parameters of generation_config.json; None where it has none."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ThinkIds:
    """Ids of the tokens around a think block."""

    open: int
    close: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything about a checkpoint that prompts and replies depend on.

    `path` is a folder or a GGUF file. `control_tokens` are the tokenizer's added tokens, special or not: untrusted text
    never becomes one of them. `marker_ids` maps each of their texts to its id. `notes` are lines that `toolwire serve`
    and `check` print.
    """

    path: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    dialect: Dialect
    control_tokens: tuple[ControlToken, ...]
    marker_ids: Mapping[str, int]
    stop_ids: tuple[int, ...]
    think: ThinkIds | None
    defaults: SamplingDefaults
    max_model_len: int
    encoder: Encoder
    capabilities: TemplateCapabilities
    notes: tuple[str, ...] = ()

    @staticmethod
    def open(
        path: Path,
        chat_template: str = "",
        dialect: str = "auto",
        generation_config: str = "auto",
        max_model_len: int = 0,
    ) -> "Checkpoint":
        """Read the folder or GGUF file; `chat_template` is a file that replaces the checkpoint's template.

        `generation_config`: auto, none, or a folder whose generation_config.json replaces the checkpoint's.

        Raises CannotStart naming the file that is missing or broken, or the option that does not fit.
        """
        RENDERER.start()  # while the files are read
        texts = read_texts(path, generation_config)
        generation = _check_generation(texts)
        tokenizer = load_tokenizer(texts.tokenizer_path, texts.tokenizer_json, texts.tokenizer_config)
        control = control_tokens(tokenizer)
        marker_ids = {token.text: token.id for token in control}
        notes: list[str] = []
        template = _open_template(path, chat_template, texts.tokenizer_config, marker_ids, notes)
        if unused := sorted(generation.keys() - OTHER_KEYS - set(SAMPLING_KEYS)):
            notes.append(f"generation_config.json: not used here: {', '.join(unused)}")
        return Checkpoint(
            path=path,
            tokenizer=tokenizer,
            template=template,
            dialect=_choose_dialect(dialect, template),
            control_tokens=control,
            marker_ids=marker_ids,
            stop_ids=_stop_ids(texts, tokenizer, marker_ids, notes),
            think=_think_ids(marker_ids),
            defaults=_defaults(generation),
            max_model_len=_context_length(texts.config, max_model_len),
            encoder=Encoder(without_added_tokens(tokenizer, texts.tokenizer_json, control), control),
            capabilities=find_capabilities(template),
            notes=tuple(notes),
        )


def _check_generation(texts: CheckpointTexts) -> Mapping[str, Any]:
    """The fields about sampling, each of the kind that it must have. Raises CannotStart."""
    try:
        check_fields(texts.generation, GENERATION_FIELDS, texts.generation_path)
    except CannotStart as error:
        raise CannotStart(f"{error}; correct it, or start with --generation-config none") from error
    return texts.generation


def _open_template(
    path: Path, chosen: str, tokenizer_config: Mapping[str, Any], marker_ids: Mapping[str, int], notes: list[str]
) -> ChatTemplate:
    """The operator's template, or the checkpoint's, or ChatML with ReAct tools where that has no tools (noted)."""
    variables = token_variables(tokenizer_config, path)
    if chosen:
        if not Path(chosen).is_file():
            raise CannotStart(f"--chat-template {chosen} does not exist")
        return ChatTemplate(read_text(Path(chosen)), chosen, variables)
    origin, source = stored_template(path, tokenizer_config)
    stored = None if source is None else ChatTemplate(source, origin, variables)
    has_chatml = "<|im_start|>" in marker_ids and "<|im_end|>" in marker_ids
    if stored is not None and (stored.knows_tools or not has_chatml):
        return stored
    if not has_chatml:
        raise CannotStart(
            f"{path} has no chat template and its tokenizer no ChatML tokens; give one with --chat-template"
        )
    lacking = "no chat template" if stored is None else f"the chat template in {Path(origin).name} knows no tools"
    notes.append(f"{lacking}: serving with ChatML and ReAct prompts instead")
    return ChatTemplate(read_text(FALLBACK_TEMPLATE), str(FALLBACK_TEMPLATE), variables)


def _choose_dialect(name: str, template: ChatTemplate) -> Dialect:
    if name != "auto":
        return find(name)
    dialect = detect(template.source)
    if dialect is None:
        raise CannotStart(
            f"the chat template {template.origin} writes no tool format known here; name the nearest one with --dialect"
        )
    return dialect


def _stop_ids(
    texts: CheckpointTexts, tokenizer: Tokenizer, marker_ids: Mapping[str, int], notes: list[str]
) -> tuple[int, ...]:
    """The ids that end a reply; those that no token has, which are never written, are noted and left out.

    Raises CannotStart if none is left.
    """
    listed: list[int] = []
    for path, source in ((texts.generation_path, texts.generation), (texts.config_path, texts.config)):
        eos = source.get("eos_token_id")
        given = eos if isinstance(eos, list) else [] if eos is None else [eos]
        known = [token_id for token_id in given if _is_written(token_id, tokenizer, texts.config)]
        if foreign := sorted({*given} - {*known}):
            few = ", ".join(map(str, foreign[:4])) + (", ..." if len(foreign) > 4 else "")
            notes.append(f"{path.name}: eos_token_id {few} is not used here: the ids are {_id_range(tokenizer, texts)}")
        listed += known
    stop_texts = (token_text(texts.tokenizer_config.get("eos_token")) or "", *STOP_TOKENS)
    ids = [marker_ids[text] for text in stop_texts if text in marker_ids]
    listed += [token_id for token_id in ids if _is_written(token_id, tokenizer, texts.config)]
    if not listed:
        raise CannotStart(
            f"{texts.config_path}: no token ends a reply: eos_token_id, here or in {texts.generation_path.name}, must "
            f"name ids of {_id_range(tokenizer, texts)}, or eos_token of tokenizer_config.json an added token"
        )
    return tuple(dict.fromkeys(listed))


def _is_written(token_id: int, tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether the model can write a token of this id."""
    num_outputs = text_fields(config).get("vocab_size")
    fits = 0 <= token_id < (num_outputs if isinstance(num_outputs, int) else MOST_IDS)
    return fits and tokenizer.id_to_token(token_id) is not None


def _id_range(tokenizer: Tokenizer, texts: CheckpointTexts) -> str:
    num_outputs = text_fields(texts.config).get("vocab_size")
    last = max(tokenizer.get_vocab(with_added_tokens=True).values())
    return f"0 to {min(last, num_outputs - 1) if isinstance(num_outputs, int) else last}"


def _think_ids(marker_ids: Mapping[str, int]) -> ThinkIds | None:
    if THINK_OPEN not in marker_ids or THINK_CLOSE not in marker_ids:
        return None
    return ThinkIds(marker_ids[THINK_OPEN], marker_ids[THINK_CLOSE])


def _defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    values = {key: generation[key] for key in SAMPLING_KEYS if generation.get(key) is not None}
    if generation.get("do_sample") is False:  # means greedy decoding
        values["temperature"] = 0.0
    if "top_k" in values:
        values["top_k"] = int(values["top_k"])
    return SamplingDefaults(**values)


def _context_length(config: Mapping[str, Any], requested: int) -> int:
    limit = context_length(config)
    if requested and limit and requested > limit:
        raise CannotStart(f"--max-model-len {requested} is more than the {limit} tokens that this model can attend to")
    return requested or limit or DEFAULT_LENGTH
