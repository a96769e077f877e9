"""The training loop that all trainers share: restore, step, log, evaluate, checkpoint, stop.

A run killed at any moment and started again with the same command ends with the same parameters, bit for bit, and
with a metrics.jsonl that has every step once. What makes it so:

  - state and data state of one step are saved together, and the data state is that of the last batch *consumed*,
    however far the input has read ahead;
  - the lines of metrics up to step s are on the disk before the checkpoint of s, and those after s are dropped when
    the run goes on from s.

A run survives some faults with a warning: a checkpoint that can't be written, an update that is skipped. Others end it
with the newest good state saved: too many of those, the last checkpoint, data that does not come. See
docs/how-to/running.md. In multi-process runs every process executes this loop on its shard; an error in one ends all,
see `parallel.heartbeat.run_together`.
"""

import contextlib
import queue
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onereward_jax import buckets
from onereward_jax.atomic_files import lock
from onereward_jax.buckets import is_bucket
from onereward_jax.errors import Fault, Hang, Interrupted, UserError
from onereward_jax.parallel import hosts
from onereward_jax.training.checkpoint import Checkpointer, SaveError
from onereward_jax.training.compile import Start
from onereward_jax.training.early_stop import Stop, Watch, record
from onereward_jax.training.metrics import MetricsWriter
from onereward_jax.training.prefetch import Prefetcher
from onereward_jax.training.progress import Progress, StepLog
from onereward_jax.training.saving import ByTime, Saving
from onereward_jax.training.signals import StopSignals

State = Any  # a pytree with an attribute `step`: int32 scalar, the number of updates done
Batch = Any
Metrics = Mapping[str, Any]

PROGRESS = {"loss": "learning/loss", "reward": "rewards/mean"}


def run(
    *,
    step: Callable[[State, Batch], tuple[State, Metrics]],
    start: Start,
    batches: Iterator[Batch],
    num_steps: int,
    workdir: str | Path,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    checkpoint_every: int = 1000,
    checkpoint_minutes: float = 0.0,
    keep: int = 3,
    log_every: int = 1,
    max_skipped: int = 10,
    data_timeout: float = 0.0,
    evaluate: Callable[[State], Metrics] | None = None,
    evaluate_every: int = 0,
    watch: Watch | None = None,
    after_evaluation: Callable[[State, Metrics], State] = lambda state, found: state,
    description: str = "train",
    progress: Mapping[str, str] = PROGRESS,
    optional: tuple[str, ...] = ("rewards/",),
) -> State:
    """Trains up to `num_steps`, going on from the newest whole checkpoint in `workdir/checkpoints`.

    Args:
      step: jitted (state, batch) -> (new state, {name: scalar array}); may donate the state. It tells by the metric
        `learning/skipped` that it left the state as it was, the number of steps apart.
      start: the state before the first step; a restored one takes its structure, dtypes and shardings, and is the only
        one that is ever made.
      batches: iterator with `get_state()` and `set_state()`, such as `iter(data.mixture.mixture(...))`.
      num_steps: value of `state.step` at which the run is done.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`; may be a local copy, see `buckets`.
      prepare: batch -> what `step` takes (encoding prompts, placing on devices); must depend on the batch only.
        Runs in a background thread, and computes on devices of this process only: programs of several processes have
        to be launched in the same order by all of them.
      checkpoint_every: steps between checkpoints; one more is saved at the end. 0: only that.
      checkpoint_minutes: minutes since the newest checkpoint after which one more is saved. 0: never.
      keep: checkpoints kept.
      log_every: a line of metrics is written at the multiples of it and at the last step.
      max_skipped: updates in a row that may be skipped; one more ends the run. Each writes its line.
      data_timeout: seconds that a batch may take to come before the run ends; 0 waits for ever.
      evaluate: state -> {name: number}, joined to the line of its step.
      evaluate_every: steps between evaluations; one more at the last step. 0: never.
      watch: follows the evaluations; the run ends when it says so, with a checkpoint of that step and the state of the
        step that it names.
      after_evaluation: (state, what was found) -> the state to go on with, which the step's checkpoint has.
      description: word before the bar.
      progress: {word: metric} shown beside the bar.
      optional: prefixes of metrics for which NaN means "no sample of that kind in this batch": left out of the line.

    Returns:
      The state at `num_steps`, or that of `watch.stop`.

    Raises:
      Interrupted: SIGTERM or SIGINT came; the step that was running is finished and saved.
      Fault: the last checkpoint could not be written, or no batch came in time.
      UserError: no checkpoint is whole, another state is saved there, another process trains there, more steps
        are done there, its checkpoints are gone, the data ended, or loss or gradient are no numbers any more.
    """
    directory = Path(workdir)
    primary = hosts.is_primary()
    with contextlib.ExitStack() as stack:
        if primary:
            lock(directory)
            _check_there(directory)
        checkpointer = Checkpointer(buckets.native(directory.resolve() / "checkpoints"), keep)

        # ------------------------------------------------------------------------------------------------- resume
        restored = checkpointer.restore_latest(start.shapes)
        resumed = restored is not None
        if restored is None:
            state = start.make()
        else:
            _, state, data_state = restored
            batches.set_state(data_state)  # type: ignore[attr-defined]
        del restored  # it would keep the state
        number = int(state.step)
        if primary and resumed:
            print(f"{description}: going on from step {number} of {num_steps}", file=sys.stderr)
        if number > num_steps:
            raise UserError(
                f"{buckets.native(directory)} has gone on to step {number}, beyond num_steps {num_steps}: raise"
                " num_steps, or choose another --workdir"
            )
        if watch is not None:
            if watch.begin(number):
                del state
                return _ended(watch.stop, checkpointer, start, directory)
            record(directory, None)
            checkpointer.pinned = watch.kept
        if number == num_steps:
            return state

        # ------------------------------------------------------------------------------------------------ the loop
        def due(every: int) -> bool:
            return number == num_steps or (every > 0 and number % every == 0)

        stopping = stack.enter_context(StopSignals())
        writer = stack.enter_context(MetricsWriter(directory, number)) if primary else None
        saving = stack.enter_context(Saving(checkpointer, writer, number))
        by_time = ByTime(60 * checkpoint_minutes, number, checkpointer)
        bar = stack.enter_context(Progress(description, number, num_steps, progress, shown=primary))
        log = StepLog(writer, bar, optional, number, max_skipped)
        prefetcher = stack.enter_context(Prefetcher(batches, prepare, data_timeout))
        data_state = None
        while number < num_steps:
            try:
                batch, data_state = prefetcher.next()
            except queue.Empty:
                log.flush()
                saving.wait()
                saved = "what was learnt is saved, and the same command goes on from there"
                if hosts.count() > 1:  # the others have a batch, and wait in their step
                    saved = "the same command goes on from the newest checkpoint"
                elif log.good > saving.newest:
                    saving.save(number, state, data_state, last=True)
                try:
                    saving.finish()
                except Fault as fault:
                    saved = fault.message
                raise Hang(
                    f"no batch came in {data_timeout:g} s after step {number} (data.loader_timeout): a loader hangs;"
                    f" {saved}"
                ) from None
            state, metrics = step(state, batch)
            number += 1
            log.flush()  # the metrics of the step before, while this one runs
            log.add(number, metrics, written=due(log_every))
            saving.check()
            stop_signal = stopping.at(number)
            stop, kept = None, False
            if evaluate is not None and evaluate_every and due(evaluate_every):
                log.flush(hold=True)
                found = _evaluated(evaluate, state, last=number == num_steps)
                if watch is not None:
                    found = {**found, **watch.add(number, found)}
                    stop, kept = watch.stop, number in watch.kept
                log.join(found)
                state = after_evaluation(state, found)
            if by_time.due(number) or due(checkpoint_every) or stop_signal or log.lost or stop or kept:
                log.flush()
                saving.wait()
                if watch is not None:  # a save that ends before this one must not delete what was good until now
                    checkpointer.pinned = watch.kept
                last = number == num_steps or bool(stop_signal or stop) or log.lost
                # A state that only skipped since the newest checkpoint must not drive the good ones out, unless it is
                # one that the run may end with.
                # A run that is lost is not done, however far it came.
                whole = number == num_steps and not log.lost
                if whole or stop_signal or stop or ((kept or log.good > saving.newest) and number < num_steps):
                    saving.save(number, state, data_state, last)
                log.restart_clock()
                by_time.restart(number)
            if log.lost:
                saving.finish()
                raise UserError(
                    f"the training has diverged: {log.skipped} updates in a row were skipped (train.max_skipped is"
                    f" {max_skipped}), the last since {log.reason}; the parameters before them are saved: lower the"
                    " learning rate and start in another --workdir, or let the same command skip more"
                )
            if stop and not stop_signal:
                saving.finish()
                del state
                return _ended(stop, checkpointer, start, directory)
            if stop_signal:  # after the last step too: what follows the training is for the next start
                saving.finish()
                raise Interrupted(stop_signal, number, str(buckets.native(directory)))
        saving.finish()
    return state


def _ended(stop: Stop | None, checkpointer: Checkpointer, start: Start, directory: Path) -> State:
    """The state that a run ends with; the newest is gone from memory, and stays in its checkpoint.

    Raises:
      UserError: there is no checkpoint of it, since none was kept when its step was done.
    """
    assert stop is not None, "a run that goes on"
    if not stop.step:
        record(directory, stop)
        return start.make()
    restored = checkpointer.restore_latest(start.shapes, at_most=stop.step)
    if restored is None or restored[0] != stop.step:
        raise UserError(
            f"{stop}, but no whole checkpoint of that step is there: to go on from the newest one, leave"
            " train.stop_on_alarm and train.stop_without_gain out"
        )
    record(directory, stop)  # only now: `onereward export` takes the checkpoint that it names
    return restored[1]


def _check_there(directory: Path) -> None:
    """
    Raises:
      UserError: the run has made steps, but the directory of its checkpoints is gone: a mount, most likely.
    """
    metrics = directory / "metrics.jsonl"
    if is_bucket(buckets.native(directory)):
        return  # which has no directories
    if not (directory / "checkpoints").exists() and metrics.exists() and metrics.stat().st_size:
        raise UserError(
            f"{metrics} is of a run whose checkpoints are gone: bring {directory / 'checkpoints'} back (is it mounted?)"
            ", or remove the file to start anew"
        )


def _evaluated(evaluate: Callable[[State], Metrics], state: State, last: bool) -> Metrics:
    """An evaluation's numbers; none, with a warning, where it can't write its files, unless it is the last."""
    try:
        return evaluate(state)
    except (OSError, SaveError) as error:
        if last or hosts.count() > 1:  # the others have measured
            if isinstance(error, SaveError):
                raise Fault(
                    f"{error}: put it right, and the same command goes on from the newest checkpoint"
                ) from error
            raise
        warnings.warn(f"an evaluation is left out: {error}", RuntimeWarning, stacklevel=3)
        return {}
