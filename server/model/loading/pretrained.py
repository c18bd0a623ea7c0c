"""Loads a checkpoint through transformers, with paged attention registered; every fault is a one-line CannotStart.

transformers' own modelling code runs unchanged. The attention function is registered under a name of its own, and no
mask function for that name, so that transformers builds no mask. The name must not begin with `paged|`, which
transformers rewrites.
"""

import re
import threading
import time
from ctypes import CDLL
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.config_json import QUANTIZED_WIDTHS, WRAPPERS, can_be_packed, computes_float8, head_width, read_config
from server.errors import CannotStart
from server.model.adapters.merging import MergedAdapter, open_merged_adapter
from server.model.adapters.weights import Targets, find_targets
from server.model.attention.base import paged_attention
from server.model.cpu.layer_reader import supports_decoder
from server.model.cpu.native import NativeBackbone, NativeHead
from server.model.cpu.quantized import choose_look_up
from server.model.kernel_selection import choose_backbone, choose_one_row, choose_quantized_product
from server.model.layers.decoder import COMPACT_MODEL_TYPES
from server.model.layers.packed_linear import pack_linears
from server.model.layers.recurrent import recurrent_shape, wrap_linear_attention
from server.model.loading.gguf_codes import StoredCodes
from server.model.loading.gguf_weights import LazyWeight
from server.model.loading.loaded_model import KvShape, LoadedModel, OnProgress, count_bytes
from server.model.loading.plain import EMBEDDING, HEAD
from server.model.loading.streaming import METHOD, StreamingConfig, StreamingQuantizer, replace
from server.model.quantization.linear import (
    QuantizedEmbedding,
    QuantizedLinear,
    round_inputs,
    warn_of_slow_products,
    warn_of_unpacking,
)
from server.model.quantization.quantize import quantize
from server.settings import EngineSettings

ATTENTION_NAME = "toolwire"
WRAPPED = rf"^(?:{'|'.join(map(re.escape, WRAPPERS))})+"
MAX_NAMED = 4  # tensors in an error
LAYER_TYPES = ("full_attention", "linear_attention")
RECURRENT_MODELS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
QUANTIZATION_PACKAGES = {  # quantization method in config.json -> packages that transformers needs for it
    "awq": "gptqmodel",
    "gptq": "gptqmodel optimum",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "hqq": "hqq",
}


def load_pretrained(
    checkpoint: Path,
    settings: EngineSettings,
    device: torch.device,
    kernels: CDLL | None,
    on_progress: OnProgress,
    began_s: float,
) -> LoadedModel:
    """Load the checkpoint with transformers. Raises CannotStart, with a one-line text."""
    config = _read_config(checkpoint)
    _refuse_unsupported(config)
    _choose_float8(config, device)
    merge = open_merged_adapter(settings.merge_adapter)
    stored = _read_stored(checkpoint, config, settings, device, kernels, merge) if checkpoint.is_file() else None
    quantization = _quantization(settings, device, kernels, stored)
    streaming = quantization if getattr(config, "quantization_config", None) is None else None
    if streaming is not None:
        streaming.merge = merge
    model = _load_model(checkpoint, config, settings, device, streaming, stored, on_progress)
    if merge is not None:
        merge.merge_into(model.get_decoder())
    if quantization is not None:
        _quantize_rest(model, quantization)
        round_inputs(model, settings)
        if device.type == "cpu" and kernels is None:
            warn_of_unpacking()
        elif device.type == "cuda":
            warn_of_slow_products()
    targets = find_targets(model.get_decoder())
    if getattr(model, "hf_quantizer", None) is None and not (kernels and _suits_kernels(model)):
        pack_linears(model)
    return wrap_model(model, device, began_s, kernels, targets)


def wrap_model(
    model: Any,
    device: torch.device,
    began_s: float,
    kernels: CDLL | None = None,
    targets: Targets | None = None,
) -> LoadedModel:
    """Wrap a transformers model that uses ATTENTION_NAME, with packed linear layers or without.

    `kernels`: the compiled CPU kernels, if they may be used. `targets` were found before layers were packed.
    """
    text = model.config.get_text_config()
    recurrent = recurrent_shape(text) if text.model_type in RECURRENT_MODELS else None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    native = kernels if kernels and _suits_kernels(model) else None
    targets = find_targets(decoder) if targets is None else targets
    if recurrent and not native:
        wrap_linear_attention(decoder)
    return LoadedModel(
        backbone=NativeBackbone(decoder, native) if native else choose_backbone(decoder, device),
        head=NativeHead(head, native) if native else head,
        device=device,
        dtype=model.dtype,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        kv=_kv_shape(text),
        recurrent=recurrent,
        weight_bytes=count_bytes(model),
        load_s=time.monotonic() - began_s,
        kernels=kernels,
        targets=targets,
        one_row=choose_one_row(decoder, head, device),
    )


def _suits_kernels(model: Any) -> bool:
    decoder, known = model.get_decoder(), (*COMPACT_MODEL_TYPES, *RECURRENT_MODELS)
    return decoder.config.model_type in known and supports_decoder(decoder, model.get_output_embeddings())


def _read_config(checkpoint: Path) -> Any:
    fields = read_config(checkpoint) if checkpoint.is_file() else None
    try:
        if fields is not None:
            return transformers.AutoConfig.for_model(**fields)
        return transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:  # its classes raise whatever the values of the file lead to
        path = checkpoint if fields is not None else checkpoint / "config.json"
        raise CannotStart(f"transformers cannot read {path}: {_first_line(error)}") from error


def _refuse_unsupported(config: Any) -> None:
    """Raise CannotStart for layer types that would be computed wrongly, before any weight is read."""
    text = config.get_text_config()
    types = getattr(text, "layer_types", None) or ["full_attention"]
    for layer_type in types:
        if layer_type not in LAYER_TYPES:
            raise CannotStart(
                f"this checkpoint has layers of type {layer_type!r}, which this server does not compute; "
                f"it supports {' and '.join(LAYER_TYPES)}"
            )
    if "linear_attention" in types and text.model_type not in RECURRENT_MODELS:
        supported = ", ".join(RECURRENT_MODELS)
        raise CannotStart(f"linear_attention layers are supported in {supported}, not in {text.model_type}")
    if getattr(text, "is_encoder_decoder", False):
        raise CannotStart(f"{text.model_type} is an encoder-decoder model; this server runs decoders only")


def _choose_float8(config: Any, device: torch.device) -> None:
    """Dequantize float8 weights to bfloat16 while loading, where nothing computes with float8.

    transformers does so on a CPU and on cards older than compute capability 8.9; on newer ones it would look for the
    package `kernels` only at the first request.
    """
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == "fp8":
        quantization["dequantize"] = not computes_float8(on_host=device.type != "cuda")


def _load_model(
    checkpoint: Path,
    config: Any,
    settings: EngineSettings,
    device: torch.device,
    quantization: StreamingConfig | None,
    stored: StoredCodes | None,
    on_progress: OnProgress,
) -> Any:
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
    dtype: Any = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    loader: Any = transformers.AutoModelForCausalLM
    source: Path | None = checkpoint
    weights: dict[str, LazyWeight] | None = None
    if stored is not None:  # transformers is given the weights, and reads each when it needs it
        loader, source, dtype = getattr(transformers, config.architectures[0]), None, stored.numbers.dtype
        weights = stored.numbers.lazy(stored.kept)
    stop = threading.Event()
    watch = threading.Thread(target=_watch_loading, args=(checkpoint, device, on_progress, stop), daemon=True)
    watch.start()
    try:
        found: Any = loader.from_pretrained(
            source,
            state_dict=weights,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            device_map={"": device} if device.type == "cuda" else None,
            local_files_only=True,
            use_safetensors=True,
            key_mapping={WRAPPED: ""},
            quantization_config=quantization,
            output_loading_info=True,
        )
    except ImportError as error:
        raise CannotStart(_missing_package(config, error)) from error
    except torch.OutOfMemoryError as error:
        raise CannotStart(f"the weights do not fit into the memory of {device}: {_first_line(error)}") from error
    except Exception as error:  # as above, and those of safetensors and of quantization packages
        fault = CannotStart(f"transformers cannot load {checkpoint}: {_first_line(error)}")
        raise (quantization and quantization.fault) or fault from error
    finally:
        stop.set()
        watch.join()
    model, report = found
    _refuse_missing(checkpoint, model, report)
    model.train(False)
    return model.requires_grad_(False)


def _refuse_missing(checkpoint: Path, model: Any, report: Any) -> None:
    """Raise CannotStart for weights that the files do not hold: transformers draws random ones in their place."""
    missing = sorted(report["missing_keys"])
    if getattr(model, "hf_quantizer", None) is not None:  # whose methods may do without scales and biases
        missing = [name for name in missing if name.endswith("weight")]
    if not missing:
        return
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    unknown = sorted(report["unexpected_keys"])
    instead = f"; it holds {unknown[0]}, which is not in this model" if unknown else ""
    raise CannotStart(f"{checkpoint} holds no weights for {', '.join(missing[:MAX_NAMED])}{more}{instead}")


def _watch_loading(checkpoint: Path, device: torch.device, on_progress: OnProgress, stop: threading.Event) -> None:
    """Report progress by the bytes that the process has read, as transformers reports none."""
    files = [checkpoint] if checkpoint.is_file() else checkpoint.glob("*.safetensors")
    total = sum(path.stat().st_size for path in files) or 1
    before = _bytes_in(device)
    while not stop.wait(0.25):
        on_progress(min(0.99, max(0.0, (_bytes_in(device) - before) / total)))


def _bytes_in(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")  # Linux; elsewhere progress stays at 0 until the end
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def _missing_package(config: Any, error: ImportError) -> str:
    quantization = getattr(config, "quantization_config", None)
    fields = quantization if isinstance(quantization, dict) else getattr(quantization, "__dict__", {})
    method = str(fields.get("quant_method", "")).removeprefix("QuantizationMethod.").lower()
    packages = QUANTIZATION_PACKAGES.get(method)
    if packages:
        needed = " and ".join(packages.split())
        return f"this checkpoint is quantized with {method}: it needs {needed} (pip install {packages})"
    return f"this checkpoint needs a package that is not installed: {_first_line(error)}"


def _read_stored(
    checkpoint: Path,
    config: Any,
    settings: EngineSettings,
    device: torch.device,
    kernels: CDLL | None,
    merge: MergedAdapter | None,
) -> StoredCodes:
    """The weights of a GGUF file, of which a CPU keeps the codes."""
    dtype = config.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return StoredCodes(checkpoint, dtype, settings, kernels, on_host=device.type == "cpu", merge=merge)


def _quantization(
    settings: EngineSettings, device: torch.device, kernels: CDLL | None, stored: StoredCodes | None
) -> StreamingConfig | None:
    if settings.quantize == "none" and (stored is None or not stored.kept):
        return None
    dtype = torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    product = choose_quantized_product(device, kernels, dtype)
    width = QUANTIZED_WIDTHS.get(settings.quantize, 0)
    return StreamingConfig(width, kernels, product, experts=device.type == "cpu", stored=stored)


def _quantize_rest(model: Any, config: StreamingConfig) -> None:
    """Quantize projections that are still plain, as those that were float8, and the output head (`head_width`).

    Embedding and head are replaced by the codes of a file where these are kept.
    """
    if _method(model) == METHOD:
        del model.hf_quantizer
    quantizer = StreamingQuantizer(config, pre_quantized=False)
    # Names, and no weights: a list of these would keep them all.
    for name in [name for name, _ in model.named_parameters() if quantizer.param_needs_quantization(model, name)]:
        replace(model, name, model.get_parameter(name).detach(), config)
    head, embedding, packed = model.get_output_embeddings(), model.get_input_embeddings(), None
    is_tied = head.weight is embedding.weight
    if config.stored is not None and config.keeps(EMBEDDING):
        packed = config.stored.packed(EMBEDDING)
        model.set_input_embeddings(QuantizedEmbedding(packed, model.dtype, choose_look_up(config.kernels)))
    if config.stored is not None and config.keeps(HEAD):
        model.set_output_embeddings(QuantizedLinear(config.stored.packed(HEAD), head.bias, config.product))
    elif is_tied and packed is not None:
        model.set_output_embeddings(QuantizedLinear(packed, head.bias, config.product))
    elif config.width and can_be_packed(head.weight.shape):
        width = head_width(config.width, on_host=not head.weight.is_cuda)
        packed = quantize(head.weight.detach(), width, "the output matrix", config.kernels)
        if is_tied:
            model.set_input_embeddings(QuantizedEmbedding(packed, model.dtype, choose_look_up(config.kernels)))
        model.set_output_embeddings(QuantizedLinear(packed, head.bias, config.product))


def _method(model: Any) -> str:
    quantizer = getattr(model, "hf_quantizer", None)
    return str(quantizer.quantization_config.quant_method) if quantizer is not None else ""


def _kv_shape(text: Any) -> KvShape:
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    heads = text.num_attention_heads
    return KvShape(
        layer_indices=tuple(i for i, kind in enumerate(types) if kind == "full_attention"),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__
