"""Settings: default, range, help text and group of each option, and their values from all sources.

An option `max_model_len` is `--max-model-len` on the command line, `TOOLWIRE_MAX_MODEL_LEN` in the environment and
`max_model_len = …` in the TOML file; the command line wins over the environment, which wins over the file.
"""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from server.errors import CannotStart

ENV_PREFIX = "TOOLWIRE_"
AUTO_MODEL, SMOLLM2_MODEL, TINY_MODEL = "auto", "smollm2", "tiny"  # of --model; server/checkpoint/shipped.py
TEXTS = tuple[str, ...]  # several values: an option given several times, or separated by commas
Origin = Literal["default", "file", "environment", "command line"]


def option(default: Any, text: str, *, secret: bool = False) -> Any:
    """A field of a settings class, with the help text that `--help` and `toolwire config` show."""
    return dataclasses.field(default=default, metadata={"help": text, "secret": secret})


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The checkpoint, and how its prompts are written and its replies parsed."""

    model: str = option(
        AUTO_MODEL,
        "Folder, GGUF file or hub id of the checkpoint (ORG/NAME:Q4_K_M for a GGUF file on the hub). Two come with "
        "toolwire: smollm2 and tiny; auto is smollm2 where its base has been fetched, else tiny.",
    )
    served_model_name: str = option("", "Name that clients use in `model`; else --model, or its last part.")
    chat_template: str = option("", "File with a Jinja chat template to use instead of the checkpoint's own.")
    dialect: str = option("auto", "Tool format: auto (from the template), hermes, qwen3_coder, react, kimi_k2 or glm4.")
    generation_config: str = option(
        "auto",
        "auto takes sampling defaults from the checkpoint's generation_config.json, none ignores that file; else a "
        "folder with another one.",
    )
    max_model_len: Annotated[int, Meta(ge=0, le=1 << 30)] = option(
        0, "Context length in tokens, prompt and reply together; 0 takes the model's own."
    )
    trust_control_tokens: bool = option(
        False, "Let control tokens in clients' texts through: for clients that write the prompt's markup themselves."
    )
    self_test: bool = option(True, "Round trip of tool calls through template and parser before serving.")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Device, memory and scheduling of the engine process."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "Device; auto takes cuda if there is one.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", "Type of the weights; auto: as stored.")
    quantize: Literal["none", "int8", "int4"] = option(
        "none", "Bits of the weights of a plain checkpoint, quantized while it loads."
    )
    adapter: tuple[str, ...] = option(
        (), "LoRA adapter as PEFT saves it, NAME=FOLDER: requests write NAME in `model`; may be given several times."
    )
    merge_adapter: str = option("", "Folder of a LoRA adapter that is folded into the weights while they load.")
    memory_fraction: Annotated[float, Meta(ge=0.01, le=1.0)] = option(
        0.9, "Share of the device's memory that weights, activations and KV may take."
    )
    kv_cache_tokens: Annotated[int, Meta(ge=0, le=1 << 40)] = option(
        0, "Size of the KV cache in tokens; 0 takes what memory-fraction leaves."
    )
    kv_dtype: Literal["auto", "int8"] = option(
        "auto", "Type of the cached keys and values: auto is the model's, int8 takes half the memory of bfloat16."
    )
    activation_bits: Literal["auto", "8", "16"] = option(
        "auto",
        "Bits that activations are rounded to where a CPU multiplies weights of few bits: auto is 8 with --quantize "
        "int4, else 16.",
    )
    memory_probe: Literal["auto", "nvml", "host"] = option(
        "auto",
        "Whose memory the guard watches: auto is the device's own; nvml the first visible GPU's, host main memory.",
    )
    block_size: Annotated[int, Meta(ge=2, le=1024, multiple_of=2)] = option(32, "Tokens a KV block.")
    max_batch_tokens: Annotated[int, Meta(ge=1, le=1 << 24)] = option(
        2048, "Tokens computed in one step, over all sequences."
    )
    max_running: Annotated[int, Meta(ge=1, le=1 << 16)] = option(256, "Sequences that run at once.")
    max_queue: Annotated[int, Meta(ge=0, le=1 << 24)] = option(1024, "Sequences that may wait; more are answered 429.")
    prefix_cache: bool = option(True, "Reuse the KV blocks of prompts that begin alike.")
    fast_forward: bool = option(True, "Compute tokens that a grammar forces in one pass instead of sampling them.")
    draft_tokens: Annotated[int, Meta(ge=-1, le=64)] = option(
        -1, "Tokens copied from the prompt and verified in one pass at most; 0 is off, -1: 4 on a CPU, none on a GPU."
    )
    cuda_graphs: bool = option(True, "On CUDA, record decode steps at start and replay them.")
    cpu_isa: Literal["auto", "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "neon_bf16", "neon", "torch"] = (
        option(
            "auto",
            "Instruction set of the CPU kernels: auto is the best that the CPU has, torch computes without them.",
        )
    )
    threads: Annotated[int, Meta(ge=0, le=4096)] = option(
        0, "CPU threads of the engine; 0: every core, or one for a small model in torch."
    )
    seed: int = option(0, "Seed of requests that bring none.")
    engine_timeout_s: Annotated[float, Meta(ge=0, le=1 << 30)] = option(
        300.0, "Seconds that one step may take before the engine is killed and started again; 0 is no limit."
    )


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Engines elsewhere."""

    engine: tuple[str, ...] = option(
        (), "Address of an engine elsewhere, http://HOST:PORT, instead of one here; may be given several times."
    )
    engines_file: str = option("", "File with the address of an engine a line, read again when it changes.")
    engine_key: str = option(
        "", "Key that `toolwire engine` requires, and that is sent to engines elsewhere.", secret=True
    )

    @property
    def is_used(self) -> bool:
        """Whether tokens are computed elsewhere."""
        return bool(self.engine or self.engines_file)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Address, access, limits and logs of the API process."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface.")
    port: Annotated[int, Meta(ge=0, le=65535)] = option(8000, "Port to listen on; 0 takes a free one.")
    api_key: str = option("", "Key that clients must send; several separated by commas. Empty: no key.", secret=True)
    api_key_file: str = option("", "File with one key a line, read again when it changes.")
    allow_any_model: bool = option(False, "Serve every `model` name instead of answering 404.")
    strict: bool = option(False, "OpenAI to the letter: answer 400 to what OpenAI does not take.")
    max_new_tokens: Annotated[int, Meta(ge=1, le=1 << 30)] = option(
        2048,
        "Tokens of an answer's text when a request names no limit; thoughts and calls have the window's rest.",
    )
    on_overflow: Literal["refuse", "drop-oldest"] = option("refuse", "What to do with a prompt beyond the window.")
    named_finish: Literal["tool_calls", "stop"] = option(
        "tool_calls", "`finish_reason` of a call of the one tool that `tool_choice` names; OpenAI's own says stop."
    )
    must_answer: bool = option(
        False, "Let no reply end without text or a call, where the request does not say `must_answer` itself."
    )
    repair_history: bool = option(
        False, "Take calls without results and results without calls instead of answering 400; notes say so."
    )
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 32)] = option(16 * 1024 * 1024, "Largest request body.")
    max_pending_requests: Annotated[int, Meta(ge=1, le=1 << 24)] = option(
        1024, "Requests that are read and prepared at once, before the engine has them; more are answered 429."
    )
    max_pending_bytes: Annotated[int, Meta(ge=1024, le=1 << 40)] = option(
        256 * 1024 * 1024, "Bytes of the bodies of all those requests; never less than the largest body."
    )
    ping_interval_s: Annotated[float, Meta(ge=0.1, le=3600)] = option(
        10.0, "Seconds between SSE comments while a stream is silent."
    )
    rate_limit_rpm: Annotated[int, Meta(ge=0, le=1 << 30)] = option(
        0, "Requests a minute of one key, or of one address without keys; 0 is no limit."
    )
    max_concurrent_per_key: Annotated[int, Meta(ge=0, le=1 << 30)] = option(
        0, "Requests of one key, or address, that run at once; 0 is no limit."
    )
    request_timeout_s: Annotated[float, Meta(ge=0, le=1 << 30)] = option(
        0.0, "Deadline of one request in seconds, from its first byte on; 0 is none."
    )
    drain_timeout_s: Annotated[float, Meta(ge=0, le=1 << 30)] = option(
        30.0, "Seconds that running replies may take to finish after SIGTERM."
    )
    cors_origins: str = option("", "Origins that browsers may call from, separated by commas. Empty: none.")
    share_cache_between_keys: bool = option(
        False,
        "Let requests of different keys share cached prefixes: `cached_tokens` and times then tell what others sent.",
    )
    response_store: str = option(
        "",
        "Where responses are kept: none, sqlite:///FILE or postgresql://...; empty: SQLite in the state directory.",
        secret=True,
    )
    response_days: Annotated[float, Meta(gt=0, le=36_500)] = option(30.0, "Days that responses are kept.")
    response_store_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 50)] = option(
        4 * 1024 * 1024 * 1024, "Bytes of all kept responses and conversations; beyond it the oldest are removed."
    )
    max_background: Annotated[int, Meta(ge=1, le=1 << 20)] = option(
        256, "Background responses that are written at once; more are answered 429."
    )
    max_websockets: Annotated[int, Meta(ge=0, le=1 << 20)] = option(
        256, "WebSocket connections at once, a quarter of them at most of one client; 0 serves none."
    )
    max_held_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = option(
        256 * 1024 * 1024, "Bytes in memory of background responses, and of what WebSocket connections can continue."
    )
    state_dir: str = option(
        "", "Folder of what outlives a start: kept responses, the key of opaque thoughts. Empty: the user's own."
    )
    monitoring_key: str = option(
        "", "Key for /metrics, /v1/memory and /v1/engines alone, which no other key may read then.", secret=True
    )
    allowed_hosts: str = option(
        "",
        "Host names that requests may carry where no key is required, beside addresses and local names, separated by "
        "commas; * is any.",
    )
    adapter_key: str = option(
        "", "Key for loading and unloading adapters while the server runs; empty: nobody may.", secret=True
    )
    adapter_folder: str = option("", "Folder that the adapters lie in which are loaded while the server runs.")
    forwarded_allow_ips: str = option(
        "", "Addresses or networks of proxies whose X-Forwarded-For names the client, separated by commas. Empty: none."
    )
    open_metrics: bool = option(False, "Serve /metrics, /v1/memory, /v1/engines, /tokenize and /docs without a key.")
    log_format: Literal["human", "json"] = option("human", "Log lines for people or for machines.")
    traces: bool = option(False, "Send OpenTelemetry traces where the OTEL_* variables say; needs toolwire[traces].")
    log_prompts: bool = option(False, "Write prompt and reply texts to the log.")


@dataclass(frozen=True, slots=True)
class Settings:
    """All options by group."""

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    remote: RemoteSettings = dataclasses.field(default_factory=RemoteSettings)
    api: ApiSettings = dataclasses.field(default_factory=ApiSettings)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, and the origin of each value by option name."""

    settings: Settings
    origins: Mapping[str, Origin]


GROUPS: Mapping[str, type] = {
    "model": ModelSettings,
    "engine": EngineSettings,
    "remote": RemoteSettings,
    "api": ApiSettings,
}


def resolve(arguments: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]) -> Resolved:
    """Merge the sources: the command line over the environment over the file over the defaults.

    Raises CannotStart naming an option whose value is of the wrong type or out of range, or that does not exist.
    """
    known = {field.name: group for group, kind in GROUPS.items() for field in dataclasses.fields(kind)}
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    from_environment = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in ours.items()}
    layers: tuple[tuple[Origin, Mapping[str, Any]], ...] = (
        ("file", file),
        ("environment", from_environment),
        ("command line", {name: value for name, value in arguments.items() if value is not None}),
    )
    values: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    origins: dict[str, Origin] = dict.fromkeys(known, "default")
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in known:
                raise CannotStart(f"{name} (from the {origin}) is no option; see toolwire serve --help")
            values[known[name]][name] = _convert(name, value, origin, GROUPS[known[name]])
            origins[name] = origin
    settings = Settings(**{group: kind(**values[group]) for group, kind in GROUPS.items()})
    return Resolved(settings, origins)


def read_environment() -> Mapping[str, str]:
    """The process's environment without TOOLWIRE_CONFIG."""
    return {name: value for name, value in os.environ.items() if name != f"{ENV_PREFIX}CONFIG"}


def engine_environment() -> dict[str, str]:
    """The environment of the engine process: defaults for its libraries, overridden by the environment of this one.

    GOMP_SPINCOUNT: by default libgomp's threads spin for milliseconds, and on cores shared with other programs each
    barrier then waits for a time slice: a step of two threads took 3 s instead of 0.3 s on a busy machine.
    *_CACHE_CAPACITY: oneDNN and torch's layer above it keep a compiled matrix product for each of 1024 numbers of
    tokens: the heap grew by 8 MB a second until it was 800 MB larger. With 64 it grows by 80 MB.
    MALLOC_ARENA_MAX: a malloc arena for each thread that compiles grammars would keep what its largest one took.
    Options are left out: it reads its configuration from standard input, and has no use for API keys.
    """
    caches = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64", "MALLOC_ARENA_MAX": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {"GOMP_SPINCOUNT": "10000", **caches, **inherited}


def config_path_from_environment() -> str:
    """The value of TOOLWIRE_CONFIG, the path of a TOML file; empty if it is not set."""
    return os.environ.get(f"{ENV_PREFIX}CONFIG", "")


def users_state_dir() -> Path:
    """`$XDG_STATE_HOME/toolwire`, by default below `~/.local/state`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "toolwire"


def read_file(path: str) -> Mapping[str, Any]:
    """The options in a TOML file, none for an empty path; raises CannotStart if it cannot be read."""
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CannotStart(f"cannot read the settings file {path}: {error}") from error


def _convert(name: str, value: Any, origin: Origin, group: type) -> Any:
    hint = get_type_hints(group, include_extras=True)[name]
    if hint == TEXTS and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise CannotStart(f"{name} (from the {origin}) cannot be {value!r}: {error}") from error
