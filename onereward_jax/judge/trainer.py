"""The judge's training run (Eq. 3): preference data in, a judge in transformers' layout out."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from onereward_jax import loop
from onereward_jax.data import mixture
from onereward_jax.data.proving_ground import all_prompts
from onereward_jax.data.proving_ground.tokenizers import write_qwen2_tokenizer
from onereward_jax.judge.batches import question_batch
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.preferences import Pair, label_row, read_pairs
from onereward_jax.judge.training import make_loss
from onereward_jax.mesh import batch_sharding, make_mesh
from onereward_jax.tasks import CELLS, question
from onereward_jax.train_state import compile_step, create_state, make_optimizer, supervised_step


def train_judge(config: ConfigDict, workdir: Path) -> None:
    """Trains the judge of `config.judge` on `config.preferences.directory`; exports it to workdir/export."""
    candidates, pairs = read_pairs(Path(config.preferences.directory) / "train")
    by_task: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_task.setdefault(pair.task, []).append(pair)

    judge = new_judge(config, workdir / "export")
    optimizer = make_optimizer(**config.optimizer)
    step = supervised_step(make_loss(judge.apply), optimizer, config.judge.ema_decay)
    mesh = make_mesh(**config.mesh)
    compiled, state, _ = compile_step(step, lambda: create_state(judge.params, optimizer, config.seed), {}, mesh)

    def record(index: int, task: str) -> dict[str, np.ndarray]:
        generator = np.random.default_rng((config.seed, index))
        pair = by_task[task][generator.integers(len(by_task[task]))]
        images, labels = candidates[pair.part][pair.row], label_row(pair)
        first, second = pair.first, pair.second
        if generator.random() < 0.5:  # which of the two stands first says nothing
            first, second, labels = second, first, -labels
        return {
            "first": images[first],
            "second": images[second],
            "label": labels,
            "task": np.str_(task),
            "prompt": np.str_(pair.prompt),
        }

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        tasks, prompts = ([str(text) for text in batch.pop(name)] for name in ("task", "prompt"))
        arrays = batch | question_batch(judge, tasks, prompts, config.question_length)
        return jax.device_put(arrays | {"index": batch["index"].astype(np.int32)}, batch_sharding(mesh))

    batches = mixture.mixture(
        dict(config.data.task_weights),
        record,
        seed=config.seed,
        batch_size=config.train.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.loader_threads,
    )
    state = loop.run(
        step=lambda state, batch: compiled(state, {}, batch),
        state=state,
        batches=iter(batches),
        prepare=prepare,
        num_steps=config.train.num_steps,
        workdir=workdir,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        log_every=config.train.log_every,
        description="judge",
        progress={"loss": "learning/loss", "accuracy": "judge/accuracy"},
        optional=("judge/accuracy/",),
    )
    judge.save_pretrained(workdir / "export", jax.device_get(state.ema))


def new_judge(config: ConfigDict, directory: Path) -> Judge:
    """An untrained judge of `config.judge`, its tokenizer (written to `directory`) made for the proving ground."""
    prompts = list(all_prompts())
    templates = {"template": config.judge.template, "template_with_prompt": config.judge.template_with_prompt}
    questions = [question(task, dimension, "a", **templates) for task, dimension in CELLS]
    tokenizer = write_qwen2_tokenizer(directory, prompts + questions)
    model = {
        "text_config": {"vocab_size": len(tokenizer), **config.judge.text_config.to_dict()},
        "vision_config": config.judge.vision_config.to_dict(),
    }
    return Judge.create(model, tokenizer, seed=config.seed, **templates)
