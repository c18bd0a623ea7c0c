"""Quantization inside transformers' loading: a weight is quantized as soon as it is read, and freed before the next.

Weights whose codes a GGUF file has are replaced by these in the same way. Registered as a quantization method of
transformers, which then reads one tensor at a time.
"""

from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from server.config_json import is_quantizable, is_quantizable_expert
from server.errors import CannotStart
from server.model.adapters.merging import MergedAdapter
from server.model.layers.packed_linear import release_mapped_pages
from server.model.loading.gguf_codes import StoredCodes
from server.model.quantization.experts import QuantizedExperts
from server.model.quantization.linear import Product, QuantizedLinear
from server.model.quantization.quantize import quantize

METHOD = "toolwire"
STACKED = ("gate_up_proj", "down_proj")  # weights of experts


@register_quantization_config(METHOD)
class StreamingConfig(QuantizationConfigMixin):
    """Bits of the projections or 0, the compiled CPU kernels if there are some, and the product of the layers.

    `experts`: whether those of experts are quantized, too; on a GPU their loop would keep steps out of CUDA graphs.
    `stored`: of a GGUF file, with the codes that are kept.
    """

    def __init__(
        self, width: int, kernels: CDLL | None, product: Product, experts: bool, stored: StoredCodes | None = None
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers reads any name that is registered
        self.width = width
        self.kernels = kernels
        self.product = product
        self.experts = experts
        self.merge: MergedAdapter | None = None  # into each weight, before it is quantized
        self.stored = stored
        self.fault: CannotStart | None = None  # transformers raises another error in its place

    def __deepcopy__(self, memo: dict[int, Any]) -> "StreamingConfig":
        """Itself: a library cannot be copied, and nothing here changes."""
        return self

    def keeps(self, name: str) -> bool:
        """Whether the weight of this name is replaced by the codes of a file."""
        return self.stored is not None and name in self.stored.kept

    def to_dict(self) -> dict[str, Any]:
        """What transformers logs and saves."""
        return {"quant_method": METHOD, "width": self.width}


@register_quantizer(METHOD)
class StreamingQuantizer(HfQuantizer):
    """Quantizes the projections of the layers while transformers loads them."""

    quantization_config: StreamingConfig

    def param_needs_quantization(self, model: Any, param_name: str, **unused: Any) -> bool:
        """Whether this is the weight of a projection or of experts."""
        path, _, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        shape = getattr(module, name).shape
        if self.quantization_config.keeps(param_name):
            is_linear = type(module) is nn.Linear and module is not model.get_output_embeddings()
            return is_linear or is_stacked(module)
        if not self.quantization_config.width:
            return False
        if type(module) is nn.Linear:
            is_head = module is model.get_output_embeddings()
            return name == "weight" and not is_head and is_quantizable(param_name, shape)
        return (
            bool(self.quantization_config.experts) and is_stacked(module) and is_quantizable_expert(param_name, shape)
        )

    def get_quantize_ops(self) -> "QuantizeWeight":
        """The operation on a weight that was read."""
        return QuantizeWeight(self.quantization_config)

    def is_serializable(self) -> bool:
        """Nothing is saved."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Nothing is trained."""
        return False


class QuantizeWeight(ConversionOps):
    """Puts a quantized layer in the place of a linear one, or of experts."""

    def __init__(self, config: StreamingConfig) -> None:
        self._config = config

    def convert(  # type: ignore[override]  # transformers passes these by name
        self, input_dict: dict[str, Any], model: Any, full_layer_name: str, missing_keys: set[str], **unused: Any
    ) -> dict[str, Tensor]:
        """Quantize the only weight of `input_dict`; nothing is left for transformers to set."""
        (found,) = input_dict.values()
        weight = found[0] if isinstance(found, list) else found
        try:
            if self._config.merge is not None:
                weight = self._config.merge.merged(full_layer_name, weight, torch.float32)
            replace(model, full_layer_name, weight, self._config)
        except CannotStart as error:
            self._config.fault = error
            raise
        missing_keys.discard(full_layer_name)
        return {}


def replace(model: Any, name: str, weight: Tensor, config: StreamingConfig) -> None:
    """Quantize the weight of this name, or take its codes, and replace its layer; that of experts once it has both.

    A layer's bias must have been read: transformers reads in the order of names. Raises CannotStart for a weight of
    another shape than the layer's, which transformers does not look at here, or with numbers that are not finite.
    """
    path, _, own = name.rpartition(".")
    parent_path, _, part = path.rpartition(".")
    parent, module = model.get_submodule(parent_path), model.get_submodule(path)
    expected = getattr(module, own).shape
    if weight.shape != expected:
        raise CannotStart(f"{name} has the shape {list(weight.shape)}; the configuration says {list(expected)}")
    if config.stored is not None and config.keeps(name):
        packed = config.stored.packed(name)
    else:
        packed = quantize(weight.flatten(0, -2), config.width, name, config.kernels)
        release_mapped_pages(weight)
    if type(module) is nn.Linear:
        setattr(parent, part, QuantizedLinear(packed, module.bias, config.product))
        return
    quantized = vars(module).setdefault("_quantized", {})
    quantized[own] = packed
    setattr(module, own, None)
    if quantized.keys() == set(STACKED):
        gate_up, down = (quantized[one] for one in STACKED)
        setattr(parent, part, QuantizedExperts(gate_up, down, module.act_fn, config.product))


def is_stacked(module: Any) -> bool:
    """Whether this module has the stacked weights of experts, [experts, outputs, inputs] each."""
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in STACKED)
