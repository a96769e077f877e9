"""`onereward export` of a run that ended before its last update takes the state that it ended with."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax import tree
from onereward_jax.config.load import load_config
from onereward_jax.errors import UserError
from onereward_jax.runs.export import export
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.early_stop import Stop, record
from tests.support import tiny_fill


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, whose parameters are all 1 and all 2."""
    root = tmp_path_factory.mktemp("stopped")
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base", "float32")
    (root / "run").mkdir()
    config = load_config("fixed", {"model.base": str(root / "base")})
    (root / "run" / "config.json").write_text(json.dumps(config.flat()))
    checkpointer = Checkpointer(root / "run" / "checkpoints")
    for step in (1, 2):
        flat = {path: jnp.full(x.shape, step, x.dtype) for path, x in tree.flatten(tiny_fill.transformer()[1]).items()}
        checkpointer.save(step, {"params": tree.unflatten(flat)})
    checkpointer.close()
    return root / "run"


@pytest.mark.parametrize(("stop", "value"), [(None, 2), (Stop(1, 2, "alarm", True), 1)])
def test_the_state_that_a_run_ended_with_is_exported(run, tmp_path, stop, value):
    record(run, stop)
    step, what = export(run, tmp_path / "out")
    assert (step, what) == (value, "policy")
    arrays = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all((np.asarray(x) == value).all() for x in arrays.values())


def test_the_checkpoint_that_a_run_ended_with_is_missed(run, tmp_path):
    record(run, Stop(3, 4, "alarm", True))  # an older one is there
    with pytest.raises(UserError, match="step 3"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record(run, None)


def test_a_run_that_was_never_good_has_nothing_to_export(run, tmp_path):
    record(run, Stop(0, 2, "alarm", True))
    with pytest.raises(UserError, match="nothing to export"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record(run, None)
