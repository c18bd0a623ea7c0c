"""Location of a checkpoint: a local folder, or a hub id downloaded into the hub's cache."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from server.errors import CannotStart
from server.settings import BUILT_IN_MODEL

BUILT_IN_FOLDER = Path(__file__).parents[1] / "demo_model"
BUILT_IN_NAME = "toolwire-demo"
TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def locate(model: str, *, weights: bool = True) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded first, without its weights if they are not needed.

    Raises CannotStart naming what to change.
    """
    if model == BUILT_IN_MODEL:
        return BUILT_IN_FOLDER
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CannotStart(f"--model {model} is a file; give the folder that holds config.json and the weights")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CannotStart(f"--model {model} does not exist; give a folder, or a hub id such as Qwen/Qwen3-0.6B")
    try:
        return Path(snapshot_download(model, allow_patterns=[*TEXT_FILES, "*.safetensors"] if weights else TEXT_FILES))
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


def served_name(model: str, chosen: str) -> str:
    """The name that clients use: the operator's choice, or the last part of the path or id."""
    if chosen or model == BUILT_IN_MODEL:
        return chosen or BUILT_IN_NAME
    path = Path(model).expanduser()
    path = path.resolve() if path.is_dir() else path
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):  # of the hub's cache
        return path.parents[1].name.rpartition("--")[2]
    return path.name or model
