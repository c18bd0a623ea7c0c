"""Location of a checkpoint: a local folder or GGUF file, or a hub id downloaded into the hub's cache.

A hub id with the name of a type behind it (Qwen/Qwen3-4B-GGUF:Q4_K_M) is the GGUF file of that type.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from server.checkpoint.shipped import HOW_TO_FETCH, TINY_NAMES, find_base, is_shipped
from server.errors import CannotStart
from server.settings import SMOLLM2_MODEL

BUILT_IN_FOLDER = Path(__file__).parents[1] / "demo_model"
BUILT_IN_NAME, SMOLLM2_NAME = "toolwire-demo", "toolwire-smollm2"
PROJECTORS = "*mmproj*"  # GGUF files of vision towers
TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def locate(model: str, *, weights: bool = True) -> Path:
    """The local folder or GGUF file of a checkpoint; a hub id is downloaded first, without weights if not needed.

    Raises CannotStart naming what to change.
    """
    if model in TINY_NAMES:
        return BUILT_IN_FOLDER
    if model == SMOLLM2_MODEL:
        return _base()
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        return path.absolute()  # links are kept: the parts of a split file are found by its name
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CannotStart(
            f"--model {model} does not exist; give a folder, a GGUF file, or a hub id such as Qwen/Qwen3-0.6B or "
            "Qwen/Qwen3-0.6B-GGUF:Q8_0"
        )
    repository, _, kind = model.partition(":")
    if kind:
        patterns = _gguf_patterns(model, kind)
        return _choose_gguf(_download(model, repository, patterns), patterns, model)
    return _download(model, repository, [*TEXT_FILES, "*.safetensors"] if weights else TEXT_FILES)


def _base() -> Path:
    base = find_base()
    if base is None:
        raise CannotStart(f"--model {SMOLLM2_MODEL}: SmolLM2-135M-Instruct is not here; {HOW_TO_FETCH}")
    return base


def locate_cached_gguf(model: str) -> Path:
    """The GGUF file of a hub id and a type, of which nothing is downloaded; raises CannotStart if it is not there."""
    repository, _, kind = model.partition(":")
    patterns = _gguf_patterns(model, kind)
    try:
        folder = snapshot_download(repository, allow_patterns=patterns, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise CannotStart(
            f"{model} is not in the hub's cache; fetch it with `hf download {repository} --include '{patterns[0]}'`"
        ) from error
    return _choose_gguf(Path(folder), patterns, model)


def _download(model: str, repository: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=[PROJECTORS]))
    except HFValidationError as error:
        raise CannotStart(f"--model {model} is neither a folder nor a hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CannotStart(
            f"--model {model} is no local folder, and the hub cannot be reached to fetch it; "
            "check the spelling, or the network, or give a folder"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise CannotStart(
            f"--model {model} cannot be fetched from the hub (status {status}); check the id and your access to it"
        ) from error
    except OSError as error:
        raise CannotStart(f"--model {model} cannot be fetched from the hub: {error}") from error


def _gguf_patterns(model: str, kind: str) -> list[str]:
    """Patterns of the names that a file of this type has: whole or in parts, in whatever case the type is written."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", kind):
        raise CannotStart(f"--model {model}: name a type behind the colon, such as Q4_K_M")
    spellings = dict.fromkeys((kind, kind.upper(), kind.lower()))
    return [f"*[-.]{spelling}{end}" for spelling in spellings for end in (".gguf", "-*-of-*.gguf")]


def _choose_gguf(folder: Path, patterns: Sequence[str], model: str) -> Path:
    """The one file with such a name in a hub's folder, or the first of its parts; raises CannotStart."""
    files = [path for path in sorted(folder.rglob("*.gguf")) if not fnmatchcase(path.name, PROJECTORS)]
    found = [path for path in files if any(fnmatchcase(path.name, pattern) for pattern in patterns)]
    whole = [path for path in found if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", path.name)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        names = ", ".join(path.name for path in whole)
        raise CannotStart(f"--model {model} may be {names}; give the path of one of these files in {folder}")
    raise CannotStart(f"--model {model}: no GGUF file of that type is there; its files are listed on the hub")


def served_name(model: str, chosen: str) -> str:
    """The name that clients use: the operator's choice, or the last part of the path or id."""
    if chosen or is_shipped(model):
        return chosen or (SMOLLM2_NAME if model == SMOLLM2_MODEL else BUILT_IN_NAME)
    path = Path(model).expanduser()
    if path.is_file():
        return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name, flags=re.IGNORECASE)
    path = path.resolve() if path.is_dir() else path
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):  # of the hub's cache
        return path.parents[1].name.rpartition("--")[2]
    return path.name or model


def other_names(model: str, chosen: str) -> tuple[str, ...]:
    """Further names that requests may use: the value of --model; none beside a name that the operator chose.

    The two models that come with toolwire share one, so that the documents' requests fit whichever is served.
    """
    if chosen:
        return ()
    return (model, BUILT_IN_NAME) if model == SMOLLM2_MODEL else (model,)
