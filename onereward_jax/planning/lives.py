"""What a run holds and computes from its start to its export, phase by phase, in shapes with shardings.

Every program here is the one that the run compiles, made by the function that the run makes it by; what is held between
programs has the shapes and shardings that the run places it by. No weights are read.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from onereward_jax import tree as trees
from onereward_jax.config.find import find_model
from onereward_jax.config.schema import Finetuning, JudgeTraining, Recipe, RewardFeedback, RewardLearning
from onereward_jax.errors import UserError
from onereward_jax.evaluation.judge_predictions import asking
from onereward_jax.fill import denoising
from onereward_jax.fill.denoising import DENOISING
from onereward_jax.fill.diffusers_io import read_shift
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.fill.prompts import PromptEncoder, encoding
from onereward_jax.flow.conditioning import vae_factor
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import Shift
from onereward_jax.judge import conversation
from onereward_jax.judge.judge import PREPROCESSOR_FILE
from onereward_jax.judge.pairs import seen_size
from onereward_jax.judge.question_batches import MAX_DIMENSIONS
from onereward_jax.judge.scorer import JudgeScorer
from onereward_jax.judge.vision import OFFICIAL_SETTINGS, ImageSettings
from onereward_jax.models.lora import B, LoRA
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import replicated
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.rl.batch import batch_shapes
from onereward_jax.rl.build_update import adapters_of, attention_of, computation, frozen_dtype
from onereward_jax.rl.profile_scopes import PARTS, REFERENCE, ROLLOUT
from onereward_jax.runs.finetune import fill_learning, loss_of, scoring
from onereward_jax.runs.judge import image_settings, judge_learning
from onereward_jax.runs.reward_feedback import policy_learning
from onereward_jax.training.compile import Placement, creating, jit_step
from onereward_jax.training.prefetch import PREFETCHED
from onereward_jax.training.trainer import Learning
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.load import StoredParams, in_dtype, param_dtype_of
from onereward_jax.weights.names.name_rules import official_shapes
from onereward_jax.weights.official_modules import unread_component

STEP, CHECKPOINT = "step", "checkpoint"  # phases whose program is the update
Held = dict[str, Any]  # part -> its arrays, as shapes with shardings


class Program(NamedTuple):
    """A run's update; state, frozen and batch are `jax.ShapeDtypeStruct`s.

    Attributes:
      step: see `training.trainer.Experiment`.
      state, frozen, batch: its arguments.
      trips: scopes of loops that end at a random index -> average number of iterations.
      shares: see `planning.cost.cost_of_program`.
      parts: scopes whose cost is told apart.
      references_made: share of updates that make their reference images instead of reusing some.
    """

    step: Callable
    state: Any
    frozen: Any
    batch: Any
    trips: Mapping[str, float]
    shares: Mapping[str, Sequence[float]]
    parts: tuple[str, ...] = ()
    references_made: float = 1.0

    def trace(self, mesh: Mesh, placement: Placement = Placement()) -> Any:  # noqa: B008 (a tuple)
        """Trace the program that training runs on this mesh; `lower().compile()` of it needs no weights."""
        # The arguments' shardings are part of the traced program.
        state = placed(self.state, placement.of_state(self.state, mesh))
        frozen = on_mesh(self.frozen, mesh)
        batch = batch_on(self.batch, mesh)
        return jit_step(self.step, state, frozen, mesh, placement).trace(state, frozen, batch)

    def held(self, mesh: Mesh, placement: Placement) -> Held:
        """What lies on the devices, or waits on their hosts, while the update runs."""
        return self.held_state(mesh, placement) | {"batch": batch_on(self.batch, mesh)}

    def held_state(self, mesh: Mesh, placement: Placement) -> dict[str, Any]:
        state = placed(self.state, placement.of_state(self.state, mesh))
        names = ("params", "ema", "opt_state", "reference", "references")
        return {name: getattr(state, name) for name in names} | self.held_frozen(mesh)

    def held_frozen(self, mesh: Mesh) -> dict[str, Any]:
        frozen = on_mesh(self.frozen, mesh)
        parts = frozen if isinstance(frozen, Mapping) else vars(frozen)
        return {name: part for name, part in parts.items() if part is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A phase of a run.

    Attributes:
      name: "encode", "load", "create", "restore", "step", "evaluation", "checkpoint" or "export".
      what: it, in a few words.
      held: what lies on the devices all the while, the program's arguments included.
      trace: traces its program; None where it runs none.
      times: how often the program runs in it.
      trips, shares: of its program, see `planning.cost.cost_of_program`.
      on_host: {part: bytes on a host}, beside what of `held` waits there.
      read, written: bytes that a host reads from files, and writes to files.
    """

    name: str
    what: str
    held: Held
    trace: Callable[[], Any] | None = None
    times: float = 1.0
    trips: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    on_host: Mapping[str, float] = dataclasses.field(default_factory=dict)
    read: float = 0.0
    written: float = 0.0


def placed(shapes: Any, places: Any) -> Any:
    """Attach shardings to shapes."""
    at = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return jax.tree.map(at, shapes, places)


def on_mesh(shapes: Any, mesh: Mesh) -> Any:
    """Parameters' shapes, sharded as on a mesh."""
    return placed(shapes, shardings(shapes, mesh))


def batch_on(shapes: Any, mesh: Mesh) -> Any:
    """A batch's shapes, sharded as on a mesh."""
    return placed(shapes, jax.tree.map(lambda x: batch_sharding(mesh, x.shape[0]), shapes))


def size_of(tree: Any) -> int:
    """Bytes of all of a tree's arrays."""
    return sum(math.prod(leaf.shape) * itemsize(leaf) for leaf in jax.tree.leaves(tree))


def itemsize(leaf: Any) -> int:
    """Bytes of an array's element; of a random key, those of its words."""
    return 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize


# ------------------------------------------------------------------------------------------------------------- the host


@dataclasses.dataclass(frozen=True)
class HostShare:
    """What one host of a slice reads, holds and writes.

    Attributes:
      devices: of it.
      count: number of hosts.
    """

    devices: Sequence[Any]
    count: int

    def read(self, tree: Any, dtype: Any = jnp.bfloat16) -> int:
        """Bytes that it reads of stored parameters: each part that one of its devices holds, once.

        Args:
          tree: shapes with shardings.
          dtype: of the files; official releases are in bfloat16.
        """
        of = lambda leaf: len(self._parts(leaf)) * self._part(leaf) * np.dtype(dtype).itemsize
        return sum(of(leaf) for leaf in jax.tree.leaves(tree))

    def reading(self, tree: Any) -> int:
        """Most bytes that it holds while it reads: all its devices' parts of the largest parameter, which are then on
        their way to the devices, and another's, which is being read."""
        sizes = [len(self.devices) * self._part(leaf) * itemsize(leaf) for leaf in jax.tree.leaves(tree)]
        return 2 * max(sizes, default=0)

    def share(self, tree: Any) -> int:
        """Bytes of its part of a checkpoint, in which every array is once and the hosts share the work."""
        return -(-size_of(tree) // self.count)

    def _part(self, leaf: Any) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape))

    def _parts(self, leaf: Any) -> set[str]:
        places = leaf.sharding.devices_indices_map(leaf.shape)
        return {str(places[device]) for device in self.devices}


# ----------------------------------------------------------------------------------------------- what the recipes share


def life_of(config: Recipe, mesh: Mesh | None = None) -> "Life":
    """Lay out a run, reading no more of its models than `official_module` does.

    Raises:
      FileNotFoundError, UserError: a model is unknown, or does not accept the image size.
    """
    if isinstance(config, RewardFeedback):
        return _RewardFeedbackLife(config, mesh)
    if isinstance(config, JudgeTraining):
        return _JudgeLife(config, mesh)
    assert isinstance(config, Finetuning), "the command takes no other recipe"
    return _FinetuningLife(config, mesh)


class Life:
    """A run of a recipe.

    Attributes:
      config: its configuration.
      learning: what it computes.
      program: its update.
    """

    config: Any
    learning: Learning
    program: Program

    def works(self, mesh: Mesh, host: HostShare, prompts: int) -> Iterator[Work]:
        """List the phases, in order.

        Args:
          prompts: that are encoded first.
        """
        raise NotImplementedError

    def _from_create_to_export(
        self,
        mesh: Mesh,
        host: HostShare,
        evaluations: Callable[[Held], Iterator[Work]],
        exported: Mapping[str, "Exported"],
        best: Any = None,
    ) -> Iterator[Work]:
        """The phases that every recipe has.

        Args:
          evaluations: what lies on the devices in training -> the evaluations then.
          exported: {part: what is written of it}, one after the other.
          best: the weights, saved before the last update, that are exported in place of the state's.
        """
        program, placement, params = self.program, Placement.of(self.config), on_mesh(self.learning.params.shapes, mesh)
        frozen, held = program.held_frozen(mesh), program.held_state(mesh, placement)
        state = placed(program.state, placement.of_state(program.state, mesh))
        batch = batch_on(program.batch, mesh)
        adapts = bool(LoRA(**self.config.lora).rank)
        read = {} if adapts else {"reading": host.reading(params)}
        start = frozen | {"read": params}
        if adapts:  # it is made on the first device, and spread from there
            start["adapter, whole"] = placed(params, jax.tree.map(lambda leaf: replicated(mesh), params))
        made: dict[str, Any] = {}
        for part, maker in creating(self.learning.create, placement.of_state(program.state, mesh), placement).items():
            # What an earlier part has become stays; a part's own arrays are its program's results.
            yield Work(
                name="create",
                what="the first state" if part == "state" else f"the first state: {part}",
                held=start | made,
                trace=functools.partial(maker.trace, params),
                on_host=read,
                read=0 if adapts or made else host.read(params),
            )
            made[part] = getattr(state, part, state)
        yield Work(
            name="restore",
            what="a checkpoint into its place",
            held=held,
            on_host={"checkpoint": host.share(state)},
            read=host.share(state),
        )
        # Beside the batch of the update, those that are ready and the one that comes.
        held |= {"batches ahead": [batch] * (PREFETCHED + 1)}
        update = Work(
            name=STEP,
            what="an update",
            held=held | {"batch": batch},
            trace=lambda: program.trace(mesh, placement),
            trips=program.trips,
            shares=program.shares,
        )
        yield update
        yield from evaluations(held)
        yield dataclasses.replace(
            update,
            name=CHECKPOINT,
            what="a save beside an update",
            on_host={"checkpoint": host.share(state)},
            written=host.share(state),
        )
        if best is not None:
            held |= {"best": on_mesh(best, mesh)}
            yield Work(
                name="export",
                what="the best weights, read",
                held=held,
                on_host={"checkpoint": host.share(best)},
                read=host.share(best),
            )
        for part, (tensor, size) in exported.items():
            gathered = jax.ShapeDtypeStruct((tensor,), jnp.uint8, sharding=replicated(mesh))
            # On the host as it came, and as it is written.
            on_host = {"gathered": 2.0 * tensor}
            yield Work(name="export", what=part, held=held | {"gathered": gathered}, on_host=on_host, written=size)


class Exported(NamedTuple):
    """What an export writes: bytes of the largest tensor, which is gathered whole, and of all of them."""

    tensor: int
    size: int


def exported_of(kind: str, trained: Any, stored: StoredParams | None) -> Exported:
    """What is written of a component, in the dtype of the files that it came from, or of an adapter.

    Args:
      trained: all of its parameters, or an adapter's.
      stored: the component; None for an adapter.
    """
    if stored is None:
        sizes = [size_of(leaf) for leaf in jax.tree.leaves(trained)]
    else:
        shapes = official_shapes(kind_of(kind).module().TABLE, trained)
        sizes = [math.prod(shape) * param_dtype_of(stored.dtype).itemsize for shape in shapes.values()]
    return Exported(max(sizes), sum(sizes))


class _FillModel:
    """The modules of a fill model, its stored transformer, and where its parts lie."""

    def __init__(self, config: Any, dtype: str, fields: Mapping[str, Any], attention: Mapping[str, Any]):
        base, directory = config.model.base, find_model(config.model.base)
        self.dtype, self.length = dtype, config.max_sequence_length
        self.shift = read_shift(directory) if directory.is_dir() else Shift()
        computed = {"dtype": jnp.dtype(dtype)}
        # The pipeline's own, and as the update has them.
        own, self.stored = unread_component(base, "transformer", computed | {"attention_implementation": "auto"})
        vae, stored_vae = unread_component(base, "vae", computed)
        self.pipeline = FluxFill(own, vae, self.shift)
        self.family = FluxFill(own.clone(**fields, **attention), vae.clone(**fields), self.shift)
        self.vae = in_dtype(stored_vae.shapes, dtype)
        self.base = in_dtype(self.stored.shapes, dtype)
        self._encoders = lambda kind: unread_component(base, kind, computed)
        self._base_model = base

    def encode(self, mesh: Mesh, host: HostShare, prompts: int) -> Iterator[Work]:
        """Reading the text encoders and encoding all prompts; the autoencoder is there by then."""
        (clip, clip_params), (t5, t5_params) = map(self._encoders, ("text_encoder", "text_encoder_2"))
        size = PromptEncoder.batch_size
        params = [on_mesh(in_dtype(of.shapes, self.dtype), mesh) for of in (clip_params, t5_params)]
        tokens = lambda length: jax.ShapeDtypeStruct((size, length), jnp.int32)
        both = tokens(clip.max_position_embeddings), tokens(self.length)
        of_prompt = size_of(jax.eval_shape(encoding(clip, t5), *params, *both)) // size
        yield Work(
            name="encode",
            what=f"{prompts:,} prompts",
            held={"vae": on_mesh(self.vae, mesh), "text encoders": params},
            trace=lambda: encoding(clip, t5).trace(*params, *both),
            times=-(-prompts // size),
            on_host={"reading": host.reading(params)},
            read=host.read(params),
            written=prompts * of_prompt,
        )

    def generate(
        self, params: Any, mesh: Mesh, size: tuple[int, int], count: int, steps: int, scales: tuple[float, float]
    ) -> Callable[[], Any]:
        """The program that makes `count` images, traced when it is called.

        Args:
          params: of the transformer, shapes with shardings.
          scales: of the embedded guidance, and of true guidance.
        """
        height, width = size
        array = lambda *shape, dtype: jax.ShapeDtypeStruct((count, *shape), dtype)
        text = jax.tree.map(
            lambda shape: array(*shape, dtype=jnp.dtype(self.dtype)),
            self.pipeline.text_shapes(self.length),
            is_leaf=lambda x: type(x) is tuple,
        )
        batch = denoising.Batch(
            tokens=array(*self.pipeline.token_shape(height, width), dtype=jnp.float32),
            text=text,
            negative=text if scales[1] != 1.0 else None,
            images=array(height, width, 3, dtype=jnp.uint8),
            masks=array(height, width, dtype=jnp.uint8),
        )
        batch = placed(batch, jax.tree.map(lambda x: batch_sharding(mesh, count), batch))
        schedule = denoising.padded(self.pipeline.schedule(steps, height, width))
        tile = FillPipeline.vae_tile and FillPipeline.vae_tile // vae_factor(self.pipeline.vae)
        setup = denoising.Setup(self.pipeline, size, tile, mesh.abstract_mesh)
        arguments = {"transformer": params, "vae": on_mesh(self.vae, mesh)}, batch, schedule, steps - 1, scales
        return lambda: denoising.fill.trace(*arguments, setup=setup)


def _scorer(model: Any, judge: str) -> JudgeScorer:
    """Join the judge's module with its prefix, answer tokens and image settings."""
    directory = find_model(judge)
    if not directory.is_dir():
        return JudgeScorer(model, conversation.OFFICIAL_PREFIX, conversation.OFFICIAL_ANSWERS, OFFICIAL_SETTINGS)
    from onereward_jax.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    settings = ImageSettings.from_file(directory / PREPROCESSOR_FILE)
    return JudgeScorer(model, conversation.shared_prefix(tokenizer), conversation.answer_ids(tokenizer), settings)


def _attached(adapters: LoRA, trained: Any, frozen: Any) -> tuple[Any, list[Any]]:
    """`LoRA.full_params` of shapes with shardings, and the arrays that it makes: an adapter's scaled factors."""
    if not adapters.rank:
        return {**frozen, **trained}, []
    leaves = trees.flatten(trained)
    scaled = [leaf for path, leaf in leaves.items() if path.endswith(f"/{B}")]
    return trees.unflatten(trees.flatten(frozen) | leaves), scaled


def _visual_shares(judge: Any) -> dict[str, tuple[float, float]]:
    """Of windowed and of full attention in the vision tower."""
    full = len(judge.visual.fullatt_block_indexes) / judge.visual.depth
    return {"visual": (1 - full, full)}


# --------------------------------------------------------------------------------------------- reward feedback learning


class _RewardFeedbackLife(Life):
    """See `runs.reward_feedback`."""

    def __init__(self, config: RewardFeedback, mesh: Mesh | None):
        if config.model.judge_adapters:
            raise UserError(
                "a plan takes one judge: leave model.judge_adapters empty; each adapter adds a forward pass"
            )
        self.config, fields, dtype = config, computation(config), frozen_dtype(config)
        self.model = model = _FillModel(config, dtype, fields, attention_of(config))
        model.family.token_shape(config.data.resolution, config.data.resolution)  # refuses what doesn't divide
        judge, stored = unread_component(config.model.judge, "judge", fields)
        self.scorer, self.judge = _scorer(judge, config.model.judge), in_dtype(stored.shapes, dtype)
        arguments = config, model.family, self.scorer, model.stored, model.vae, self.judge, mesh
        self.learning = policy_learning(*arguments)
        made = share_of_references_made(config)
        self.program = Program(
            self.learning.step,
            jax.eval_shape(self.learning.create, self.learning.params.shapes),
            self.learning.frozen.shapes,
            batch_shapes(config, model.family),
            expected_trips(config.rl, config.train.batch_size),
            # References made and reused.
            _visual_shares(judge) | {REFERENCE: (made, 1 - made)},
            PARTS,
            made,
        )

    def works(self, mesh: Mesh, host: HostShare, prompts: int) -> Iterator[Work]:
        config, model, adapters = self.config, self.model, adapters_of(self.config)
        settings, side = config.evaluation, config.data.resolution
        yield from model.encode(mesh, host, prompts)
        frozen, base = self.program.held_frozen(mesh), on_mesh(model.base, mesh)
        read = {name: tree for name, tree in frozen.items() if name != "vae"}
        yield Work(
            name="load",
            what=" and ".join(sorted(read)),
            held=frozen,
            on_host={"reading": host.reading(read)},
            read=host.read(read),
        )
        tasks = sum(weight > 0 for weight in config.data.task_weights.values())
        batches = tasks * -(-settings.scenes_while_training // settings.batch_size)
        images = lambda params: model.generate(
            params,
            mesh,
            (side, side),
            min(settings.batch_size, settings.scenes_while_training),
            settings.num_steps,
            (settings.guidance_scale, settings.true_cfg_scale),
        )
        trips = {DENOISING: settings.num_steps - 1}

        def evaluations(held: Held) -> Iterator[Work]:
            policy, scaled = _attached(adapters, held["params"], frozen.get("base", {}))
            yield Work(
                name="evaluation",
                what="images of the policy",
                held={**held, "scaled": scaled},
                trace=images(policy),
                times=batches,
                trips=trips,
            )
            if not config.data.source:  # the proving ground has a ground truth
                return
            asked = Work(
                name="evaluation",
                what="the judge's preference",
                held=held,
                trace=lambda: self._ask(self.scorer, self.judge, mesh),
                times=batches,
                shares={"visual": self.program.shares["visual"]},
            )
            yield asked
            if settings.other_judge:
                module, stored = unread_component(settings.other_judge, "judge", computation(config))
                scorer, params = _scorer(module, settings.other_judge), in_dtype(stored.shapes, model.dtype)
                other = on_mesh(params, mesh)
                yield dataclasses.replace(
                    asked,
                    what="the other judge's preference",
                    held={**held, "other judge": other},
                    trace=lambda: self._ask(scorer, params, mesh),
                    shares=_visual_shares(module),
                    on_host={"reading": host.reading(other)},
                    read=host.read(other),
                )

        if settings.every:
            yield Work(
                name="evaluation",
                what="images of the base",
                held=frozen if adapters.rank else frozen | {"base": base},
                trace=images(base),
                times=batches,
                trips=trips,
                on_host={} if adapters.rank else {"reading": host.reading(base)},
                read=0 if adapters.rank else host.read(base),
            )
        written = exported_of("transformer", self.learning.params.shapes, None if adapters.rank else self.model.stored)
        parts = ("policy", "ema", *(("reference",) if config.algorithm == "earned" else ()))
        yield from self._from_create_to_export(
            mesh, host, evaluations if settings.every else lambda held: iter(()), dict.fromkeys(parts, written)
        )

    def _ask(self, scorer: JudgeScorer, params: Any, mesh: Mesh) -> Any:
        """A judge's comparison of two batches of images, traced."""
        settings, side = self.config.evaluation, self.config.data.resolution
        count = min(settings.batch_size, settings.scenes_while_training)
        batch = batch_on(_asked(count, (side, side), MAX_DIMENSIONS, self.config.question_length), mesh)
        return asking(scorer.ask_batch, mesh).trace(on_mesh(params, mesh), batch)


def share_of_references_made(config: RewardFeedback) -> float:
    """Return the share of a run's updates that make their reference images: with a cache those of the first epoch, with
    a maximal age one in every 1 + age."""
    step_config = config.rl
    if step_config.reference_cache:
        return min(1.0, config.data.num_conditions / (config.train.num_steps * config.train.batch_size))
    return 1 / (1 + step_config.reference_max_age)


def expected_trips(config: RewardLearning, batch_size: int) -> dict[str, float]:
    """Return the average Euler steps of the two rollouts: all samples of a batch, and all predictions of a sample, run
    to the latest index among them, or with the estimator endpoint to the end."""
    draws = config.predictions * (batch_size // config.accumulate if config.index_per_sample else 1)
    count = config.last_index - config.first_index + 1
    latest = config.last_index - math.fsum((k / count) ** draws for k in range(1, count))
    return {
        REFERENCE: latest if config.matched_reference else float(config.steps_of_reference),
        ROLLOUT: float(config.steps_of_policy) if config.estimator == "endpoint" else latest,
    }


# ------------------------------------------------------------------------------------------------- the judge's training


class _JudgeLife(Life):
    """See `runs.judge`."""

    def __init__(self, config: JudgeTraining, mesh: Mesh | None):
        settings = config.judge
        if not settings.start:
            raise UserError("a plan takes a judge that starts from another: set judge.start")
        fields = {"dtype": jnp.dtype(settings.dtype), "remat": settings.remat}
        model, self.stored = unread_component(settings.start, "judge", fields)
        scorer = _scorer(model, settings.start)
        self.config = config
        self.scorer = dataclasses.replace(scorer, settings=image_settings(config, scorer.settings))
        self.learning = judge_learning(config, self.scorer.ask_batch, self.stored, mesh)
        # Images as the judge sees square ones of data.resolution; others have about that area.
        self.size = seen_size((config.data.resolution,) * 2, self.scorer.settings, settings.image_step)
        count, asked = config.train.batch_size, min(settings.questions_per_pair, MAX_DIMENSIONS)
        label = jax.ShapeDtypeStruct((count, asked), jnp.int32)
        batch = _asked(count, self.size, asked, config.question_length)
        self.program = Program(
            self.learning.step,
            jax.eval_shape(self.learning.create, self.learning.params.shapes),
            self.learning.frozen.shapes,
            batch | {"label": label, "index": jax.ShapeDtypeStruct((count,), jnp.int32)},
            {},
            _visual_shares(model),
        )

    def works(self, mesh: Mesh, host: HostShare, prompts: int) -> Iterator[Work]:
        config, settings, adapters = self.config, self.config.judge, LoRA(**self.config.lora)
        frozen = self.program.held_frozen(mesh)
        if jax.tree.leaves(frozen):
            yield Work(
                name="load",
                what="what is frozen",
                held=frozen,
                on_host={"reading": host.reading(frozen)},
                read=host.read(frozen),
            )
        count = config.train.batch_size

        def evaluations(held: Held) -> Iterator[Work]:
            averaged = held["ema"] if settings.ema_decay else held["params"]
            if offloaded := _to_devices(averaged) if "ema" in config.train.offload else None:
                averaged, held = offloaded, {**held, "average": offloaded}
            params, scaled = _attached(adapters, averaged, on_mesh(self.learning.frozen.shapes, mesh))
            batch = batch_on(_asked(count, self.size, MAX_DIMENSIONS, config.question_length), mesh)
            yield Work(
                name="evaluation",
                what="a batch of held-out pairs",
                held={**held, "scaled": scaled, "pairs": batch},
                trace=lambda: asking(self.scorer.ask_batch, mesh).trace(params, batch),
                shares=self.program.shares,
            )
            if settings.keep_best:
                yield Work(
                    name="evaluation",
                    what="a save of the best weights",
                    held={**held, "scaled": scaled},
                    on_host={"checkpoint": host.share(trained)},
                    written=host.share(trained),
                )

        trained = self.learning.params.shapes
        if adapters.rank:
            written = exported_of("judge", trained, None)
        else:
            written = exported_of("judge", {**self.learning.frozen.shapes, **trained}, self.stored)
        yield from self._from_create_to_export(
            mesh,
            host,
            evaluations if settings.evaluate_every else lambda held: iter(()),
            {"the judge": written},
            trained if settings.keep_best else None,
        )


def _to_devices(tree: Any) -> Any:
    """Arrays that wait on the hosts, as they are on the devices."""
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind("device"))
    return jax.tree.map(place, tree)


def _asked(count: int, size: tuple[int, int], questions: int, length: int) -> dict[str, Any]:
    """A batch of pairs and questions about them, as `judge.question_batches.question_batch` makes it."""
    array = lambda *shape, dtype: jax.ShapeDtypeStruct((count, *shape), dtype)
    image = array(*size, 3, dtype=jnp.uint8)
    return {
        "first": image,
        "second": image,
        "question_ids": array(questions, length, dtype=jnp.int32),
        "question_lengths": array(questions, dtype=jnp.int32),
        "weights": array(questions, dtype=jnp.float32),
        "cell": array(questions, dtype=jnp.int32),
    }


# ---------------------------------------------------------------------------------------------------------- fine-tuning


class _FinetuningLife(Life):
    """See `runs.finetune`."""

    def __init__(self, config: Finetuning, mesh: Mesh | None):
        self.config = config
        self.model = model = _FillModel(config, config.model.dtype, {}, {})
        side, count = config.data.resolution, config.train.batch_size
        model.family.token_shape(side, side)  # refuses what doesn't divide
        self.learning = fill_learning(config, model.pipeline, model.stored, model.vae, mesh)
        states = model.pipeline.text_shapes(config.max_sequence_length)
        array = lambda *shape, dtype: jax.ShapeDtypeStruct((count, *shape), dtype)
        text = [array(*shape, dtype=jnp.dtype(model.dtype)) for shape in (states.prompt_embeds, states.pooled)]
        names = ("prompt_embeds", "pooled", "negative_prompt_embeds", "negative_pooled")
        self.batch = {
            "image": array(side, side, 3, dtype=jnp.uint8),
            "mask": array(side, side, dtype=jnp.uint8),
            "index": array(dtype=jnp.int32),
            **dict(zip(names, text * 2, strict=True)),
        }
        self.program = Program(
            self.learning.step,
            jax.eval_shape(self.learning.create, self.learning.params.shapes),
            self.learning.frozen.shapes,
            self.batch,
            {},
            {},
        )

    def works(self, mesh: Mesh, host: HostShare, prompts: int) -> Iterator[Work]:
        config, settings, model = self.config, self.config.finetune, self.model
        adapters, side = LoRA(**config.lora), config.data.resolution
        yield from model.encode(mesh, host, prompts)
        frozen = self.program.held_frozen(mesh)
        read = {name: tree for name, tree in frozen.items() if name != "vae"}
        if read:
            yield Work(
                name="load",
                what="the frozen transformer",
                held=frozen,
                on_host={"reading": host.reading(read)},
                read=host.read(read),
            )
        params = on_mesh(self.learning.params.shapes, mesh)
        batch = placed(self.batch, jax.tree.map(lambda x: batch_sharding(mesh), self.batch))
        program = scoring(loss_of(config, model.pipeline, 0.0), config.seed, mesh)
        score = lambda trained: lambda: program.trace(trained, on_mesh(self.learning.frozen.shapes, mesh), batch)
        if settings.evaluate_every and config.data.held_out_share:
            yield Work(
                name="evaluation",
                what="a batch of held-out images, by the base",
                held={**frozen, "read": params, "images": batch},
                trace=score(params),
                on_host={} if adapters.rank else {"reading": host.reading(params)},
                read=0 if adapters.rank else host.read(params),
            )

        def evaluations(held: Held) -> Iterator[Work]:
            averaged = held["ema"] if settings.ema_decay else held["params"]
            if "ema" in config.train.offload:
                averaged = _to_devices(averaged)
                held = {**held, "average": averaged}
            if settings.evaluate_every and config.data.held_out_share:
                yield Work(
                    name="evaluation",
                    what="a batch of held-out images",
                    held={**held, "images": batch},
                    trace=score(averaged),
                )
            if settings.sample_every and settings.num_samples:
                whole, scaled = _attached(adapters, averaged, frozen)
                yield Work(
                    name="evaluation",
                    what="an image of a grid",
                    held={**held, "scaled": scaled},
                    trace=model.generate(
                        whole["transformer"],
                        mesh,
                        (side, side),
                        1,
                        settings.sample_steps,
                        (settings.sample_guidance_scale, settings.sample_true_cfg_scale),
                    ),
                    times=settings.num_samples,
                    trips={DENOISING: settings.sample_steps - 1},
                )

        trained = self.learning.params.shapes["transformer"]
        written = exported_of("transformer", trained, None if adapters.rank else model.stored)
        yield from self._from_create_to_export(mesh, host, evaluations, {"the transformer": written})
