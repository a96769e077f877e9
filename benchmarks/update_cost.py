"""Measures the cost of an update: the algorithm as printed, with each saving by itself, and with all of them.

    python -m benchmarks.update_cost [--json FILE] [--updates 4]    # --updates 0 measures no time

Arithmetic: configs/flux_fill.py at 1024 x 1024 pixels, 8,000 updates of batch 8 over 10,000 conditions; the mean
update, which includes its share of filling the reference cache. Each update is traced as `onereward train` runs it and
counted (`onereward_jax/planning/cost.py`) without compiling. A gradient sample is a sample's gradient at one t.

Time: the miniature (configs/fixed.py, configs/dynamic.py) with true guidance as at full size and a fifth of its steps.
On a CPU it is processor time over all cores, which other load on the machine does not change; elsewhere wall time.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.planning.cost import cost_of_program
from onereward_jax.planning.lives import life_of, share_of_references_made
from onereward_jax.rl.batch import KnownReferences
from onereward_jax.rl.build_update import computation, make_update
from onereward_jax.rl.profile_scopes import PARTS
from onereward_jax.runs.reward_feedback import encode_text, open_requests, sample_fields
from onereward_jax.tasks import TASKS
from onereward_jax.training.compile import Params, compile_step

UPDATES, BATCH, CONDITIONS = 8000, 8, 10_000

PRINTED = {"rl.shared_prefix": False}
SHARED = {"rl.shared_prefix": True}
POOL = {"rl.reference_cache": "references", "data.num_conditions": CONDITIONS}
AGE_4, AGE_8 = {"rl.reference_max_age": 4}, {"rl.reference_max_age": 8}
ONE_GUIDANCE = {"rl.gradient_true_cfg_scale": 1.0}
PREDICTIONS = {"rl.predictions": 4}
KEPT = {"model.remat": "dots"}
ENDPOINT = {"rl.estimator": "endpoint", "rl.gradient_steps": 2}
ASCENT = {"rl.estimator": "ascent", "rl.ascent_steps": 4}
FULL = {"train.num_steps": 1000 * UPDATES}  # filling the cache then costs nothing
# Steps of the rollouts in training; inference may keep its number.
STEPS = {
    "full": {
        "fewer": {"rl.num_steps": 25, "rl.first_index": 7, "rl.last_index": 17},
        "fewer reference": {"rl.reference_steps": 25},
        "all": {"rl.gradient_steps": 50},
    },
    "miniature": {
        "fewer": {"rl.num_steps": 5, "rl.first_index": 1, "rl.last_index": 3},
        "fewer reference": {"rl.reference_steps": 5},
        "all": {"rl.gradient_steps": 10},
    },
}

# Algorithm -> name of a row -> settings that differ from the algorithm as printed.
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "fixed": {
        "as printed": {},
        "one call of the judge for all dimensions": SHARED,
        "reference cache": POOL,
        "both": SHARED | POOL,
        "both, in the limit": SHARED | POOL | FULL,
        "both, matrix products kept for the backward pass": SHARED | POOL | KEPT,
        "one guidance in the gradient step": ONE_GUIDANCE,
        "4 predictions per rollout": PREDICTIONS,
        "half the steps": {"steps": "fewer"},
        "half the steps of the reference": {"steps": "fewer reference"},
        "endpoint, 1 velocity": ENDPOINT | {"rl.gradient_steps": 1},
        "endpoint, 2 velocities": ENDPOINT,
        "endpoint, 4 velocities": ENDPOINT | {"rl.gradient_steps": 4},
        "endpoint, all velocities": ENDPOINT | {"steps": "all"},
        "endpoint, 2 velocities, half the steps": ENDPOINT | {"steps": "fewer"},
        "endpoint, 2 velocities, 4 predictions per rollout": ENDPOINT | PREDICTIONS,
        "endpoint, 2 velocities, cache, one call, one guidance": ENDPOINT | SHARED | POOL | ONE_GUIDANCE,
        "ascent, 4 steps": ASCENT,
        "cache, one call, one guidance, 4 predictions": SHARED | POOL | ONE_GUIDANCE | PREDICTIONS,
        "all": SHARED | POOL | ONE_GUIDANCE | PREDICTIONS | KEPT | {"steps": "fewer"},
    },
    "dynamic": {
        "as printed": {},
        "references up to 4 updates old": AGE_4,
        "references up to 8 updates old": AGE_8,
        "up to 4 updates old, one call of the judge": AGE_4 | SHARED,
        "up to 8 updates old, one call of the judge": AGE_8 | SHARED,
        "endpoint, 2 velocities": ENDPOINT,
        "endpoint, 2 velocities, up to 4 updates old, one call": ENDPOINT | AGE_4 | SHARED,
        "ascent, 4 steps": ASCENT,
        "all": AGE_8 | SHARED | ONE_GUIDANCE | PREDICTIONS | KEPT | {"steps": "fewer"},
    },
}
MINIATURE = {
    "rl.num_steps": 10,
    "rl.first_index": 3,
    "rl.last_index": 7,
    "rl.index_per_sample": False,
    "rl.rollout_true_cfg_scale": 4.0,
    "rl.gradient_true_cfg_scale": 4.0,
    "rl.flow_matching_weight": 0.0,
    "rl.judge_shift": 0,
    "rl.judge_noise": 0.0,
    "model.remat": "full",
    "train.batch_size": BATCH,
    "train.num_steps": UPDATES,
}


def configuration(size: str, algorithm: str, switches: dict[str, Any]) -> RewardFeedback:
    """Return the configuration of a row; `size` is "full" or "miniature"."""
    path = f"flux_fill:{algorithm}_1024" if size == "full" else algorithm
    switches = PRINTED | switches
    if "steps" in switches:
        switches |= STEPS[size][switches.pop("steps")]
    return load_config(path, switches if size == "full" else MINIATURE | switches, [RewardFeedback])


def arithmetic(config: RewardFeedback) -> dict[str, Any]:
    """Count the FLOPs of the mean update, by part."""
    program = life_of(config).program
    traced = jax.make_jaxpr(program.step)(program.state, program.frozen, program.batch)
    cost = cost_of_program(traced, trips=program.trips, shares=program.shares, parts=PARTS)
    return {"flops": cost.flops, "parts": cost.parts, "references_made": program.references_made}


class Miniature:
    """The packaged models and a batch of every task."""

    def __init__(self) -> None:
        self.config = configuration("miniature", "fixed", {})
        self.pipeline = FillPipeline.from_pretrained(self.config.model.base, dtype="float32")
        self.judge = Judge.from_pretrained(self.config.model.judge, "float32", fields=computation(self.config))
        source, fields = open_requests(self.config), sample_fields(self.config)
        records = [source.sample(i, TASKS[i % len(TASKS)]).arrays(*fields) for i in range(BATCH)]
        self.records = {name: np.stack([record[name] for record in records]) for name in records[0]}

    def seconds(self, config: RewardFeedback, updates: int) -> float:
        """Measure the mean update: updates with and without making references, weighted by their shares."""
        pipeline, judge, fields = self.pipeline, self.judge, computation(config)
        modules = (module.clone(**fields) for module in (pipeline.transformer, pipeline.vae))
        update = make_update(config, FluxFill(*modules, pipeline.shift), judge.scorer)
        weights = pipeline.params["transformer"], pipeline.params["vae"], judge.params
        params, frozen = update.params(weights[0]), update.frozen(*weights)
        mesh = make_mesh(**config.mesh)
        step, start, frozen = compile_step(update.step, update.create, Params.of(params), frozen, mesh)
        state = start.make()
        lengths = config.max_sequence_length, config.question_length
        numbers = np.arange(BATCH, dtype=np.int32)
        records = self.records | {"index": numbers, "condition": numbers}
        batch = encode_text(records, pipeline, judge, *lengths, config.rl)

        def run(reused: bool) -> float:
            nonlocal state
            known = KnownReferences(self.records["image"] / np.float32(255), np.full(BATCH, reused))
            told = batch.replace(references=known, age=np.full(BATCH, reused, np.int32))
            placed = jax.device_put(told, batch_sharding(mesh))
            taken = []
            for turn in range(updates + 1):  # the first one compiles
                started = clock()
                state, _ = step(state, frozen, placed)
                jax.block_until_ready(state.step)
                if turn:
                    taken.append(clock() - started)
            return float(np.mean(taken))

        made = share_of_references_made(config)
        return made * run(False) + (1 - made) * (run(True) if made < 1 else 0.0)


def clock() -> float:
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--updates", type=int, default=4, help="timed updates per row")
    arguments = parser.parse_args()
    miniature = Miniature() if arguments.updates else None
    rows = []
    for algorithm, switches in ROWS.items():
        printed: dict[str, float] = {}
        print(f"{'Algorithm 1' if algorithm == 'fixed' else 'Algorithm 2':<52}{'PFLOP':>8}{'per gradient':>14}", end="")
        print(f"{'s':>8}{'per gradient':>14}" if miniature else "", flush=True)
        for name, switched in switches.items():
            config = configuration("full", algorithm, switched)
            row: dict[str, Any] = {"algorithm": algorithm, "name": name, "switches": PRINTED | switched}
            row |= arithmetic(config)
            if miniature:
                row["seconds"] = miniature.seconds(configuration("miniature", algorithm, switched), arguments.updates)
            figures = {unit: row[unit] / config.rl.predictions for unit in ("flops", "seconds") if unit in row}
            printed = printed or figures
            row["of_printed"] = {unit: figures[unit] / printed[unit] for unit in figures}
            text = f"  {name:<50}{row['flops'] / 1e15:>8.2f}{row['of_printed']['flops']:>14.3f}"
            text += f"{row['seconds']:>8.2f}{row['of_printed']['seconds']:>14.3f}" if miniature else ""
            print(text, flush=True)
            rows.append(row)
            jax.clear_caches()
            gc.collect()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
