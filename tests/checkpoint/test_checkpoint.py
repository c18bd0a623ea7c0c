"""Checkpoint: everything read from its folder, and one line where the folder cannot be served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint.checkpoint import GENERATION_FIELDS, Checkpoint, SamplingDefaults
from server.checkpoint.locate import BUILT_IN_FOLDER, served_name
from server.checkpoint.tokenizer import TOKENIZER_FIELDS
from server.config_json import MODEL_FIELDS
from server.errors import CannotStart
from server.messages import Constraint
from server.model.sampling.grammar import LlguidanceGrammars
from tests.model_templates import TEMPLATES

SOURCE = TEMPLATES["qwen3"][0].read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in model's tokenizer with a template of Qwen3, without weights."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILT_IN_FOLDER / name, tmp_path)
    update(tmp_path / "config.json", max_position_embeddings=32768)
    (tmp_path / "chat_template.jinja").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def update(path: Path, **values: Any) -> None:
    current = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: item for key, item in {**current, **values}.items() if item is not ...}))


def test_everything_is_read(folder: Path) -> None:
    update(folder / "generation_config.json", eos_token_id=[2, 0], temperature=0.6, top_k=20, top_p=0.95)
    opened = Checkpoint.open(folder)
    assert opened.dialect.name == "hermes"
    assert opened.stop_ids == (2, 0)
    assert opened.think
    assert (opened.think.open, opened.think.close) == (opened.marker_ids["<think>"], opened.marker_ids["</think>"])
    assert opened.marker_ids["<tool_call>"] == opened.tokenizer.token_to_id("<tool_call>")
    assert opened.defaults == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert opened.max_model_len == 32768
    assert opened.notes == ()


def test_stop_ids_that_no_token_has_are_noted_and_left_out(folder: Path) -> None:
    """Ids behind the tokenizer's, and negative ones, ended the engine with a traceback when its grammars were built."""
    update(folder / "config.json", eos_token_id=-7, vocab_size=2112)
    update(folder / "generation_config.json", eos_token_id=[2, 2051, 5_000_000, 2**40])
    opened = Checkpoint.open(folder)
    assert opened.stop_ids == (2, opened.marker_ids["<|endoftext|>"])
    assert opened.notes == (
        "generation_config.json: eos_token_id 2051, 5000000, 1099511627776 is not used here: the ids are 0 to 2047",
        "config.json: eos_token_id -7 is not used here: the ids are 0 to 2047",
    )
    vocabulary = (folder / "tokenizer.json").read_bytes()
    assert LlguidanceGrammars(vocabulary, 2112, opened.stop_ids).compile(Constraint('start: "a"'))


def test_stop_ids_behind_the_models_outputs_are_left_out(folder: Path) -> None:
    """A tokenizer may have more tokens than the model has outputs."""
    update(folder / "config.json", vocab_size=2000, eos_token_id=[2, 2001])
    opened = Checkpoint.open(folder)
    assert 2001 not in opened.stop_ids
    assert opened.notes == ("config.json: eos_token_id 2001 is not used here: the ids are 0 to 1999",)


def test_a_checkpoint_without_a_stop_id_is_refused_in_one_line(folder: Path) -> None:
    """It was a traceback of the engine: "eos_token list must not be empty"."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("<|im_end|>", "<|end|>").replace("<|endoftext|>", "<|pad|>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    update(folder / "tokenizer_config.json", added_tokens_decoder={}, eos_token="<|im_end|>")
    update(folder / "config.json", eos_token_id=2051)
    with pytest.raises(CannotStart, match=r"config\.json: no token ends a reply.*ids of 0 to \d+") as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "broken", ["missing", "file", "empty", "no tokenizer", "no json", "list", "deep", "bad tokenizer"]
)
def test_a_folder_without_a_checkpoint_is_refused_in_one_line(folder: Path, broken: str) -> None:
    """A traceback at start does not say what to change."""
    path = folder
    match broken:
        case "missing":
            path = folder / "nowhere"
        case "file":
            path = folder / "config.json"
        case "empty":
            (folder / "config.json").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no json":
            (folder / "config.json").write_text("{")
        case "list":
            (folder / "config.json").write_text("[]")
        case "deep":
            (folder / "config.json").write_text("[" * 100_000)
        case "bad tokenizer":
            (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CannotStart) as fault:
        Checkpoint.open(path)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_the_operators_template_file_takes_precedence(folder: Path, tmp_path: Path) -> None:
    """`--chat-template FILE` replaces a broken template without touching the checkpoint."""
    other = tmp_path / "other.jinja"
    other.write_text(TEMPLATES["qwen3_coder"][0].read_text())
    assert Checkpoint.open(folder, chat_template=str(other)).dialect.name == "qwen3_coder"
    with pytest.raises(CannotStart, match="does not exist"):
        Checkpoint.open(folder, chat_template=str(tmp_path / "none.jinja"))
    other.write_text("{% if %}")
    with pytest.raises(CannotStart, match="cannot be compiled"):
        Checkpoint.open(folder, chat_template=str(other))


@pytest.mark.parametrize("stored", ["text", "named", "processor"])
def test_template_is_found_where_transformers_finds_it(folder: Path, stored: str) -> None:
    """Older checkpoints keep it in tokenizer_config.json, some as a list of named ones."""
    (folder / "chat_template.jinja").unlink()
    plain = {"name": "default", "template": "{{ messages }}"}
    match stored:
        case "text":
            update(folder / "tokenizer_config.json", chat_template=SOURCE)
        case "named":
            listed = [plain, {"name": "tool_use", "template": SOURCE}]
            update(folder / "tokenizer_config.json", chat_template=listed)
        case "processor":
            update(folder / "chat_template.json", chat_template=SOURCE)
    opened = Checkpoint.open(folder)
    assert opened.template.source == SOURCE


def test_the_template_for_tools_is_read_where_transformers_saves_it(folder: Path) -> None:
    """`save_pretrained` writes named templates beside the default one, which knew no tools: ReAct was served."""
    (folder / "chat_template.jinja").write_text(TEMPLATES["qwen15"][0].read_text())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(SOURCE)
    opened = Checkpoint.open(folder)
    assert (opened.template.source, opened.dialect.name, opened.notes) == (SOURCE, "hermes", ())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1503300328\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(folder: Path, name: str) -> None:
    """It was "its header would be 2336927755350992246 bytes long", or a fault of JSON."""
    (folder / name).write_text(POINTER)
    with pytest.raises(CannotStart, match=f"{name} is a git-lfs pointer.*git lfs pull") as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["Qwen/Qwen3-0.6B", None, 7])
@pytest.mark.parametrize("has_config", [False, True])
def test_a_lora_adapter_is_named_with_its_model_and_the_way_to_serve_it(
    folder: Path, base: object, has_config: bool
) -> None:
    """It was "holds no config.json, so it is no checkpoint"."""
    update(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path=base)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if not has_config:
        (folder / "config.json").unlink()
    with pytest.raises(CannotStart, match=r"is a LoRA adapter of .*merge") as caught:
        Checkpoint.open(folder)
    assert ("Qwen/Qwen3-0.6B" in str(caught.value)) == (base == "Qwen/Qwen3-0.6B")
    (folder / "model.safetensors").write_bytes(b"")
    if has_config:
        assert Checkpoint.open(folder)


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model-00001-of-00002.safetensors", "optimizer.pt"])
def test_an_adapter_saved_in_another_form_is_none_of_a_model_either(folder: Path, weights: str) -> None:
    """Trainer writes config.json, optimizer and arguments beside an adapter: what was missing was said of the model."""
    update(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="Qwen/Qwen3-0.6B")
    for file in [*folder.glob("*.safetensors")]:
        file.unlink()
    for name in (weights, "training_args.bin"):
        (folder / name).write_bytes(b"")
    with pytest.raises(CannotStart, match=r"is a LoRA adapter of Qwen/Qwen3-0\.6B"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("model", [".", "./", "..", "sub/..", "{}", "{}/"])
def test_a_folder_is_served_under_its_own_name_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """`--model .` was served as an empty name."""
    place = tmp_path / "my-qwen"
    (place / "sub").mkdir(parents=True)
    monkeypatch.chdir(place / "sub" if model == ".." else place)
    assert served_name(model.format(place), "") == "my-qwen"
    assert served_name(model.format(place), "chosen") == "chosen"
    assert served_name("Qwen/Qwen3-0.6B", "") == "Qwen3-0.6B"


def test_a_snapshot_in_the_hub_s_cache_is_served_under_the_model_s_name(tmp_path: Path) -> None:
    """It was served under the number of its commit."""
    place = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    place.mkdir(parents=True)
    assert served_name(str(place), "") == "Qwen3-0.6B"


def test_the_only_template_is_read_whatever_its_name(folder: Path) -> None:
    """It was none, and the model was served with ReAct."""
    (folder / "chat_template.jinja").unlink()
    update(folder / "tokenizer_config.json", chat_template=[{"name": "chat", "template": SOURCE}])
    assert Checkpoint.open(folder).template.source == SOURCE


@pytest.mark.parametrize("template", [None, TEMPLATES["qwen15"][0].read_text()])
def test_a_template_without_tools_is_replaced_by_react(folder: Path, template: str | None) -> None:
    """Qwen1.5 was trained on ReAct, but its template does not render tools: they would be dropped silently."""
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        update(folder / "tokenizer_config.json", chat_template=template)
    opened = Checkpoint.open(folder)
    assert opened.dialect.name == "react"
    assert "ReAct" in opened.notes[0]


def test_no_template_and_no_chatml_is_refused(folder: Path) -> None:
    """A guess at the format of an unknown model would give garbage."""
    (folder / "chat_template.jinja").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if "im_" not in one["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    update(folder / "tokenizer_config.json", added_tokens_decoder={})
    with pytest.raises(CannotStart, match="--chat-template"):
        Checkpoint.open(folder)


def test_an_unknown_tool_format_is_refused_unless_named(folder: Path) -> None:
    """With the wrong parser, calls would be returned as text."""
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ tools }}")
    with pytest.raises(CannotStart, match="--dialect"):
        Checkpoint.open(folder)
    assert Checkpoint.open(folder, dialect="hermes").dialect.name == "hermes"
    with pytest.raises(CannotStart, match="hermes"):
        Checkpoint.open(folder, dialect="nonsense")


def test_generation_config_can_be_ignored(folder: Path) -> None:
    """`--generation-config none` gives OpenAI's defaults."""
    update(folder / "generation_config.json", temperature=0.6, typical_p=0.9, transformers_version="5")
    assert Checkpoint.open(folder).notes == ("generation_config.json: not used here: typical_p",)
    assert Checkpoint.open(folder, generation_config="none").defaults == SamplingDefaults()
    update(folder / "generation_config.json", do_sample=False)
    assert Checkpoint.open(folder).defaults.temperature == 0.0


def test_generation_config_of_another_folder(folder: Path, tmp_path: Path) -> None:
    """A GGUF file has no file beside it that an operator could change."""
    other = tmp_path / "other"
    other.mkdir()
    update(folder / "generation_config.json", temperature=0.6)
    update(other / "generation_config.json", top_p=0.5)
    assert Checkpoint.open(folder, generation_config=str(other)).defaults == SamplingDefaults(top_p=0.5)
    with pytest.raises(CannotStart, match=r"--generation-config .*sampling: give auto, none, or a folder"):
        Checkpoint.open(folder, generation_config="sampling")


def test_tokens_listed_only_in_tokenizer_config_are_control_tokens(folder: Path) -> None:
    """transformers adds them; otherwise the template's own tags would be encoded as text."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    last = max(map(int, config["added_tokens_decoder"]))
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    config["added_tokens_decoder"][str(last + 1)] = {"content": "<|added|>", "special": True, **flags}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    opened = Checkpoint.open(folder)
    assert opened.marker_ids["<|added|>"] == opened.tokenizer.get_vocab_size() - 1


def test_max_model_len_shortens_and_never_extends(folder: Path) -> None:
    """Beyond its positions a model writes nonsense, without an error."""
    assert Checkpoint.open(folder, max_model_len=1000).max_model_len == 1000
    with pytest.raises(CannotStart, match="32768"):
        Checkpoint.open(folder, max_model_len=32769)


ODD: tuple[Any, ...] = (
    "x",
    "__import__('os').system('id')",
    -7,
    2.5,
    10**30,
    True,
    [],
    [1, "a"],
    [None],
    {},
    {"a": None},
    float("nan"),
)
FIELDS = [
    *(("config.json", name) for name in MODEL_FIELDS),
    *(("generation_config.json", name) for name in GENERATION_FIELDS),
    *(("tokenizer_config.json", name) for name in (*TOKENIZER_FIELDS, "eos_token", "model_max_length")),
    ("special_tokens_map.json", "bos_token"),
]


@pytest.mark.parametrize(("file", "field"), FIELDS)
def test_a_field_of_another_kind_is_refused_in_one_line_that_names_it(folder: Path, file: str, field: str) -> None:
    """`"dtype": "__import__('os')"` was a traceback, and a layer for each of 10**30 took all memory."""
    (folder / "chat_template.jinja").unlink()
    update(folder / "tokenizer_config.json", chat_template=SOURCE)
    kept = (folder / file).read_text() if (folder / file).exists() else "{}"
    kinds = {**MODEL_FIELDS, **GENERATION_FIELDS, **TOKENIZER_FIELDS}
    assert field not in kinds or sum(not kinds[field].admits(value) for value in ODD) >= 6
    for value in ODD:
        (folder / file).write_text(kept)
        update(folder / file, **{field: value})
        if field in kinds and not kinds[field].admits(value):
            with pytest.raises(CannotStart, match=f"{file}: {field} must be") as caught:
                Checkpoint.open(folder)
            assert "\n" not in str(caught.value)
        elif field in GENERATION_FIELDS or field not in kinds:
            assert Checkpoint.open(folder)


@pytest.mark.parametrize(
    "listed", [{"x": {}}, {"1": {"content": 7}}, {"1": None}, {"1": {"content": "a", "special": 1}}]
)
def test_a_listed_token_of_another_kind_is_refused(folder: Path, listed: object) -> None:
    update(folder / "tokenizer_config.json", added_tokens_decoder=listed)
    with pytest.raises(CannotStart, match=r"tokenizer_config\.json: added_tokens_decoder must be"):
        Checkpoint.open(folder)
