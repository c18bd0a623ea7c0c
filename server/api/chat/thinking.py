"""Thinking switches and budgets as OpenAI, other servers and clients spell them, on every surface."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from server.api.chat.fields import Between, Part, is_strict
from server.api.chat.validation_errors import not_supported_value, wrong_type

OFF = ("none", "disabled", "off", "false", "no")
ON = ("enabled", "adaptive", "auto", "on", "true", "yes", "minimal", "low", "medium", "high", "xhigh", "max")
UNSAID = ("default", "")
VARIABLES = ("enable_thinking", "thinking")  # of templates: they are switches too
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ThinkingSwitch:
    """Whether to think, and the most tokens of it; None: not said."""

    on: bool | None = None
    budget: int | None = None


def read_switch(value: Any) -> ThinkingSwitch:
    """`false`, `"disabled"`, `{"type": "disabled"}`, `{"effort": "none"}`, `{"enabled": false, "max_tokens": 5}`."""
    if not isinstance(value, dict):
        return ThinkingSwitch(switch_in(value))
    switches = [switch_in(value[name], f".{name}") for name in ("type", "enabled", "effort") if name in value]
    budgets = [(name, value[name]) for name in ("budget_tokens", "max_tokens") if value.get(name) is not None]
    for name, budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise wrong_type("an integer", budget, f".{name}")
    on = False if False in switches else True if True in switches else None
    return ThinkingSwitch(on, next((budget for _, budget in budgets if budget >= 0), None))


def switch_in(value: Any, at: str = "") -> bool | None:
    """The switch that a boolean, 0, 1 or a word is; None for null and "default". Raises a fault for anything else."""
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if not isinstance(value, str):
        raise wrong_type("one of a boolean, string or object", value, at)
    word = value.lower()
    if word not in (*OFF, *ON, *UNSAID):
        raise not_supported_value(value, (*OFF, *ON), at)
    return None if word in UNSAID else word in ON


def read_effort(value: Any, info: ValidationInfo) -> Any:
    """An effort as OpenAI spells it, None where it says nothing; anything else is left for the check of its values."""
    if is_strict(info) or not isinstance(value, str | bool):
        return value
    word = str(value).lower()
    if word in UNSAID or word in ("auto", "true"):
        return None
    return "none" if word in OFF else word if word in get_args(Effort) else value


def _read_budget(value: Any, info: ValidationInfo) -> Any:
    return None if value == -1 and not is_strict(info) else value


def _read_variables(value: Any) -> Any:
    """The template's variables, its switches as booleans."""
    if not isinstance(value, dict):
        return value
    return value | {name: switch_in(value[name], f".{name}") for name in VARIABLES if name in value}


_SWITCH = {"anyOf": [{"type": "boolean"}, {"enum": [*OFF, *ON]}, {"type": "object"}]}
EffortField = Annotated[Effort | None, BeforeValidator(read_effort)]
SwitchField = Annotated[ThinkingSwitch, BeforeValidator(read_switch), WithJsonSchema(_SWITCH)]
Budget = Annotated[Annotated[int, Between(0)] | None, BeforeValidator(_read_budget)]
OTHER_NAME = "Extension. Other servers' name of"


class ThinkingSwitches(Part):
    """Fields of requests that say whether to think, beside those that a surface has of its own."""

    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_read_variables)] | None = Field(
        None, description="Extension. Variables of the chat template, `enable_thinking` among them."
    )
    thinking_budget: Budget = Field(None, description="Extension. Most tokens of thought.")
    thinking_token_budget: Budget = Field(None, description=f"{OTHER_NAME} `thinking_budget`.")
    enable_thinking: SwitchField | None = Field(None, description="Extension. Whether to think.")
    think: SwitchField | None = Field(None, description=f"{OTHER_NAME} `enable_thinking`.")

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """The template's variables without its switches."""
        return {name: value for name, value in (self.chat_template_kwargs or {}).items() if name not in VARIABLES}

    def switch(
        self, thinking: ThinkingSwitch | None, reasoning: ThinkingSwitch | None, effort: str | None
    ) -> ThinkingSwitch:
        """The template's own switch, then the request's, the most particular first."""
        spelled = [one for one in (self.enable_thinking, thinking, self.think, reasoning) if one is not None]
        variables = self.chat_template_kwargs or {}
        switches = [*map(variables.get, VARIABLES), *(switch.on for switch in spelled)]
        budgets = (self.thinking_budget, self.thinking_token_budget, *(switch.budget for switch in spelled))
        return ThinkingSwitch(_first([*switches, None if effort is None else effort != "none"]), _first(budgets))


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
