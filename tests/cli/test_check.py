"""`toolwire check`: dialect, notes and the result of the self-test on the terminal."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.cli.banner import print_ready
from server.cli.check import check_model
from server.errors import CannotStart
from tests.backends.scripted import READY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in model without weights, and with a sampling parameter that this server does not have."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUILT_IN_FOLDER / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"typical_p": 0.9}))
    return tmp_path


def test_notes_on_the_checkpoint_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the server ignores of a checkpoint would otherwise show only in its replies."""
    check_model(str(folder), "", "auto")
    printed = capsys.readouterr().out
    assert "dialect hermes" in printed
    assert "note: generation_config.json: not used here: typical_p" in printed
    assert "self-test passed" in printed


def test_notes_on_the_checkpoint_are_shown_at_start(folder: Path) -> None:
    """That a model is served with ReAct was computed, and told to nobody."""
    (folder / "chat_template.jinja").unlink()
    notes = Checkpoint.open(folder).notes
    out = io.StringIO()
    print_ready(Console(file=out, width=200), "http://127.0.0.1:8000", "my-qwen", READY, notes)
    shown = [line.split("Note", 1)[1].strip() for line in out.getvalue().splitlines() if "Note" in line]
    assert shown == [*notes] and "ReAct" in shown[0] and len(shown) == 2


def test_a_failed_self_test_names_its_cases(folder: Path) -> None:
    with pytest.raises(CannotStart, match="one call"):
        check_model(str(folder), "", "react")
