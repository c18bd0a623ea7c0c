"""Short version of `make test-hostile` on a shared server; times are bounded there alone."""

import pytest

from tests.hostile.bombs import BOMBS
from tests.hostile.connections import CONNECTIONS
from tests.hostile.cross_talk import CROSS_TALK
from tests.hostile.scenario import SHORT, Scale, Scenario
from tests.hostile.tokens import fuzz_conversations
from tests.live import Live

SEED = 11
SCENARIOS = [scenario for scenario in (*CONNECTIONS, *BOMBS, CROSS_TALK) if scenario.is_short]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_replies_are_in_order_and_no_process_dies(live: Live, scenario: Scenario) -> None:
    engine = live.engine()
    outcome = await scenario.run(live, SHORT, SEED)
    assert outcome.requests and outcome.faults == []
    assert live.process.poll() is None
    assert engine.is_running()


@pytest.mark.timeout(900)
def test_no_conversation_gains_a_control_token(is_long: bool) -> None:
    """Text that a template turns into a control token opens a turn of anybody's choice."""
    assert fuzz_conversations(Scale().conversations if is_long else SHORT.conversations, SEED).faults == []
