"""One option, three places to say it, one answer to where it came from."""

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import CannotStart
from server.settings import GROUPS, read_file, resolve

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        timeout=60,
    )


def test_the_command_line_wins_over_environment_over_file() -> None:
    resolved = resolve(
        {"port": "3", "host": None}, {"TOOLWIRE_PORT": "2", "TOOLWIRE_HOST": "b"}, {"port": 1, "host": "a"}
    )
    assert (resolved.settings.api.port, resolved.origins["port"]) == (3, "command line")
    assert (resolved.settings.api.host, resolved.origins["host"]) == ("b", "environment")
    assert resolved.origins["max_model_len"] == "default"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "eighty"),
        ("port", "70000"),
        ("device", "tpu"),
        ("strict", "maybe"),
        ("threads", "-1"),
        ("block_size", "33"),
    ],
)
def test_a_wrong_value_names_the_option_and_where_it_came_from(name: str, value: str) -> None:
    with pytest.raises(CannotStart, match=name):
        resolve({}, {f"TOOLWIRE_{name.upper()}": value}, {})


def test_a_misspelt_key_is_not_silently_ignored() -> None:
    with pytest.raises(CannotStart, match="prot"):
        resolve({}, {}, {"prot": 8001})


def test_booleans_read_the_words_people_write() -> None:
    for word, value in (("true", True), ("false", False), ("1", True), ("0", False)):
        assert resolve({}, {"TOOLWIRE_STRICT": word}, {}).settings.api.strict is value


def test_a_file_that_is_not_toml_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "toolwire.toml"
    path.write_text("port = = 3")
    with pytest.raises(CannotStart, match=r"toolwire\.toml"):
        read_file(str(path))


def test_config_prints_values_and_origins_but_never_the_key(tmp_path: Path) -> None:
    path = tmp_path / "toolwire.toml"
    path.write_text('port = 8123\napi_key = "hush-hush"\n')
    shown = run("config", "--config", str(path), "--strict", TOOLWIRE_THREADS="3")
    assert shown.returncode == 0, shown.stderr
    lines = {line.split("│")[1].strip(): line for line in shown.stdout.splitlines() if line.count("│") == 4}
    assert "8123" in lines["port"] and "file" in lines["port"]
    assert "command line" in lines["strict"] and "environment" in lines["threads"]
    assert "hush-hush" not in shown.stdout


def test_help_shows_every_option_with_its_variable() -> None:
    text = run("serve", "--help").stdout
    for kind in GROUPS.values():
        for field in dataclasses.fields(kind):
            assert "--" + field.name.replace("_", "-") in text
            assert f"TOOLWIRE_{field.name.upper()}" in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serve", "--no-such-option"], "--no-such-option"),
        (["serve", "--port", "many"], "port"),
        (["serve", "--model", "./does-not-exist"], "does-not-exist"),
        (["serve", "--model", str(ROOT / "docs")], "config.json"),
        (["serve", "--model", str(ROOT / "README.md")], "GGUF"),
        (["serve", "--cpu-isa", "mmx"], "cpu_isa"),
        (["serve", "--cpu-isa", "avx2" if platform.machine() == "aarch64" else "neon"], "torch"),
    ],
)
def test_a_wrong_start_is_one_line_and_exit_code_two(arguments: list[str], hint: str) -> None:
    ended = run(*arguments, TOOLWIRE_PORT="0")
    assert ended.returncode == 2
    assert hint in ended.stderr
    assert "Traceback" not in ended.stderr
