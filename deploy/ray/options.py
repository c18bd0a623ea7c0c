"""Options of the Ray Serve application: `serve run deploy.ray.app:app NAME=VALUE ...`, or `args:` of a config file."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator


class Options(BaseModel, extra="forbid"):
    """What `serve run` may be given; the defaults start two engines of the tiny model on a laptop.

    Options of the API are also `TOOLWIRE_...` variables of its replicas' environment.
    """

    model: str = "tiny"
    engine: Literal["toolwire", "vllm"] = "toolwire"  # the program that computes
    engine_program: str = ""  # path of `vllm`, or of a Python that has it; empty: `vllm` by its name
    engine_options: str = ""  # further ones, as on the command line: "--max-model-len 32768"
    engine_cpus: float = Field(1.0, ge=0)  # that Ray reserves for each engine
    engine_gpus: float = Field(0.0, ge=0)
    min_engines: int = Field(2, ge=1)
    max_engines: int = Field(2, ge=1)
    requests_per_engine: float = Field(16.0, gt=0)  # running and waiting ones; beyond it there is one engine more
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    api: dict[str, Any] = {}  # options of `toolwire serve` by name: {"api_key_file": "/run/keys"}
    api_replicas: int = Field(1, ge=1)
    api_cpus: float = Field(0.0, ge=0)  # reserved: two processors have no place for more beside two engines
    drain_timeout_s: float = Field(60.0, gt=0)  # that replies may take to end when a replica is to stop

    @model_validator(mode="after")
    def _check(self) -> "Options":
        if self.max_engines < self.min_engines:
            raise ValueError(f"max_engines={self.max_engines} is less than min_engines={self.min_engines}")
        return self
