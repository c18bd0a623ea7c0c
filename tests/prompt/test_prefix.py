"""A turn finds what the turn before it left in the prefix cache, wherever the template allows."""

import itertools

import pytest

from tests.model_templates import TEMPLATES, checkpoint
from tests.prompt.agent_loop import ROUNDS, walk

WITH_TOOLS = [name for name in TEMPLATES if name != "qwen15"]
THINKING = [name for name in WITH_TOOLS if "<think>" in checkpoint(name).template.source]
DROPS_OLD_THOUGHTS = ["qwen3", "qwen3_thinking", "qwen35", "glm45", "built_in"]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_case_43_every_round_of_a_loop_begins_with_the_prompt_before(name: str) -> None:
    """Tool loops are long and repetitive: without this, each round computes the whole conversation again."""
    steps = walk(name, thoughts=False, sent_back=False)
    assert len(steps) == ROUNDS
    for before, step in itertools.pairwise(steps):
        # At worst the head of the reply's turn is written differently once the turn is history.
        assert step.cached_tokens >= before.prompt_tokens - 32, (name, before, step)
    assert sum(step.share for step in steps[1:]) / (ROUNDS - 1) > 0.8


@pytest.mark.parametrize("name", THINKING)
def test_case_43_thoughts_that_are_sent_back_keep_the_reply_cached_too(name: str) -> None:
    """Inside one loop the templates of thinking models print thoughts, if the client returns them."""
    for step in walk(name, thoughts=True, sent_back=True)[1:]:
        assert step.reused > 0.97, (name, step)


@pytest.mark.parametrize("name", DROPS_OLD_THOUGHTS)
def test_the_next_question_is_where_templates_drop_old_thoughts(name: str) -> None:
    """Documented in docs/prompts.md; it is the template's rule, and ids stay those of the reference."""
    steps = walk(name, thoughts=True, sent_back=True, questions=2)
    assert steps[ROUNDS].share < 0.5 < steps[ROUNDS + 1].share
