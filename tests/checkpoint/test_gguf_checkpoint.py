"""Checkpoints in one GGUF file: opened as folders are, found by path or in the hub's cache."""

import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from server.checkpoint.checkpoint import Checkpoint, SamplingDefaults
from server.checkpoint.locate import locate, served_name
from server.cli.check import check_model
from server.cli.plan import main as plan
from server.engine.assemble import read_tokenizer
from server.errors import CannotStart
from server.messages import Constraint
from server.model.sampling.grammar import LlguidanceGrammars
from tests.checkpoints import END_OF_TEXT, IM_END, THINK, TOOL_CALL, VOCAB_SIZE
from tests.gguf.written import gguf_checkpoint, write_smallest


@pytest.fixture(scope="module")
def file() -> Path:
    return gguf_checkpoint("qwen3") / "model.gguf"


def test_a_file_is_opened_as_the_folder_that_it_was_made_from(file: Path) -> None:
    """Only sampling defaults are missing, which this file does not hold."""
    ours, theirs = Checkpoint.open(file), Checkpoint.open(file.parent)
    same = ("control_tokens", "marker_ids", "think", "max_model_len", "dialect", "capabilities")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    assert ours.stop_ids == (IM_END, END_OF_TEXT) and set(theirs.stop_ids) == set(ours.stop_ids)
    assert ours.template.source == theirs.template.source and ours.template.origin == str(file)
    assert ours.template.token_variables == theirs.template.token_variables
    for text in ("Hello <|im_end|> 123", "e\u0301 \u00e9"):
        assert ours.encoder.encode_text(text) == theirs.encoder.encode_text(text)
    assert (ours.defaults, ours.notes) == (SamplingDefaults(), ())


def test_grammars_are_compiled_for_the_tokenizer_of_a_file(file: Path) -> None:
    """The engine reads it by itself; a tokenizer without its added tokens would mask other ids."""
    ours, theirs = (
        LlguidanceGrammars(read_tokenizer(path), VOCAB_SIZE, (IM_END,), num_threads=1) for path in (file, file.parent)
    )
    constraint = Constraint(f'start: <[{THINK}]> | <[{TOOL_CALL}]> "x" | "<think>"')
    masks = [one.masks([(one.compile(constraint), [])], [None]) for one in (ours, theirs)]
    assert masks[0] is not None and masks[1] is not None
    assert (masks[0].words == masks[1].words).all()


def test_sampling_defaults_are_read_and_checked(tmp_path: Path) -> None:
    """The converter writes those of generation_config.json under names of its own."""
    good = write_smallest(tmp_path / "good.gguf", temp=0.5, top_k=20, top_p=0.75, penalty_repeat=1.5)
    expected = SamplingDefaults(temperature=0.5, top_k=20, top_p=0.75, repetition_penalty=1.5)
    assert Checkpoint.open(good).defaults == expected
    bad = write_smallest(tmp_path / "bad.gguf", temp=-1.0)
    with pytest.raises(CannotStart, match=r"bad\.gguf: temperature must be .* --generation-config none"):
        Checkpoint.open(bad)
    assert Checkpoint.open(bad, generation_config="none").defaults == SamplingDefaults()


def test_a_folder_of_files_names_one(tmp_path: Path) -> None:
    """It was "holds no config.json, so it is no checkpoint"."""
    write_smallest(tmp_path / "m.gguf")
    with pytest.raises(CannotStart, match=r"give one of its GGUF files, such as .*m\.gguf"):
        Checkpoint.open(tmp_path)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of Org/Tiny-GGUF in a hub's cache without network: files are links to others without endings."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--Org--Tiny-GGUF", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    (snapshot / "BF16").mkdir(parents=True)
    blob = write_smallest(repository / "blob.gguf").rename(repository / "blob")
    for name in ("Tiny-Q4_K_M", "Tiny-Q4_K_S", "tiny.q8_0", "mmproj-Tiny-Q8_0", "BF16/Tiny-BF16-00001-of-00002"):
        (snapshot / f"{name}.gguf").symlink_to(blob)
    return snapshot


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Q4_K_M", "Tiny-Q4_K_M.gguf"),
        ("q4_k_s", "Tiny-Q4_K_S.gguf"),
        ("Q8_0", "tiny.q8_0.gguf"),
        ("BF16", "BF16/Tiny-BF16-00001-of-00002.gguf"),
    ],
)
def test_a_type_behind_a_hub_id_chooses_the_file(hub_cache: Path, kind: str, name: str) -> None:
    model = f"Org/Tiny-GGUF:{kind}"
    assert locate(model) == hub_cache / name
    assert Checkpoint.open(locate(model)).max_model_len == 64
    assert served_name(model, "") == f"Tiny-GGUF:{kind}"


def test_a_type_that_is_not_there_is_named(hub_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotStart, match="Org/Tiny-GGUF:Q6_K: no GGUF file of that type"):
        locate("Org/Tiny-GGUF:Q6_K")
    with pytest.raises(CannotStart, match="name a type behind the colon"):
        locate("Org/Tiny-GGUF:*")
    (hub_cache / "Other-Q4_K_M.gguf").symlink_to(hub_cache / "Tiny-Q4_K_M.gguf")
    with pytest.raises(CannotStart, match=r"may be Other-Q4_K_M\.gguf, Tiny-Q4_K_M\.gguf"):
        locate("Org/Tiny-GGUF:Q4_K_M")
    assert plan(["Org/Absent-GGUF:Q8_0", "--device", "cpu"]) == 2
    assert "hf download Org/Absent-GGUF --include" in capsys.readouterr().err


def test_names_of_files_are_served_without_their_ending(tmp_path: Path) -> None:
    for name in ("Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B-Q4_K_M-00001-of-00003.gguf"):
        (tmp_path / name).write_bytes(b"")
        assert served_name(str(tmp_path / name), "") == "Qwen3-4B-Q4_K_M"


def _planned_weights_mib(capsys: pytest.CaptureFixture[str]) -> float:
    """The MiB of weights in the table that `toolwire plan` printed."""
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["weights"])
    return float(line.split()[1])


def test_check_and_plan_open_files(file: Path, hub_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_model(str(file), "", "auto")
    assert "self-test passed" in capsys.readouterr().out
    options = ["--device", "cpu", "--max-model-len", "64", "--max-batch-tokens", "64"]
    assert plan([str(file), *options]) == 0
    of_file = _planned_weights_mib(capsys)
    assert plan([str(file.parent), *options, "--dtype", "bfloat16"]) == 0
    assert 0 < of_file < _planned_weights_mib(capsys)  # codes stay as they are stored
    assert plan(["Org/Tiny-GGUF:Q8_0", *options]) == 0


@pytest.mark.parametrize("command", ["serve", "check", "plan"])
def test_a_file_that_cannot_be_served_is_one_line(tmp_path: Path, command: str) -> None:
    """A traceback, or a process that takes all memory, does not say what to change."""
    other = write_smallest(tmp_path / "other.gguf", architecture="gemma3")
    arguments = [command, *(["--model"] if command == "serve" else []), str(other)]
    done = subprocess.run([sys.executable, "-m", "server", *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and "architecture 'gemma3'" in lines[-1] and len(lines) == 1, done.stderr
