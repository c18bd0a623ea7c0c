"""Sampling of a request: its own values, over the checkpoint's, over OpenAI's."""

from dataclasses import dataclass

from server.api.body import bad
from server.checkpoint.checkpoint import SamplingDefaults
from server.messages import Sampling


@dataclass(frozen=True, slots=True)
class SamplingMapper:
    """Reads sampling parameters by their names, whichever surface's request they belong to.

    `defaults` are the checkpoint's own; where it has none, OpenAI's hold.
    """

    defaults: SamplingDefaults
    vocab_size: int

    def sampling(self, request: object, limit: int | None, num_logprobs: int | None = None) -> Sampling:
        """The Sampling of `request`, whose attributes may lack or be None. Raises RequestRefused for an unknown id."""
        bias: dict[int, float] = getattr(request, "logit_bias", None) or {}
        for token_id in bias:
            if token_id >= self.vocab_size:
                text = f"Invalid key in 'logit_bias': {token_id}. Token ids of this model end at {self.vocab_size - 1}."
                raise bad(text, "logit_bias", "invalid_value")

        def value(name: str, default: float) -> float:
            for source in (request, self.defaults):
                found: float | None = getattr(source, name, None)
                if found is not None:
                    return found
            return default

        return Sampling(
            max_tokens=limit or 1,  # the prompt builder sets it where the request does not
            temperature=float(value("temperature", 1.0)),
            top_p=float(value("top_p", 1.0)),
            top_k=max(0, int(value("top_k", 0))),
            min_p=float(value("min_p", 0.0)),
            presence_penalty=value("presence_penalty", 0.0),
            frequency_penalty=value("frequency_penalty", 0.0),
            repetition_penalty=float(value("repetition_penalty", 1.0)),
            seed=getattr(request, "seed", None),
            logit_bias=dict(bias),
            num_logprobs=num_logprobs,
            min_tokens=getattr(request, "min_tokens", None) or 0,
            ignore_eos=bool(getattr(request, "ignore_eos", None)),
        )
