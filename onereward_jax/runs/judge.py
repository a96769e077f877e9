"""Training of the judge (Eq. 3): preference data in, a judge in transformers' layout out."""

import dataclasses
import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from onereward_jax import buckets
from onereward_jax.atomic_files import write_json
from onereward_jax.buckets import reading
from onereward_jax.config.schema import JudgeModel, JudgeTraining
from onereward_jax.data.mixture import SamplesOf
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.data.preferences.record import SOURCE
from onereward_jax.errors import UserError
from onereward_jax.evaluation.accuracy import human_accuracy
from onereward_jax.evaluation.judge_predictions import ballots_of, held_out_accuracy
from onereward_jax.given_files import read_json
from onereward_jax.judge.augment import flip_together, retone_together
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import (
    PairDraw,
    Pairs,
    check_record,
    class_balance,
    label_row,
    read_pairs,
    text_free,
)
from onereward_jax.judge.preference_loss import make_loss
from onereward_jax.judge.question_batches import ask_only, question_batch
from onereward_jax.judge.vision import ImageSettings
from onereward_jax.models.lora import LoRA
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground import all_prompts
from onereward_jax.proving_ground.source import open_source, proving_ground_of
from onereward_jax.proving_ground.synthetic_pairs import synthetic_pair
from onereward_jax.proving_ground.tokenizers import write_qwen2_tokenizer
from onereward_jax.questions import question
from onereward_jax.tasks import CELLS, dimensions_of
from onereward_jax.training import trainer
from onereward_jax.training.checkpoint import Checkpointer, SaveError
from onereward_jax.training.compile import Params
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state, supervised_step
from onereward_jax.training.trainer import Evaluator, Experiment, Learning
from onereward_jax.weights.load import StoredParams
from onereward_jax.weights.peft_adapters import save_adapter

# Scenes of pairs that are made while training: none that preferences are made of.
_FIRST_SYNTHETIC_SCENE = 10_000_000


def train_judge(config: JudgeTraining, workdir: Path) -> None:
    """Train the judge of `config.judge` on the preferences of `config.judge.data`; exports it to workdir/export.

    It starts from the judge in `config.judge.start`, or untrained where that is empty. With `config.lora.rank`, an
    adapter of that judge is trained instead, and exported alone, as PEFT takes it. Writes workdir/balance.json, the
    pairs of every cell, and with `judge.keep_best` workdir/best.json and the weights that it tells of, workdir/best.

    Raises:
      FileNotFoundError, UserError: data or a model is missing or does not fit.
    """
    trainer.check_devices(config)
    trainer.train(judge_training(config, workdir), config, workdir)


def judge_training(config: JudgeTraining, workdir: Path) -> Experiment:
    """A judge that learns Eq. 3 from pairs, measured on pairs that are held out."""
    # ------------------------------------------------------------------------------------------ the judge and its pairs
    settings = config.judge
    for directory in settings.data:  # before a model is loaded
        open_records(reading(directory))
    judge, mesh = _judge_at_start(config, workdir), trainer.check_devices(config)
    pairs, held_out = _split(config, judge, workdir)
    example = PairExamples(config, judge, pairs)
    _report_balance(workdir / "balance.json", pairs, held_out)

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tasks, prompts = ([str(text) for text in batch.pop(name)] for name in ("task", "prompt"))
        questions = question_batch(judge, tasks, prompts, config.question_length).arrays()
        return batch | ask_only(questions | {"label": batch.pop("label")}, batch.pop("asked"))

    learning, adapters = judge_learning(config, judge.apply, judge.params, mesh), LoRA(**config.lora)
    frozen = learning.frozen.read()
    full_params = functools.partial(adapters.full_params, frozen=frozen)

    # -------------------------------------------------------------------------------------------- export and evaluation
    def export(trained: Any) -> None:
        if adapters.rank:
            save_adapter(workdir / "export", "judge", trained, adapters.scale, base=settings.start)
        else:
            dtype = judge.params.dtype if settings.start else "float32"
            judge.save_pretrained(workdir / "export", full_params(trained), dtype)

    best = _Best(workdir) if settings.keep_best else None
    evaluators = []
    if settings.evaluate_every:
        if not held_out:
            raise UserError("judge.evaluate_every is set, but no pair is held out: raise judge.held_out_share")
        accuracy = held_out_accuracy(config, judge, held_out)

        def measure(state: TrainState) -> dict[str, float]:
            averaged = state.averaged
            found = accuracy(full_params(averaged))
            if "one_annotator" in found and hosts.is_primary():
                shown = f"accuracy {found['accuracy']:.3f}, one annotator {found['one_annotator']:.3f}"
                tqdm.write(f"held out, step {int(state.step)}: {shown}", file=sys.stderr)
            if best is not None:
                step = int(state.step)
                best.see(step, found, averaged, last=step == config.train.num_steps)
            return {f"judge/held_out/{name}": value for name, value in found.items()}

        evaluators.append(Evaluator(settings.evaluate_every, measure))

    def export_result(state: TrainState) -> None:
        trained = state.averaged if best is None else best.read(state.averaged)
        if trained is not None:  # or an earlier release has exported it
            export(trained)

    return Experiment(
        description="judge",
        step=learning.step,
        create=learning.create,
        params=learning.params,
        frozen=frozen,
        example=example,
        prepare=prepare,
        task_weights=example.weights,
        evaluators=tuple(evaluators),
        export=export_result,
        progress={"loss": "learning/loss", "accuracy": "judge/accuracy"},
        optional=("judge/accuracy/",),
    )


def judge_learning(config: JudgeTraining, apply: Callable, params: Any, mesh: Mesh | None) -> Learning:
    """What is trained of a judge, and the update.

    Args:
      apply: `Judge.apply`.
      params: the judge's parameters at the start, there or stored.
    """
    settings, adapters, optimizer = config.judge, LoRA(**config.lora), make_optimizer(**config.optimizer)
    loss = make_loss(apply, settings.max_shift, settings.adversarial_radius)
    frozen, trained = _split_params(params, ("visual",) if settings.freeze_vision else (), mesh)
    if adapters.rank:
        loss, adapted = adapters.loss(loss), trained
        trained = Params.made(lambda: adapters.init(adapted.shapes, jax.random.key(config.seed)))
        frozen = _split_params(params, (), mesh)[1]
    return Learning(
        step=supervised_step(loss, optimizer, settings.ema_decay),
        create=lambda params: create_state(params, optimizer, config.seed, ema=settings.ema_decay > 0),
        params=trained,
        frozen=frozen,
    )


# --------------------------------------------------------------------------------------------------------- the examples


class Shown(NamedTuple):
    """Two images, uint8 (H, W, 3), and what is known of them: {dimension: +1 where the first is better, −1 where the
    second is}; `asked` is the dimension that has to be asked, or ""."""

    first: np.ndarray
    second: np.ndarray
    task: str
    prompt: str
    labels: dict[str, int]
    asked: str


class PairExamples:
    """Makes the examples of a run: annotated pairs, and pairs with synthetic defects.

    With `judge.task`, sample i of the run is the i-th one that has this task in a run of all: where all images
    have one shape, one judge a task is shown the very pairs that one judge for all is shown.

    Attributes:
      weights: {task: weight} of the tasks to draw.
    """

    def __init__(self, config: JudgeTraining, judge: Judge, pairs: Pairs):
        """
        Raises:
          UserError: synthetic pairs are asked for, and have another size than the preferences.
        """
        self._settings, self._seed, self.weights = config.judge, config.seed, _weights(config)
        self._drawn = PairDraw(
            pairs,
            judge.settings,
            self._settings.image_step,
            config.train.batch_size,
            self.weights,
            self._settings.balance_dimensions,
        )
        shapes = self._drawn.shapes
        if self._settings.synthetic_share:
            size = (config.data.resolution, config.data.resolution)
            if shapes != ((size, size),):
                raise UserError(
                    f"planted pairs are of {size[0]} x {size[1]} pixels, the preferences are not: set"
                    " judge.synthetic_share to 0"
                )
            self._ground = proving_ground_of(open_source(config, "train"), "judge.synthetic_share")
        if len(shapes) > 1:
            print(f"pairs of {len(shapes)} shapes: each compiles a program of its own", file=sys.stderr)
        only = self._settings.task
        self._numbers = SamplesOf(config.data.task_weights, only, config.seed) if only else None

    def __call__(self, index: int, task: str) -> dict[str, Any]:
        """
        Returns:
          "first", "second" (uint8, H, W, 3), "label" (E,), "asked" (columns of the label that are asked), "task" and
          "prompt".
        """
        number = index if self._numbers is None else self._numbers[index]
        generator = np.random.default_rng((self._seed, number))
        if generator.random() < self._settings.synthetic_share:
            shown = self._synthetic(generator, number, task)
        else:
            shown = self._annotated(generator, index, task)
        return self._augmented(generator, shown)

    def _annotated(self, generator: np.random.Generator, index: int, task: str) -> Shown:
        first, second, pair, sign, dimension = self._drawn.draw(generator, self._seed, index, task)
        labels = {name: sign * label for name, label in pair.labels.items()}
        return Shown(first, second, pair.task, pair.prompt, labels, dimension)

    def _synthetic(self, generator: np.random.Generator, number: int, task: str) -> Shown:
        scene = self._ground.scene(_FIRST_SYNTHETIC_SCENE + number, task)
        share = self._settings.glyph_share if task == "text_rendering" else 0.0
        glyphs = share > 0 and generator.random() < share  # without a share, pairs are what they were
        first, second, labels = synthetic_pair(scene, generator, glyphs)
        return Shown(first, second, task, scene.sample.prompt, labels, "")

    def _augmented(self, generator: np.random.Generator, shown: Shown) -> dict[str, Any]:
        first, second, task, prompt, known, asked = shown
        labels = label_row(task, prompt, known)
        if self._settings.flips:
            first, second = flip_together(generator, first, second, prompt)
        if self._settings.retone:
            first, second, same_colours = retone_together(generator, first, second)
            if not same_colours:
                labels = labels * text_free(task, prompt)
        column = dimensions_of(task, prompt).index(asked) if asked else None
        return {
            "first": first,
            "second": second,
            "label": labels,
            "asked": asked_first(generator, labels, column)[: self._settings.questions_per_pair],
            "task": np.str_(task),
            "prompt": np.str_(prompt),
        }


def _weights(config: JudgeTraining) -> dict[str, float]:
    """{task: weight} of the tasks that the judge is trained on."""
    only = config.judge.task
    return {only: 1.0} if only else dict(config.data.task_weights)


class _Best:
    """Keeps the weights of the best accuracy on held-out pairs, as a checkpoint in which every process writes its part.

    best.json names the step that is the best, and is written once its weights are on the disk; all others are deleted
    then. A run that was killed and goes on from an earlier step may find a best one before the step that was best.

    Of one process, a best step whose weights can't be saved is left out, with a warning, unless it is the last: a run
    that is killed before its next checkpoint measures it again, otherwise the best of the others is the result.
    """

    def __init__(self, workdir: Path):
        self._file, self._directory = workdir / "best.json", buckets.native(workdir.resolve() / "best")

    def see(self, step: int, found: dict[str, float], trained: Any, last: bool = False) -> None:
        """Save what was trained if it is better than what was; the note of it comes last.

        Raises:
          SaveError, OSError: it can't be written, and is the last, or one of several processes' (which have measured).
        """
        if not hosts.on_primary(lambda: self._is_best(step, found)):
            return
        try:
            self._save(step, found, trained)
        except (SaveError, OSError) as error:
            if last or hosts.count() > 1:
                raise
            text = f"the best weights of step {step} could not be saved: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def read(self, trained: Any) -> Any | None:
        """The best weights, placed like `trained`; None where only an earlier release saw them, and exported them.

        Raises:
          UserError: the weights that best.json tells of are not there, or not whole.
        """
        if hosts.on_primary(lambda: self._file.exists() and not buckets.path(self._directory).is_dir()):
            return None
        step = hosts.on_primary(self._step)
        places = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trained)
        found = None if step is None else Checkpointer(self._directory).restore_latest({"trained": places}, step)
        if found is None or found[0] != step:
            missing = f"{self._file} is missing" if step is None else f"the best weights, of step {step}, are missing"
            raise UserError(
                f"{missing} beside {self._directory}: put a good copy back, or start anew in another working directory"
            )
        return found[1]["trained"]

    def _save(self, step: int, found: dict[str, float], trained: Any) -> None:
        before = hosts.on_primary(self._step)
        checkpointer = Checkpointer(self._directory, keep=1)
        checkpointer.keep_only(before)  # a run may have been killed before it wrote best.json
        checkpointer.pinned = frozenset({step} if before is None else {step, before})
        try:
            checkpointer.save(step, {"trained": trained}, found)
            checkpointer.wait()
        except SaveError as error:
            raise SaveError(f"the best judge could not be saved in {self._directory} ({error})") from error
        hosts.on_primary(lambda: write_json(self._file, {"step": step, **found}))
        checkpointer.keep_only(step)

    def _step(self) -> int | None:
        return read_json(self._file)["step"] if self._file.exists() else None

    def _is_best(self, step: int, found: dict[str, float]) -> bool:
        """Whether a step is better than the best; that one itself is not, as another machine may measure it again."""
        if not self._file.exists():
            return True
        best = read_json(self._file)
        return step != best["step"] and found["accuracy"] > best["accuracy"]


def _split_params(params: Any, names: tuple[str, ...], mesh: Mesh | None) -> tuple[Params, Params]:
    """A judge's parameters, stored or there: (those under `names`, the others), float32, stored ones on the mesh."""
    if isinstance(params, StoredParams):
        named, others = params.split(*names)
        unread = lambda part: Params(part.shapes, lambda: part.read("float32", mesh))
        return unread(named), unread(others)
    return (
        Params.of({name: tree for name, tree in params.items() if name in names}),
        Params.of({name: tree for name, tree in params.items() if name not in names}),
    )


def _judge_at_start(config: JudgeTraining, workdir: Path) -> Judge:
    """The judge of `judge.start`, its parameters unread, or an untrained one; with the configuration's limit on a
    picture's area."""
    settings = config.judge
    fields = {"dtype": jnp.dtype(settings.dtype), "remat": settings.remat}
    if not settings.start:
        return new_judge(config, hosts.own_directory(workdir / "tokenizers"), fields)
    templates: dict[str, Any] = {"template": settings.template, "template_with_prompt": settings.template_with_prompt}
    judge = Judge.from_pretrained(settings.start, "float32", fields=fields, read=False, **templates)
    return Judge(judge.model, judge.params, judge.tokenizer, image_settings(config, judge.settings), **templates)


def image_settings(config: JudgeTraining, settings: ImageSettings) -> ImageSettings:
    """The judge's image settings, with the configuration's limit on an image's area."""
    limit = config.judge.max_pixels
    if not limit:
        return settings
    return dataclasses.replace(settings, max_pixels=limit, min_pixels=min(settings.min_pixels, limit))


def _split(config: JudgeTraining, judge: Judge, workdir: Path) -> tuple[Pairs, Pairs]:
    """Pairs to train on and held-out ones; a record is held out or not, whatever else the data holds, as long as
    `judge.held_out_records` leaves room. Records whose notes name one source image are not split."""
    settings = config.judge
    check = functools.partial(check_record, judge, config.question_length)
    directories = (reading(directory) for directory in settings.data)
    pairs = read_pairs(*directories, check=check, bad_share=settings.bad_share, workdir=workdir)
    weights = _weights(config)
    pairs = pairs.where(lambda pair: weights.get(pair.task, 0) > 0)

    def rank(name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{config.seed} {name}".encode()).digest()[:8], "big")

    unsplit = lambda pair: str(pair.notes.get(SOURCE) or pair.id)
    ranks = sorted((rank(name), name) for name in {unsplit(pair) for pair in pairs})
    share = [name for at, name in ranks if at < settings.held_out_share * 2**64]
    names = frozenset(share[: settings.held_out_records])
    trained = pairs.where(lambda pair: unsplit(pair) not in names)
    held_out = pairs.where(lambda pair: unsplit(pair) in names)
    there = {pair.task for pair in trained}
    if missing := [task for task, weight in weights.items() if weight and task not in there]:
        raise UserError(
            f"the preferences have no pair of {', '.join(missing)}: make more, or set its data.task_weights to 0"
        )
    return trained, held_out


def _report_balance(path: Path, pairs: Pairs, held_out: Pairs) -> None:
    """Writes and shows how many pairs each cell has: what has few is learnt little.

    Where several annotators voted on a held-out pair, it says how often one agrees with the majority of the others.
    """
    balance: dict[str, Any] = {"train": class_balance(pairs), "held_out": class_balance(held_out)}
    humans = human_accuracy(ballots_of(held_out))
    if humans:
        balance["held_out_annotators"] = humans
    if not hosts.is_primary():
        return
    write_json(path, balance)
    total = sum(count for cells in balance["train"].values() for count in cells.values())
    print(f"{'task':<16}{'dimension':<18}pairs   share  held out{'  one annotator' if humans else ''}", file=sys.stderr)
    for task, cells in balance["train"].items():
        for dimension, count in cells.items():
            kept = balance["held_out"][task][dimension]
            line = f"{task:<16}{dimension:<18}{count:<8}{count / total:<7.3f}{kept:<8}"
            human = humans["cells"].get(task, {}).get(dimension) if humans else None
            beside = f"  {human['accuracy']:.2f} (n = {human['n']})" if human else ""
            print((line + beside).rstrip(), file=sys.stderr)


def new_judge(config: JudgeTraining, directory: Path, fields: Mapping[str, Any] | None = None) -> Judge:
    """An untrained judge of `config.judge`, its tokenizer (written to `directory`) made for the proving ground.

    Args:
      fields: more of `Judge.create`.
    """
    prompts = list(all_prompts())
    templates: dict[str, Any] = {
        "template": config.judge.template,
        "template_with_prompt": config.judge.template_with_prompt,
    }
    questions = [question(task, dimension, "a", **templates) for task, dimension in CELLS]
    tokenizer = write_qwen2_tokenizer(directory, prompts + questions)
    return Judge.create(
        model_config(config.judge, len(tokenizer)), tokenizer, seed=config.seed, **(fields or {}), **templates
    )


def model_config(settings: JudgeModel, vocab_size: int) -> dict[str, Any]:
    """`config.json` of the model that the group `judge` describes.

    Args:
      vocab_size: where the group says none.
    """
    return {
        "text_config": {"vocab_size": vocab_size, **settings.text_config},
        "vision_config": dict(settings.vision_config),
    }


def asked_first(generator: np.random.Generator, labels: np.ndarray, drawn: int | None = None) -> np.ndarray:
    """Dimensions in random order: those with a label first, and of these the drawn one."""
    order = generator.permutation(len(labels))
    return order[np.argsort(2 * (labels[order] == 0) - 1 * (order == drawn), kind="stable")]
