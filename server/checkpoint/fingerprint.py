"""Fingerprint of a checkpoint: whether two machines hold the same model, without reading all of its weights."""

import hashlib
import json
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from server.adapter_folder import read_adapter_config
from server.config_json import read_config, read_json
from server.errors import CannotStart

DIGEST_BYTES = 12
NUM_SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file of weights; two fine-tunes of one model differ in nearly every one
# What tools write beside the model itself, and what a loader may change: two copies of one model may differ in it.
REMARKS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


class Fingerprint(msgspec.Struct, frozen=True):
    """Digests of a checkpoint's parts, in hexadecimal. `weights` is empty where the folder holds none.

    `config` is also of the adapter that is merged.
    """

    config: str
    vocabulary: str
    weights: str = ""

    def difference(self, other: "Fingerprint") -> str:
        """The part in which another checkpoint differs; empty for the same. Weights that are not there are no part."""
        if self.vocabulary != other.vocabulary:
            return "vocabulary"
        if self.config != other.config:
            return "config.json or --merge-adapter"
        return "weights" if self.weights and other.weights and self.weights != other.weights else ""


def fingerprint(path: Path, tokenizer: Tokenizer, merged_adapter: str = "") -> Fingerprint:
    """The fingerprint of the checkpoint in this folder or GGUF file, into which the adapter of a folder is merged.

    Raises CannotStart if it cannot be read.
    """
    try:
        fields = read_config(path) if path.is_file() else read_json(path / "config.json")
        config = {key: value for key, value in fields.items() if key not in REMARKS}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        weights = _digest_of_weights(path)
        if merged_adapter:
            config["merged_adapter"] = _identity_of_adapter(Path(merged_adapter).expanduser())
        return Fingerprint(_digest(config), _digest(vocabulary), weights)
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error}") from error


def _identity_of_adapter(folder: Path) -> str:
    """Over what decides how it changes the weights."""
    own = read_adapter_config(folder)
    patterns = [dict(own.rank_pattern), dict(own.alpha_pattern)]
    return _digest([_digest_of_weights(folder), own.rank, own.alpha, own.use_rslora, *patterns])


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _digest_of_weights(checkpoint: Path) -> str:
    """Over the names, the sizes, and samples that are spread over each file."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    if not files:
        return ""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(NUM_SAMPLES):
                file.seek(size * number // NUM_SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
