"""Rules common to all formats: concurrent first requests, and text that must not be blank."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server.dialects.base import Choice, ConstraintSpec, Dialect, Tool
from tests.dialects.fuzz import write_call
from tests.dialects.random_walks import MARKER_IDS, spec_for
from tests.dialects.test_constraints import accepts, every_dialect

ROOT = Path(__file__).parents[3]
FIRST_USE = """
import sys, threading
from server.dialects.registry import DIALECTS
from server.dialects.base import Choice, ConstraintSpec, Tool
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)

def constrain(number):
    spec = ConstraintSpec((Tool(f"tool{number}", {"type": "object"}),), Choice("required"), None, {})
    start.wait()
    assert DIALECTS[0].constrain(spec)

threads = [threading.Thread(target=constrain, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_concurrent_first_requests_do_not_crash_the_process(is_long: bool) -> None:
    """msgspec 0.22 builds its table of a dataclass at first use, where a second thread makes it crash."""
    for _ in range(6 if is_long else 1):
        subprocess.run([sys.executable, "-c", FIRST_USE], check=True, cwd=ROOT)


@every_dialect
@pytest.mark.parametrize("parallel", [True, False])
def test_case_44_with_must_answer_the_reply_cannot_end_before_text_or_a_call(dialect: Dialect, parallel: bool) -> None:
    """A thinking model that plans a call and ends without it has sampled the end of the reply after `</think>`."""
    call = write_call(dialect.name, "look", {"at": 3}, 0)
    tool = Tool("look", {"type": "object", "properties": {"at": {"type": "integer"}}})
    for choice in (Choice("auto", parallel=parallel), Choice("none"), Choice("required", parallel=parallel)):
        spec = replace(spec_for([tool], choice), must_answer=True, after_thinking=True)
        assert not any(accepts(dialect, spec, blank) for blank in ("", "\n\n", " \n\t "))
        assert accepts(dialect, spec, "\n\nMild.\n") is (choice.mode != "required")
        assert accepts(dialect, spec, f"Hm.{call}") is (choice.mode == "auto")
        assert accepts(dialect, spec, call if choice.mode == "auto" else call.strip()) is (choice.mode != "none")
    alone = ConstraintSpec([], Choice("none"), None, MARKER_IDS, must_answer=True)
    assert accepts(dialect, alone, "\n\nMild.\n") and not accepts(dialect, alone, "\n\n")


@every_dialect
def test_case_44_a_text_that_must_not_be_blank_admits_whatever_other_text_may(dialect: Dialect) -> None:
    tool = Tool("look", {"type": "object", "properties": {}})
    spec = replace(spec_for([tool], Choice("auto")), must_answer=True)
    call = write_call(dialect.name, "look", {}, 0)
    for text in ("a < b", "\n \nAct: x\n\n", "<tool> </tool_call", f" {call}", f"{call}\n\n", f"{call}\nSo."):
        assert accepts(dialect, spec, text), text
