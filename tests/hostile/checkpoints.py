"""Folders of checkpoints that try to run code when they are opened or loaded: none does.

python -m tests.hostile.checkpoints FOLDER opens and loads the checkpoints below a folder, each to its end or its error.
"""

import contextlib
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.checkpoint.locate import BUILT_IN_FOLDER
from server.cli.check import check_model
from server.errors import CannotStart
from tests.hostile.scenario import Outcome
from tests.live import ROOT

TIMEOUT_S = 400.0
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
CANARY = "code-ran"
Write = Callable[[Path, Path], None]  # the folder, and the file that its code would create


@dataclass(frozen=True, slots=True)
class Touch:
    """An object that creates a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def python_of(canary: Path) -> str:
    """Return Python source that creates the file and defines whatever a loader may look for."""
    return (
        f"open({str(canary)!r}, 'w').close()\n"
        "class Model:\n    from_pretrained = classmethod(lambda cls, *args, **kwargs: cls())\n"
    )


def fields(name: str, **values: Any) -> Write:
    """Set fields of one of the JSON files."""

    def write(folder: Path, canary: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))
        for module in ("modeling_evil", "configuration_evil", "tokenization_evil", "evil", "custom_generate/generate"):
            (folder / module).parent.mkdir(exist_ok=True)
            (folder / f"{module}.py").write_text(python_of(canary))

    return write


def module(name: str) -> Write:
    """Add a Python file that an import, a test runner or an installer would run."""

    def write(folder: Path, canary: Path) -> None:
        (folder / name).write_text(python_of(canary))

    return write


def pickled(name: str, has_safetensors: bool = True) -> Write:
    """Add a file of pickled weights."""

    def write(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Touch(str(canary))))
        if not has_safetensors:
            (folder / "model.safetensors").unlink()

    return write


def text(name: str, content: str) -> Write:
    """Write a file; CANARY in it is the path of the file that its code would create."""

    def write(folder: Path, canary: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_text(content.replace("CANARY", str(canary)))

    return write


AUTO_MAP = {"AutoModelForCausalLM": "modeling_evil.Model", "AutoConfig": "configuration_evil.Model"}
TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_evil.Model", "tokenization_evil.Model"]}
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ joiner.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ namespace.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ strftime_now.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ tojson.__globals__ }}",
    "{{ (messages|attr('__class__')|attr('__base__')|attr('__subclasses__'))() }}",
    "{{ messages | map(attribute='__class__.__init__.__globals__') | list }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ '%s'.__mod__.__self__.__class__.__base__.__subclasses__() }}",
    "{% include 'CANARY' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append.__self__.__class__ }}{{ messages.clear() }}",
    "{% set x = messages.__class__.__base__.__subclasses__() %}{{ x[132]('touch CANARY', shell=True) }}",
    "{% for x in range(10**10) %}{{ x }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ range(10**9) | list | sort }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
)
FOLDERS: dict[str, Write] = {
    "auto_map": fields("config.json", auto_map=AUTO_MAP, trust_remote_code=True),
    "auto_map with an unknown model": fields(
        "config.json", auto_map=AUTO_MAP, model_type="evil", architectures=["Model"]
    ),
    "auto_map of another repository": fields("config.json", auto_map={"AutoConfig": "evil/repository--evil.Model"}),
    "auto_map of the tokenizer": fields("tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="Model"),
    "tokenizer class of another module": fields("tokenizer_config.json", tokenizer_class="os.system"),
    "tokenizer file elsewhere": fields("tokenizer_config.json", tokenizer_file="/etc/passwd"),
    "custom generation": fields("generation_config.json", custom_generate="custom_generate"),
    "model type of a path": fields("config.json", model_type="../evil"),
    "dtype of an expression": fields("config.json", dtype="__import__('os').system('true')", torch_dtype="os.system"),
    "architecture of another module": fields("config.json", architectures=["os.system", "evil.Model"]),
    "quantization of a module": fields(
        "config.json", quantization_config={"quant_method": "evil", "modules": "evil.py"}
    ),
    "attention of another repository": fields("config.json", _attn_implementation="evil/repository:attention"),
    "kernels of another repository": fields("config.json", kernel_config={"RMSNorm": "evil/repository:Norm"}),
    "processor": fields("processor_config.json", auto_map={"AutoProcessor": "evil.Model"}, processor_class="Model"),
    "adapter": fields("adapter_config.json", auto_mapping={"base_model_class": "Model", "parent_library": "evil"}),
    "a pickle beside the weights": pickled("pytorch_model.bin"),
    "a pickle instead of the weights": pickled("pytorch_model.bin", has_safetensors=False),
    "a pickled tokenizer": pickled("tokenizer.pkl"),
    "a pickle named safetensors": pickled("model-00001.safetensors"),
    "site customization": module("sitecustomize.py"),
    "a module named json": module("json.py"),
    "a module named transformers": module("transformers.py"),
    "config nested 100,000 deep": text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "tokenizer config nested 100,000 deep": text("tokenizer_config.json", "[" * 100_000),
    "tokenizer nested 100,000 deep": text("tokenizer.json", '{"model":' * 100_000),
    "index of files elsewhere": text("model.safetensors.index.json", '{"weight_map": {"a": "../../../../etc/passwd"}}'),
} | {f"template {number}": text("chat_template.jinja", source) for number, source in enumerate(ESCAPES)}


def hostile_checkpoints(names: str = "") -> tuple[Outcome, int]:
    """Open and load every folder in another process; return its faults and the number of processes that died."""
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        for number, (name, write) in enumerate(FOLDERS.items()):
            if names in name:
                make_folder(top / f"{number:02}", write)
        command = [sys.executable, "-m", "tests.hostile.checkpoints", str(top)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            outcome = Outcome(len(run.stdout.splitlines()), [line for line in run.stdout.splitlines() if " " in line])
            if run.returncode:
                outcome.faults.append(f"ended with {run.returncode}: {run.stderr[-300:]}")
            kinds = list(FOLDERS)
            outcome.faults += [f"{kinds[int(path.parent.name)]}: ran code" for path in top.glob(f"*/{CANARY}")]
            return outcome, int(run.returncode != 0)
    return Outcome(0, [f"not done after {TIMEOUT_S} s"]), 1


def make_folder(folder: Path, write: Write) -> None:
    """Copy the built-in model, with its weights as a link, and put the hostile file into it."""
    folder.mkdir()
    for name in COPIED:
        if (BUILT_IN_FOLDER / name).exists():
            shutil.copy(BUILT_IN_FOLDER / name, folder)
    for weights in BUILT_IN_FOLDER.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights)
    write(folder, folder / CANARY)


def open_and_load(folder: Path) -> str:
    """Open a checkpoint as both processes do; return its name, and an error that is not of one line."""
    from server.model.loading.loader import load  # torch, which the parent does not need
    from server.settings import EngineSettings

    for step in (lambda: check_model(str(folder), "", "auto"), lambda: load(folder, EngineSettings(), lambda _: None)):
        try:
            step()
        except CannotStart as error:
            if "\n" in str(error):
                return f"{folder.name} an error of several lines: {str(error)[:200]!r}"
        except Exception as error:  # noqa: BLE001 - a fault of this folder, which the caller prints
            return f"{folder.name} {type(error).__name__}: {str(error)[:200]!r}"
    return folder.name


def main() -> None:
    """Print one line for each folder: its name, and a fault behind it."""
    output = sys.stdout
    sys.stdout = sys.stderr  # of the checks
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        print(open_and_load(folder), file=output, flush=True)


if __name__ == "__main__":
    main()
