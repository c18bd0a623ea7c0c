"""The list of engines: its form, and that it may change while the server runs."""

import os
from pathlib import Path

import pytest

from server.backends.engine_list import EngineList, address_of
from server.cli.engines import change_file, main
from server.errors import CannotStart


def write(path: Path, text: str) -> None:
    """Replace a file as an editor does; its time differs even within one tick of the file system's clock."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "engines"
    write(path, "# ours\nhttp://A:8100/  # the first\n\nhttp://b:8100 drain\n")
    engines = EngineList(["http://fixed:1"], str(path))
    assert engines.engines == {"http://fixed:1": False, "http://a:8100": False, "http://b:8100": True}
    assert not engines.refresh()
    write(path, "http://b:8100\n")
    assert engines.refresh() and not engines.refresh()
    assert engines.engines == {"http://fixed:1": False, "http://b:8100": False}


@pytest.mark.parametrize("text", ["http://b:8100 drian\n", "b:8100\n", "\x00\n", "http://b:8100 drain now\n"])
def test_a_file_with_a_mistake_changes_nothing(tmp_path: Path, text: str) -> None:
    """Half a list would end the connections to engines that are in the other half."""
    path = tmp_path / "engines"
    write(path, "http://a:8100\n")
    engines = EngineList([], str(path))
    write(path, text)
    assert not engines.refresh()
    assert engines.engines == {"http://a:8100": False}
    path.unlink()
    assert not engines.refresh()
    write(path, "http://c:8100\n")
    assert engines.refresh() and engines.engines == {"http://c:8100": False}


@pytest.mark.parametrize(
    "text",
    [
        "", "10.0.0.5:8100", "ftp://a", "http://", "http://a:x", "http://a:70000", "http://a?b", "http://u:p@a",
        "http://a/#x", "http://a:0", "http://[::1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(CannotStart, match="write it as http"):
        address_of(text)


def test_a_name_stands_for_an_engine_at_each_of_its_addresses() -> None:
    """As of a headless service, whose pods come and go."""
    addresses: list[str] | None = ["10.0.0.5", "10.0.0.6"]

    def resolve(name: str, port: int) -> list[str]:
        assert (name, port) == ("engines.default", 8100)
        if addresses is None:
            raise OSError("the name server is away")
        return addresses

    engines = EngineList(["dns+http://engines.default:8100"], resolve=resolve)
    assert list(engines.engines) == ["http://10.0.0.5:8100", "http://10.0.0.6:8100"]
    for now, known in (
        (["10.0.0.6", "fd00::1"], ["http://10.0.0.6:8100", "http://[fd00::1]:8100"]),
        (None, ["http://10.0.0.6:8100", "http://[fd00::1]:8100"]),
        ([], []),
        (None, []),
    ):
        addresses = now
        engines._resolved_s = 0.0
        engines.refresh()
        assert list(engines.engines) == known


def test_a_name_that_is_none_has_no_address() -> None:
    """The codec for such names raises no OSError."""
    assert EngineList([f"dns+http://{'x' * 64}.default:8100"]).engines == {}


def test_an_empty_file_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("# none yet\n")
    with pytest.raises(CannotStart, match="names no engine"):
        EngineList([], str(tmp_path / "engines"))


def test_the_command_changes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines"
    for command, address, text in (
        ("add", "http://a:8100/", "http://a:8100\n"),
        ("add", "http://b:8100", "http://a:8100\nhttp://b:8100\n"),
        ("drain", "http://a:8100", "http://a:8100 drain\nhttp://b:8100\n"),
        ("add", "http://a:8100", "http://a:8100\nhttp://b:8100\n"),
        ("remove", "http://a:8100", "http://b:8100\n"),
    ):
        change_file(path, command, address_of(address))
        assert path.read_text() == text
    assert main(["remove", "http://a:8100", "--file", str(path)]) == 2
    assert "does not name http://a:8100" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["engines"]
