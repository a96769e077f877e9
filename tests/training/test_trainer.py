"""One loop runs the evaluators of an experiment, each in its own rhythm."""

from types import SimpleNamespace

from onereward_jax.training.trainer import Evaluator, combined


def test_evaluators_of_different_rhythms_are_one_function():
    seen = {2: [], 3: []}

    def evaluator(every):
        return Evaluator(every, lambda state: seen[every].append(state.step) or {f"every_{every}": state.step})

    evaluate, every = combined((evaluator(2), evaluator(3)), num_steps=7)
    found = [evaluate(SimpleNamespace(step=step)) for step in range(every, 8, every)]
    assert seen == {2: [2, 4, 6, 7], 3: [3, 6, 7]}
    assert found[0] == {}
    assert found[-1] == {"every_2": 7, "every_3": 7}
    assert combined((), 7) == (None, 0)
