"""SGLang's own tests of tool calls, those without thinking, against any OpenAI-compatible server.

    pip download --no-deps sglang                    its wheel, of which one file is read; nothing is installed
    python -m demo.sglang_calls http://127.0.0.1:8000/v1 --wheel sglang-….whl

The file's functions are run as they are. Some ask more of the model than of the server: whether it makes two calls, or
uses a result.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import openai

MEMBER = "sglang/test/tool_call_test_runner.py"
# What the file imports to start SGLang's server, which is not started.
STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "sglang": {},
    "sglang.srt": {},
    "sglang.srt.utils": {"kill_process_tree": None},
    "sglang.test": {},
    "sglang.test.test_utils": {
        "DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH": 0, "DEFAULT_URL_FOR_TEST": "", "ModelLaunchSettings": object,
        "popen_launch_server": None,
    },
}  # fmt: skip
PREFIX, WITH_THOUGHTS = "_test_", ("thinking", "reasoning_usage")
Test = Callable[[openai.OpenAI, str], None]


def read_tests(wheel: Path) -> dict[str, Test]:
    """The file's tests by name, in its order. Raises SystemExit if the wheel has none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            source = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{wheel} is no wheel of sglang with {MEMBER}: {error}") from error
    for name, content in STAND_INS.items():
        stand_in = ModuleType(name)
        stand_in.__dict__.update(content)
        sys.modules[name] = stand_in
    module = ModuleType("sglang.test.tool_call_test_runner")
    sys.modules[module.__name__] = module
    exec(compile(source, MEMBER, "exec"), module.__dict__)
    found = {
        name.removeprefix(PREFIX): value
        for name, value in vars(module).items()
        if name.startswith(PREFIX) and callable(value)
    }
    tests = {name: test for name, test in found.items() if name not in WITH_THOUGHTS}
    if not tests:
        raise SystemExit(f"{wheel} has no tests in {MEMBER}")
    return tests


def main() -> int:
    """Run them, and print a line each; returns the exit code, 1 if one failed."""
    parser = argparse.ArgumentParser(description="Runs SGLang's own tests of tool calls against a server.")
    parser.add_argument("url", help="base URL of the API, with /v1")
    parser.add_argument("--wheel", type=Path, required=True, help="wheel of sglang")
    parser.add_argument("--model", help="name of the model; else the first that the server lists")
    parser.add_argument("--api-key", default="none")
    options = parser.parse_args()
    tests = read_tests(options.wheel)
    client = openai.OpenAI(base_url=options.url, api_key=options.api_key, timeout=600)
    model = options.model or client.models.list().data[0].id
    num_passed = 0
    for name, test in tests.items():
        try:
            test(client, model)
        except (AssertionError, openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
            print(f"failed  {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        else:
            num_passed += 1
            print(f"passed  {name}", flush=True)
    print(f"{num_passed} of {len(tests)} passed; model {model}")
    return 0 if num_passed == len(tests) else 1


if __name__ == "__main__":
    sys.exit(main())
