"""Other projects' tests that are run against a server: what is taken out of their packages."""

import zipfile
from pathlib import Path

import openai
import pytest

from demo.sglang_calls import MEMBER, read_tests

SOURCE = """
from sglang.srt.utils import kill_process_tree
from sglang.test.test_utils import DEFAULT_URL_FOR_TEST, popen_launch_server

def _test_name(client, model):
    assert model == "right", "another model"

def _test_thinking(client, model):
    raise AssertionError

def helper():
    pass
"""


def test_functions_of_the_wheel_are_found_and_run_without_its_package(tmp_path: Path) -> None:
    """The package needs a GPU's libraries to be imported; a file that has moved must not count as all passed."""
    wheel = tmp_path / "sglang.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, SOURCE)
    tests = read_tests(wheel)
    assert list(tests) == ["name"]
    with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
        tests["name"](client, "right")
        with pytest.raises(AssertionError, match="another model"):
            tests["name"](client, "wrong")
    contents: tuple[dict[str, str], ...] = ({}, {MEMBER: "x = 1"})
    for content in contents:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
        with pytest.raises(SystemExit, match="sglang"):
            read_tests(wheel)
