"""What a checkpoint's folder says, and one clear line where it is no checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint.checkpoint import Checkpoint, SamplingDefaults, context_length
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.errors import CannotStart
from tests.model_templates import TEMPLATES

SOURCE = TEMPLATES["qwen3"][0].read_text(encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder to break: the built-in model's small tokenizer, without weights."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILT_IN_FOLDER / name, tmp_path)
    change(tmp_path / "config.json", max_position_embeddings=32768)
    (tmp_path / "chat_template.jinja").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def change(path: Path, **values: Any) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: item for key, item in {**held, **values}.items() if item is not ...}))


def test_everything_is_read(made: Path) -> None:
    """The whole picture at once."""
    change(made / "generation_config.json", eos_token_id=[2, 0], temperature=0.6, top_k=20, top_p=0.95)
    there = Checkpoint.open(made)
    assert there.dialect.name == "hermes"
    assert there.stop_ids == (2, 0)
    assert there.think
    assert (there.think.open, there.think.close) == (there.marker_ids["<think>"], there.marker_ids["</think>"])
    assert there.marker_ids["<tool_call>"] == there.tokenizer.token_to_id("<tool_call>")
    assert there.defaults == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert there.max_model_len == 32768
    assert there.own_template
    assert there.notes == ()


@pytest.mark.parametrize("broken", ["missing", "file", "empty", "no tokenizer", "no json", "list", "bad tokenizer"])
def test_what_is_no_checkpoint_is_said_in_one_line(made: Path, broken: str) -> None:
    """A traceback at start tells a newcomer nothing."""
    place = made
    match broken:
        case "missing":
            place = made / "nowhere"
        case "file":
            place = made / "config.json"
        case "empty":
            (made / "config.json").unlink()
        case "no tokenizer":
            (made / "tokenizer.json").unlink()
        case "no json":
            (made / "config.json").write_text("{")
        case "list":
            (made / "config.json").write_text("[]")
        case "bad tokenizer":
            (made / "tokenizer.json").write_text("{}")
    with pytest.raises(CannotStart) as fault:
        Checkpoint.open(place)
    assert str(place) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_template_file_of_the_operator_wins(made: Path, tmp_path: Path) -> None:
    """`--chat-template FILE` replaces a broken template without touching the checkpoint."""
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATES["qwen3_coder"][0].read_text())
    assert Checkpoint.open(made, chat_template=str(other)).dialect.name == "qwen3_coder"
    with pytest.raises(CannotStart, match="does not exist"):
        Checkpoint.open(made, chat_template=str(tmp_path / "none.jinja"))
    other.write_text("{% if %}")
    with pytest.raises(CannotStart, match="cannot be compiled"):
        Checkpoint.open(made, chat_template=str(other))


@pytest.mark.parametrize("stored", ["text", "named", "processor"])
def test_template_is_found_where_transformers_finds_it(made: Path, stored: str) -> None:
    """Older checkpoints keep it in tokenizer_config.json, some as a list of named ones."""
    (made / "chat_template.jinja").unlink()
    plain = {"name": "default", "template": "{{ messages }}"}
    match stored:
        case "text":
            change(made / "tokenizer_config.json", chat_template=SOURCE)
        case "named":
            listed = [plain, {"name": "tool_use", "template": SOURCE}]
            change(made / "tokenizer_config.json", chat_template=listed)
        case "processor":
            change(made / "chat_template.json", chat_template=SOURCE)
    there = Checkpoint.open(made)
    assert there.template.source == SOURCE
    assert there.own_template


@pytest.mark.parametrize("template", [None, TEMPLATES["qwen15"][0].read_text()])
def test_a_model_without_tools_in_its_template_gets_ours(made: Path, template: str | None) -> None:
    """Qwen1.5 has been trained on ReAct, but its template knows nothing of it: tools would be dropped in silence."""
    (made / "chat_template.jinja").unlink()
    if template is not None:
        change(made / "tokenizer_config.json", chat_template=template)
    there = Checkpoint.open(made)
    assert there.dialect.name == "react"
    assert not there.own_template
    assert "ReAct" in there.notes[0]


def test_no_template_and_no_chatml_is_refused(made: Path) -> None:
    """A guess at the format of an unknown model would give garbage."""
    (made / "chat_template.jinja").unlink()
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if "im_" not in one["content"]]
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(made / "tokenizer_config.json", added_tokens_decoder={})
    with pytest.raises(CannotStart, match="--chat-template"):
        Checkpoint.open(made)


def test_an_unknown_tool_format_is_refused_unless_named(made: Path) -> None:
    """With a parser guessed wrong, calls would come out as text."""
    (made / "chat_template.jinja").write_text("{{ messages[0].content }}{{ tools }}")
    with pytest.raises(CannotStart, match="--dialect"):
        Checkpoint.open(made)
    assert Checkpoint.open(made, dialect="hermes").dialect.name == "hermes"
    with pytest.raises(CannotStart, match="hermes"):
        Checkpoint.open(made, dialect="nonsense")


def test_generation_config_can_be_left_unread(made: Path) -> None:
    """`--generation-config none` is for those who want OpenAI's defaults."""
    change(made / "generation_config.json", temperature=0.6, typical_p=0.9, transformers_version="5")
    assert Checkpoint.open(made).notes == ("generation_config.json: not used here: typical_p",)
    assert Checkpoint.open(made, generation_config="none").defaults == SamplingDefaults()
    change(made / "generation_config.json", do_sample=False)
    assert Checkpoint.open(made).defaults.temperature == 0.0


def test_tokens_that_stand_in_the_tokenizers_configuration_alone_are_control_tokens(made: Path) -> None:
    """transformers adds them, so the template's own tags would otherwise be encoded as text."""
    config = json.loads((made / "tokenizer_config.json").read_text())
    last = max(map(int, config["added_tokens_decoder"]))
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    config["added_tokens_decoder"][str(last + 1)] = {"content": "<|late|>", "special": True, **flags}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    there = Checkpoint.open(made)
    assert there.marker_ids["<|late|>"] == there.tokenizer.get_vocab_size() - 1


@pytest.mark.parametrize(
    "config, length",
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 262144}, "model_type": "qwen3_5"}, 262144),
        ({}, None),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "mrope", "mrope_section": [1]}}, 4096),
    ],
)
def test_context_length(config: dict[str, Any], length: int | None) -> None:
    """Too short refuses what fits; too long lets the model run over its positions."""
    assert context_length(config) == length


def test_max_model_len_shortens_and_never_stretches(made: Path) -> None:
    """Beyond its positions a model writes nonsense, and nothing says why."""
    assert Checkpoint.open(made, max_model_len=1000).max_model_len == 1000
    with pytest.raises(CannotStart, match="32768"):
        Checkpoint.open(made, max_model_len=32769)
