"""The judge's training run (Eq. 3): preference data in, a judge in transformers' layout out."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from onereward_jax import trainer
from onereward_jax.data.proving_ground import ProvingGround, all_prompts
from onereward_jax.data.proving_ground.tokenizers import write_qwen2_tokenizer
from onereward_jax.errors import UserError
from onereward_jax.judge.augment import flip_together, retone_together
from onereward_jax.judge.batches import ask_only, question_batch
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.objective import make_loss
from onereward_jax.judge.planted import plant_pair
from onereward_jax.judge.preferences import Pair, label_row, read_pairs, text_free
from onereward_jax.lora import LoRA
from onereward_jax.tasks import CELLS, question
from onereward_jax.train_state import create_state, make_optimizer, supervised_step
from onereward_jax.weights.lora import save_adapter


def train_judge(config: ConfigDict, workdir: Path) -> None:
    """Trains the judge of `config.judge` on the preferences of `config.judge.data`; exports it to workdir/export.

    It starts from the judge in `config.judge.start`, or untrained where that is empty. With `config.lora.rank`, an
    adapter of that judge is trained instead, and exported alone, as PEFT takes it.
    """
    candidates, pairs = read_pairs(*(Path(directory) / "train" for directory in config.judge.data))
    by_task: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_task.setdefault(pair.task, []).append(pair)

    if missing := [task for task, weight in config.data.task_weights.items() if weight and task not in by_task]:
        raise UserError(
            f"the preferences have no pair of {', '.join(missing)}: make more, or set its data.task_weights to 0"
        )
    start = config.judge.start
    judge = Judge.from_pretrained(start, "float32") if start else new_judge(config, workdir / "tokenizers")
    optimizer = make_optimizer(**config.optimizer)

    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)

    def preferred(generator: np.random.Generator, task: str) -> tuple[np.ndarray, np.ndarray, str, dict[str, int]]:
        pair = by_task[task][generator.integers(len(by_task[task]))]
        images = candidates[pair.part][pair.row]
        if generator.random() < 0.5:  # which of the two stands first says nothing
            return images[pair.first], images[pair.second], pair.prompt, pair.labels
        swapped = {dimension: -label for dimension, label in pair.labels.items()}
        return images[pair.second], images[pair.first], pair.prompt, swapped

    def planted(generator: np.random.Generator, index: int, task: str):
        scene = ground.scene(_FIRST_PLANTED_SCENE + index, task)
        first, second, labels = plant_pair(scene, generator)
        return first, second, scene.sample.prompt, labels

    def record(index: int, task: str) -> dict[str, np.ndarray]:
        generator = np.random.default_rng((config.seed, index))
        if generator.random() < config.judge.planted_share:
            first, second, prompt, given = planted(generator, index, task)
        else:
            first, second, prompt, given = preferred(generator, task)
        labels = label_row(task, prompt, given)
        if config.judge.flips:
            first, second = flip_together(generator, first, second, prompt)
        if config.judge.retone:
            first, second, same_colours = retone_together(generator, first, second)
            if not same_colours:
                labels = labels * text_free(task, prompt)
        return {
            "first": first,
            "second": second,
            "label": labels,
            "asked": asked_first(generator, labels)[: config.judge.questions_per_pair],
            "task": np.str_(task),
            "prompt": np.str_(prompt),
        }

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tasks, prompts = ([str(text) for text in batch.pop(name)] for name in ("task", "prompt"))
        questions = question_batch(judge, tasks, prompts, config.question_length) | {"label": batch.pop("label")}
        return batch | ask_only(questions, batch.pop("asked"))

    loss = make_loss(judge.apply, config.judge.max_shift, config.judge.adversarial_radius)
    adapters, params, frozen = LoRA(**config.get("lora", {})), judge.params, None
    if adapters.rank:
        loss, frozen = adapters.loss(loss), params
        params = adapters.init(params, jax.random.key(config.seed))
    state = trainer.train(
        config,
        workdir,
        step=supervised_step(loss, optimizer, config.judge.ema_decay),
        create=lambda params: create_state(params, optimizer, config.seed),
        params=params,
        frozen=frozen,
        record=record,
        prepare=prepare,
        description="judge",
        progress={"loss": "learning/loss", "accuracy": "judge/accuracy"},
        optional=("judge/accuracy/",),
    )
    trained = jax.device_get(state.ema)
    if adapters.rank:
        save_adapter(workdir / "export", "judge", trained, adapters.scale, base=start)
    else:
        judge.save_pretrained(workdir / "export", trained)


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


# Scenes of pairs that are planted while training: none that preferences are made of.
_FIRST_PLANTED_SCENE = 10_000_000


def asked_first(generator: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Dimensions in random order, those with a label before those without."""
    order = generator.permutation(len(labels))
    return order[np.argsort(labels[order] == 0, kind="stable")]
