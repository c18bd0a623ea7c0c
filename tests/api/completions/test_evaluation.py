"""Prompts scored as evaluation harnesses ask for it: real server and SDK, against transformers on the same model."""

import pytest
import torch
import transformers
from openai.types import Completion

from server.checkpoint.locate import BUILT_IN_FOLDER
from tests.contract.requests import MODEL
from tests.live import Live

TEXT = "The weather in Paris is sunny, and the train leaves at nine. " * 12


def scored(live: Live, prompt: str | list[int] | list[list[int]], max_tokens: int = 1, logprobs: int = 1) -> Completion:
    """One request as a harness sends it; a token's reply is cut off by them."""
    return live.client().completions.create(
        model=MODEL, prompt=prompt, echo=True, temperature=0, max_tokens=max_tokens, logprobs=logprobs
    )


def truth(token_ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(BUILT_IN_FOLDER, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].float(), -1)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scores_equal_transformers_though_the_prompt_is_cached(live: Live, max_tokens: int) -> None:
    """A prefix from the cache has no logits; the second request would get no scores, or those of other tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUILT_IN_FOLDER)
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    live.client().completions.create(model=MODEL, prompt=TEXT, max_tokens=1)
    expected = truth(token_ids)
    for prompt in (TEXT, token_ids):
        (choice,) = scored(live, prompt, max_tokens=max_tokens, logprobs=3).choices
        assert choice.logprobs is not None and choice.text.startswith(TEXT)
        found, tops = choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs or []
        assert len(found) == len(token_ids) + max_tokens and found[0] is None
        wanted = expected[range(len(token_ids) - 1), token_ids[1:]].tolist()
        assert found[1 : len(token_ids)] == pytest.approx(wanted, abs=2e-3)
        for place in range(1, len(token_ids)):
            assert max(tops[place].values()) == pytest.approx(float(expected[place - 1].max()), abs=2e-3)


def test_several_prompts_are_scored_each_by_itself(live: Live) -> None:
    """Harnesses send a question with each of its answers, in one request."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUILT_IN_FOLDER)
    prompts = [
        tokenizer.encode(f"Is it sunny? {answer}", add_special_tokens=False) for answer in ("Yes", "No", "No idea")
    ]
    for prompt, choice in zip(prompts, scored(live, prompts).choices, strict=True):
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        wanted = truth(prompt)[range(len(prompt) - 1), prompt[1:]].tolist()
        assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(wanted, abs=2e-3)
