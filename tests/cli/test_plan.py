"""`toolwire plan`: table, remedies and exit code, without torch, weights or downloads."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.checkpoint.locate import BUILT_IN_FOLDER
from server.cli.plan import main, read_size
from server.errors import CannotStart
from server.memory.adapters import adapter_sizes
from server.memory.budget import GIB, MIB, Demand, DeviceMemory, Plan, plan
from server.memory.headers import Tensor, read_headers
from server.memory.report import as_text, refuse, remedies, rows, size
from server.memory.start import refuse_early
from server.messages import DeviceReading
from server.settings import EngineSettings
from tests.adapter_folders import write_adapter
from tests.memory.shapes import real_model, write_headers

ROOT = Path(__file__).parents[2]
CARD = ["--gpu-memory", "24GiB"]


@pytest.fixture(scope="module")
def qwen3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-8b")
    _, tensors, config = real_model("Qwen3-8B")
    write_headers(folder, tensors, config)
    return folder


def test_the_worked_example_in_the_documentation_is_what_is_printed(
    qwen3_8b: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(qwen3_8b), *CARD]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    documented = [line.strip() for line in (ROOT / "docs/memory.md").read_text(encoding="utf-8").splitlines()]
    assert printed and [line for line in printed if line not in documented] == []


def test_the_sums_of_the_worked_example() -> None:
    """Each number of docs/memory.md, computed from the shape of the model."""
    shape, tensors, _ = real_model("Qwen3-8B")
    found = plan(shape, tensors, Demand("bfloat16"), DeviceMemory(24 * GIB, 24 * GIB), 512 * MIB)
    assert found.weights == 2 * 8_190_735_360
    assert found.token_bytes == 36 * 2 * 8 * 128 * 2
    assert found.activations == 2048 * 4096 * 2 + 256 * 151_936 * 26
    assert found.left == int(0.9 * 24 * GIB) - 512 * MIB - found.weights - found.activations
    block = found.demand.block_size
    tokens = found.num_blocks * block
    assert found.scratch == tokens * 6528
    assert tokens * found.token_bytes + found.scratch <= found.left < (tokens + block) * (found.token_bytes + 6528)


def test_too_long_a_context_is_refused_with_one_that_fits(qwen3_8b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(qwen3_8b), *CARD, "--max-model-len", "40960"]) == 2
    captured = capsys.readouterr()
    assert "are missing" in captured.out and "--quantize int8" in captured.out and "--quantize int4" in captured.out
    offered = re.search(r"^  --max-model-len (\d+):", captured.out, re.MULTILINE)
    assert offered and main([str(qwen3_8b), *CARD, "--max-model-len", offered.group(1)]) == 0
    longer = str(int(offered.group(1)) + 16)
    assert main([str(qwen3_8b), *CARD, "--max-model-len", longer]) == 2


def test_an_option_that_cannot_be_read_is_named(qwen3_8b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(qwen3_8b), *CARD, "--max-model-len", "32k"]) == 2
    assert "max_model_len" in capsys.readouterr().err


def flags_of(remedy: str) -> list[str]:
    return remedy.partition(":")[0].split()


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-8B", "Qwen3-32B", "Qwen3.5-9B", "Qwen3.5-27B", "Qwen3-30B-A3B"])
def test_every_remedy_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """An option that is printed as the way out and is refused again; each is applied as it is printed."""
    shape, tensors, config = real_model(name)
    write_headers(tmp_path, tensors, config)
    num_remedies = 0
    for gib in (2, 8, 16, 24, 48, 64, 66):
        device = DeviceMemory(gib * GIB, gib * GIB)
        found = plan(shape, tensors, Demand("bfloat16", max_model_len=32_768), device, 512 * MIB)
        for remedy in [] if found.fits else remedies(shape, tensors, found):
            arguments = ["--max-model-len", "32768", *flags_of(remedy)]
            assert main([str(tmp_path), "--gpu-memory", f"{gib}GiB", *arguments]) == 0, (gib, remedy)
            num_remedies += 1
    assert num_remedies > 0
    capsys.readouterr()


def test_keys_and_values_in_bytes_are_offered_where_kernels_keep_them() -> None:
    """What was offered and then refused at the start helped nobody."""
    shape, tensors, _ = real_model("Qwen3-8B")
    offered = []
    for dtype, is_host in (("bfloat16", False), ("float16", False), ("bfloat16", True), ("float16", True)):
        device = DeviceMemory(24 * GIB, 24 * GIB, is_host=is_host)
        found = plan(shape, tensors, Demand(dtype, max_model_len=40_000, max_running=4), device, 512 * MIB)
        assert not found.fits
        offered.append(any("--kv-dtype int8" in one for one in remedies(shape, tensors, found)))
    assert offered == [True, True, True, False]


def test_a_model_that_no_option_makes_fit_says_so() -> None:
    shape, tensors, _ = real_model("Qwen3-32B")
    found = plan(shape, tensors, Demand("bfloat16"), DeviceMemory(8 * GIB, 8 * GIB))
    text = str(refuse(shape, tensors, found))
    assert "no option makes it fit" in text and as_text(rows(found)) in text


def test_the_engine_refuses_before_a_byte_of_weights_is_read(qwen3_8b: Path) -> None:
    reading = DeviceReading("card", "GPU-1", "nvml", 8 * GIB, GIB, 7 * GIB, 0)
    with pytest.raises(CannotStart, match=r"does not fit, .* are missing") as caught:
        refuse_early(qwen3_8b, 0, EngineSettings(), reading)
    assert "weights" in str(caught.value) and "KV per 1k tokens" in str(caught.value)
    roomy = DeviceReading("card", "GPU-1", "nvml", 80 * GIB, GIB, 79 * GIB, 0)
    assert refuse_early(qwen3_8b, 0, EngineSettings(), roomy).plan.fits


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("24GiB", 24 * GIB), ("24 GB", 24 * 10**9), ("1.5gib", 3 * GIB // 2), ("1024", 1024)]
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert read_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "24 XB", "many"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(CannotStart, match="24GiB"):
        read_size(text)


def test_sizes_for_people() -> None:
    assert [size(n) for n in (512, 3 * MIB, 5 * GIB)] == ["0.5 KiB", "3.0 MiB", "5.00 GiB"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", b"<html>no weights</html>"],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CannotStart, match=r"model\.safetensors"):
        read_headers(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"no \*\.safetensors"):
        read_headers(tmp_path)


def test_an_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CannotStart, match="Q7"):
        read_headers(tmp_path)


def test_planning_imports_no_torch() -> None:
    code = "import sys, server.cli.plan, server.memory.guard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


class Hub(http.server.SimpleHTTPRequestHandler):
    """A hub with one checkpoint; counts the bytes that it sends."""

    folder: Path
    sent: list[int]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.folder / self.path.rpartition("/")[2].partition("?")[0]
        if "/resolve/" not in self.path or not path.exists():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        total = path.stat().st_size
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(requested[1]), min(int(requested[2]), total - 1)) if requested else (0, total - 1)
        self.send_response(206 if requested else 200)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        if with_body:
            with path.open("rb") as file:
                file.seek(begin)
                self.sent.append(self.wfile.write(file.read(end - begin + 1)))

    def log_message(self, format: str, *args: object) -> None:
        """No request log in the output of the tests."""


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[int]]]:
    sent: list[int] = []
    handler = type("OneHub", (Hub,), {"folder": folder, "sent": sent})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_hub_id_is_planned_from_its_headers_alone(qwen3_8b: Path, tmp_path: Path) -> None:
    """16 GB of weights are not downloaded."""
    with hub_of(qwen3_8b) as (url, sent):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "server.cli.plan", "Qwen/Qwen3-8B", *CARD],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "15.26 GiB" in done.stdout and 0 < sum(sent) < MIB


def test_an_unknown_hub_id_is_refused(qwen3_8b: Path, tmp_path: Path) -> None:
    with hub_of(tmp_path) as (url, _):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "server.cli.plan", "Qwen/Nothing", *CARD]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Qwen/Nothing cannot be read from the hub" in done.stderr


def test_planning_for_this_machine_uses_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, tensors, config = real_model("Qwen3-0.6B")
    small = tuple(Tensor(t.name, t.dtype, tuple(max(1, side // 64) for side in t.shape)) for t in tensors)
    write_headers(tmp_path, small, {**config, "vocab_size": 2000})
    assert main([str(tmp_path), "--device", "cpu", "--max-model-len", "64", "--max-batch-tokens", "64"]) == 0
    assert "longest sequence" in capsys.readouterr().out


def plan_rows(found: Plan) -> list[str]:
    return [row.label for row in rows(found)]


def test_hybrid_models_show_their_state_in_the_table() -> None:
    shape, tensors, _ = real_model("Qwen3.5-9B")
    assert "state per sequence" in plan_rows(plan(shape, tensors, Demand("bfloat16"), DeviceMemory(24 * GIB, 24 * GIB)))
    shape, tensors, _ = real_model("Qwen3-8B")
    assert "state per sequence" not in plan_rows(
        plan(shape, tensors, Demand("bfloat16"), DeviceMemory(24 * GIB, 24 * GIB))
    )


def test_adapters_are_counted_among_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From their headers, in the model's type; one that cannot be served is refused here as at the start."""
    model = str(BUILT_IN_FOLDER)
    for name in ("one", "two"):
        write_adapter(tmp_path / name, BUILT_IN_FOLDER, rank=16)
    numbers = adapter_sizes(tmp_path / "one").numbers
    assert main([model, *CARD]) == 0
    plain = capsys.readouterr().out
    options = [f"--adapter=one={tmp_path}/one", f"--adapter=two={tmp_path}/two", "--dtype", "bfloat16"]
    assert main([model, *CARD, *options]) == 0
    printed = capsys.readouterr().out
    assert "among the weights" not in plain
    assert re.search(rf"adapters +{size(2 * numbers * 2)} ", printed), printed
    assert main([model, *CARD, f"--adapter=one={tmp_path}/three"]) == 2
    assert "no folder" in capsys.readouterr().err
