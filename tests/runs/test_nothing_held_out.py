"""What a run of reward feedback learning goes by is measured on held-out requests: without any it does not begin."""

import pytest

from onereward_jax.config.load import load_config
from onereward_jax.errors import UserError
from onereward_jax.runs.reward_feedback import reward_feedback

EARNED = {"algorithm": "earned", "evaluation.other_judge": "other"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"train.stop_on_alarm": True}, "stop_on_alarm"),
        ({"train.stop_without_gain": 2}, "stop_without_gain"),
        (EARNED, "earned"),
    ],
)
def test_a_run_that_goes_by_held_out_requests_needs_some(tmp_path, settings, name):
    config = load_config("quick", settings)
    with pytest.raises(UserError, match=name):
        reward_feedback(config, tmp_path, source=None, held_out=None)
