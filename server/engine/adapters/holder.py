"""Adapters of a loaded model: read from their folders, measured, and given to its runner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.adapter_folder import parse_adapters
from server.memory.adapters import AdapterSizes, adapter_sizes
from server.model.adapters.step import AdaptedModel
from server.model.adapters.weights import read_adapter
from server.model.device import as_memory_error
from server.model.loading.loaded_model import LoadedModel
from server.model.runner import Runner


@dataclass(frozen=True, slots=True)
class HeldAdapter:
    """An adapter as the model's backbone computes it. `num_bytes`: with what it needs while a step is computed."""

    adapted: AdaptedModel
    digest: bytes
    num_bytes: int


class ModelAdapters:
    """`max_batch_tokens`: of the largest step, whose intermediate results count as the adapter's."""

    def __init__(self, loaded: LoadedModel, max_batch_tokens: int) -> None:
        self._loaded = loaded
        self._max_batch_tokens = max_batch_tokens
        self._runner: Runner | None = None

    def use(self, runner: Runner) -> None:
        """Install adapters in this runner."""
        self._runner = runner

    def read_all(self, options: Sequence[str]) -> Iterator[tuple[str, HeldAdapter]]:
        """The adapters of `--adapter NAME=FOLDER` options, by name. Raises CannotStart and MemoryError."""
        for source in parse_adapters(options, ()):
            yield source.name, self.read_adapter(str(source.folder))

    def size_of_adapter(self, folder: str) -> int:
        """Bytes that the adapter in this folder will take. Raises CannotStart."""
        sizes = adapter_sizes(Path(folder))
        return sizes.numbers * self._loaded.dtype.itemsize + sizes.scratch_bytes(self._max_batch_tokens)

    def read_adapter(self, folder: str) -> HeldAdapter:
        """The adapter in this folder. Raises CannotStart and MemoryError."""
        weights = read_adapter(Path(folder), self._loaded.targets, self._loaded.dtype)
        with as_memory_error():
            adapted = self._loaded.backbone.adapt(weights)
        scratch = AdapterSizes(ranks=adapted.max_rank).scratch_bytes(self._max_batch_tokens)
        return HeldAdapter(adapted, weights.digest, adapted.num_bytes + scratch)

    def install_adapter(self, handle: int, adapter: HeldAdapter) -> None:
        """Compute rows of this handle with it."""
        assert self._runner is not None, "adapters are installed in a runner"
        self._runner.add_adapter(handle, adapter.adapted)

    def drop_adapter(self, handle: int) -> None:
        """Free it."""
        assert self._runner is not None, "adapters are installed in a runner"
        self._runner.drop_adapter(handle)
