"""The training loop that all trainers share: restore, step, log, evaluate, checkpoint, stop.

A run killed at any moment and started again with the same command ends with the same parameters, bit for bit, and
with a metrics.jsonl that has every step once. What makes it so:
  - state and data state of one step are saved together, and the data state is that of the last batch *consumed*,
    however far the input has read ahead;
  - the lines of metrics up to step s are on the disk before the checkpoint of s, and those after s are dropped when
    the run goes on from s.

What a run lives through (a checkpoint that can't be written, an update that is skipped) is a warning; what it does not
(too many of them, the last checkpoint, data that does not come) ends it with the newest good state saved. See
docs/running.md. Of several processes each runs this loop, on its own parts of state and batch; what one of them alone
meets ends all, see `parallel.heartbeat.run_together`.
"""

import contextlib
import copy
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from onereward_jax.atomic_files import lock
from onereward_jax.errors import Fault, Hang, Interrupted, UserError
from onereward_jax.parallel import hosts
from onereward_jax.training.checkpoint import Checkpointer, CheckpointWarning, SaveError
from onereward_jax.training.metrics import MetricsWriter

State = Any  # a pytree with an attribute `step`: int32 scalar, the number of updates done
Batch = Any
Metrics = Mapping[str, Any]

_PREFETCH = 2  # batches ready ahead of the step
_QUIET_SECONDS = 30.0  # between two lines of progress when no one watches a bar
_PROGRESS = {"loss": "learning/loss", "reward": "rewards/mean"}


def run(
    *,
    step: Callable[[State, Batch], tuple[State, Metrics]],
    state: State,
    batches: Iterator[Batch],
    num_steps: int,
    workdir: str | Path,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    checkpoint_every: int = 1000,
    keep: int = 3,
    log_every: int = 1,
    max_skipped: int = 10,
    data_timeout: float = 0.0,
    evaluate: Callable[[State], Metrics] | None = None,
    evaluate_every: int = 0,
    description: str = "train",
    progress: Mapping[str, str] = _PROGRESS,
    optional: tuple[str, ...] = ("rewards/",),
) -> State:
    """Trains up to `num_steps`, going on from the newest whole checkpoint in `workdir/checkpoints`.

    Args:
      step: jitted (state, batch) -> (new state, {name: scalar array}); may donate the state. It tells by the metric
        `learning/skipped` that it left the state as it was, the number of steps apart.
      state: the state before the first step; a restored state takes its structure, dtypes and shardings.
      batches: iterator with `get_state()` and `set_state()`, such as `iter(data.mixture.mixture(...))`.
      num_steps: value of `state.step` at which the run is done.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
      prepare: batch -> what `step` takes (encoding prompts, placing on devices); must depend on the batch only.
        Runs in a background thread, and computes on devices of this process only: programs of several processes have
        to be launched in the same order by all of them.
      checkpoint_every: steps between checkpoints; one more is saved at the end. 0: only that.
      keep: checkpoints kept.
      log_every: a line of metrics is written at the multiples of it and at the last step.
      max_skipped: updates in a row that may be skipped; one more ends the run. Each writes its line.
      data_timeout: seconds that a batch may take to come before the run ends; 0 waits for ever.
      evaluate: state -> {name: number}, joined to the line of its step.
      evaluate_every: steps between evaluations; one more at the last step. 0: never.
      description: word before the bar.
      progress: {word: metric} shown beside the bar.
      optional: prefixes of metrics for which NaN means "no sample of that kind in this batch": left out of the line.

    Returns:
      The state at `num_steps`.

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
        checkpointer = Checkpointer(directory.resolve() / "checkpoints", keep)

        # ------------------------------------------------------------------------------------------ going on from
        restored = checkpointer.restore_latest(_abstract(state))
        if restored is not None:
            _, saved_state, data_state = restored
            state = jax.tree.map(_placed_like, state, saved_state)
            batches.set_state(data_state)  # type: ignore[attr-defined]
        number = int(state.step)
        if primary and restored is not None:
            print(f"{description}: going on from step {number} of {num_steps}", file=sys.stderr)
        if number > num_steps:
            raise UserError(
                f"{directory} has gone on to step {number}, beyond num_steps {num_steps}: raise num_steps, or choose"
                " another --workdir"
            )
        if number == num_steps:
            return state

        # ------------------------------------------------------------------------------------------------ the loop
        def due(every: int) -> bool:
            return number == num_steps or (every > 0 and number % every == 0)

        stopping = stack.enter_context(_StopSignals())
        writer = stack.enter_context(MetricsWriter(directory, number)) if primary else None
        saving = stack.enter_context(_Saving(checkpointer, writer, number))
        bar = stack.enter_context(_Progress(description, number, num_steps, progress, shown=primary))
        log = _Log(writer, bar, optional, number, max_skipped)
        source = stack.enter_context(_Source(batches, prepare, data_timeout))
        data_state = None
        while number < num_steps:
            try:
                batch, data_state = source.next()
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
            saving.look()
            stop_signal = stopping.at(number)
            if evaluate is not None and evaluate_every and due(evaluate_every):
                log.flush(hold=True)
                log.join(_evaluated(evaluate, state, last=number == num_steps))
            if due(checkpoint_every) or stop_signal or log.lost:
                log.flush()
                saving.wait()
                last = number == num_steps or bool(stop_signal) or log.lost
                # A state that only skipped since the newest checkpoint must not drive the good ones out.
                # A run that is lost is not done, however far it came.
                whole = number == num_steps and not log.lost
                if whole or stop_signal or (log.good > saving.newest and number < num_steps):
                    saving.save(number, state, data_state, last)
                log.restart_clock()
            if log.lost:
                saving.finish()
                raise UserError(
                    f"the training has diverged: {log.skipped} updates in a row were skipped (train.max_skipped is"
                    f" {max_skipped}), the last since {log.reason}; the parameters before them are saved: lower the"
                    " learning rate and start in another --workdir, or let the same command skip more"
                )
            if stop_signal:  # after the last step too: what follows the training is for the next start
                saving.finish()
                raise Interrupted(stop_signal, number, str(workdir))
        saving.finish()
    return state


def _check_there(directory: Path) -> None:
    """
    Raises:
      UserError: the run has made steps, but the directory of its checkpoints is gone: a mount, most likely.
    """
    metrics = directory / "metrics.jsonl"
    if not (directory / "checkpoints").exists() and metrics.exists() and metrics.stat().st_size:
        raise UserError(
            f"{metrics} is of a run whose checkpoints are gone: bring {directory / 'checkpoints'} back (is it mounted?)"
            ", or remove the file to start anew"
        )


def _evaluated(evaluate: Callable[[State], Metrics], state: State, last: bool) -> Metrics:
    """An evaluation's numbers; none, with a warning, where it can't write its files, unless it is the last."""
    try:
        return evaluate(state)
    except OSError as error:
        if last or hosts.count() > 1:  # the others have measured
            raise
        warnings.warn(f"an evaluation is left out: {error}", RuntimeWarning, stacklevel=3)
        return {}


# -------------------------------------------------------------------------------------------------- the checkpoints


class _Saving:
    """The checkpoints of a run. One that can't be written is a warning; the next is tried."""

    def __init__(self, checkpointer: Checkpointer, writer: MetricsWriter | None, step: int):
        self._checkpointer, self._writer = checkpointer, writer
        self.newest = step  # whose state is saved; 0 needs no checkpoint
        self._running: int | None = None
        self._failure: str | None = None

    def __enter__(self) -> "_Saving":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, step: int, state: State, data_state: Any, last: bool) -> None:
        """Starts to save. With `last`, it is `finish` that says that it failed."""
        self.wait()
        try:
            if self._writer is not None:
                self._writer.sync()
            self._checkpointer.save(step, state, data_state)
        except (SaveError, OSError) as error:
            self._fail(step, error, last)
        else:
            self._running = step

    def look(self) -> None:
        """Tells, without waiting, of a save that has failed meanwhile."""
        if self._running is not None and not self._checkpointer.saving:
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is running."""
        self._wait(last=False)

    def finish(self) -> None:
        """Waits for the save that is running.

        Raises:
          Fault: the newest state could not be saved.
        """
        self._wait(last=True)
        if self._failure is not None:
            before = f"the newest checkpoint is of step {self.newest}" if self.newest else "there is no checkpoint"
            raise Fault(f"{self._failure}: {before}; put it right, and the same command goes on from there")

    def _wait(self, last: bool) -> None:
        step, self._running = self._running, None
        try:
            self._checkpointer.wait()
        except SaveError as error:
            self._fail(step, error, last)
        else:
            if step is not None:
                self.newest, self._failure = step, None

    def _fail(self, step: int | None, error: Exception, last: bool) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        self._failure = f"the state of step {step} could not be saved in {self._checkpointer.directory} ({reason})"
        if hosts.count() > 1:  # the others would wait for this one
            raise Fault(f"{self._failure}: put it right, and the same command goes on from the newest checkpoint")
        if not last:
            warnings.warn(
                f"{self._failure}: the training goes on, the next checkpoint is tried", CheckpointWarning, stacklevel=4
            )


# ------------------------------------------------------------------------------------------------------- the state


def _abstract(state: State) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x, state
    )


def _placed_like(initial: Any, restored: Any) -> Any:
    """The restored leaf, as free to move as the initial one: a jit over many devices refuses an array that is
    committed to one, and Orbax commits all."""
    if not isinstance(initial, jax.Array) or initial.committed:
        return restored
    if jax.dtypes.issubdtype(restored.dtype, jax.dtypes.prng_key):
        words = jnp.array(np.asarray(jax.random.key_data(restored)))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(restored))
    return jnp.array(np.asarray(restored))


# -------------------------------------------------------------------------------------------------------- the data


class _Source:
    """Prepared batches with the data state after each, read ahead in a background thread.

    Args:
      timeout: seconds that a batch may take; 0: any time.
    """

    def __init__(self, batches: Any, prepare: Callable[[Batch], Batch], timeout: float):
        self._batches, self._prepare, self._timeout = batches, prepare, timeout
        self._ready: queue.Queue = queue.Queue(maxsize=_PREFETCH)
        self._closing = threading.Event()
        self._hangs = False
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)

    def __enter__(self) -> "_Source":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if not self._hangs:
            self._thread.join()

    def next(self) -> tuple[Batch, Any]:
        """(prepared batch, state of the iterator right after it was drawn).

        Raises:
          queue.Empty: none came in time.
        """
        try:
            item = self._ready.get(timeout=self._timeout or None)
        except queue.Empty:
            self._hangs = True
            raise
        if isinstance(item, StopIteration):
            raise UserError("the data ended before the last step: lower num_steps, or repeat the data")
        if isinstance(item, BaseException):
            raise item
        return item

    def _read(self) -> Any:
        try:
            batch = next(self._batches)
            # A copy: an iterator may go on writing to the state that it gave.
            data_state = copy.deepcopy(self._batches.get_state())
            return self._prepare(batch), data_state
        except BaseException as error:
            return error

    def _fill(self) -> None:
        while not self._closing.is_set():
            item = self._read()
            while not self._closing.is_set():
                with contextlib.suppress(queue.Full):
                    self._ready.put(item, timeout=0.1)
                    break
            if isinstance(item, BaseException):
                return


# --------------------------------------------------------------------------------------------------- stop signals


class _StopSignals:
    """SIGTERM and SIGINT ask the loop to stop after the running step; a second one stops at once.

    Of several processes one may get it alone. JAX then finds a step that none has reached, after which all stop; it
    looks out for SIGTERM, as which the first SIGINT counts.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if hosts.count() == 1 else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def at(self, step: int) -> int:
        """The signal to stop for after this step, or 0."""
        if hosts.count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received

    def _receive(self, number: int, _: Any) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = number
        if hosts.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        print(f"\n{signal.Signals(number).name}: finishing this step and saving", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ what a person sees


class _Log:
    """Holds the metrics of the newest step back until the next one is launched; writes and shows them then."""

    def __init__(
        self,
        writer: MetricsWriter | None,
        bar: "_Progress",
        optional: tuple[str, ...],
        step: int,
        max_skipped: int,
    ):
        self._writer, self._bar, self._optional, self._max_skipped = writer, bar, optional, max_skipped
        self.good = step  # the newest step that is known not to have been skipped
        self.skipped = 0  # since then
        self.lost = False  # whether ever too many in a row were skipped; the steps launched since don't count
        self.reason = ""  # why the newest of those was
        self._number: int | None = None
        self._metrics: Metrics = {}
        self._written = False
        self._steps = 0  # since the line before
        self._seconds = 0.0
        self._clock = time.perf_counter()

    def add(self, number: int, metrics: Metrics, written: bool) -> None:
        self._number, self._metrics, self._written = number, metrics, written

    def join(self, more: Metrics) -> None:
        """Adds an evaluation's numbers to the line that is held back, which is then written."""
        self._metrics = {**self._metrics, **more}
        self._written = True
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what was done since the last step (an evaluation, a save) out of the step time."""
        self._clock = time.perf_counter()

    def flush(self, hold: bool = False) -> None:
        """Waits for the step whose metrics are held, and writes its line (or, with `hold`, keeps it for `join`)."""
        if self._number is None:
            return
        if "perf/step_time_seconds" not in self._metrics:
            values = {name: np.asarray(value) for name, value in jax.device_get(dict(self._metrics)).items()}
            now = time.perf_counter()
            self._steps, self._seconds, self._clock = self._steps + 1, self._seconds + now - self._clock, now
            self._metrics = {**values, "perf/step_time_seconds": round(self._seconds / self._steps, 6)}
            self._judge(self._number, values)
        if hold:
            return
        shown = {name: value for name, value in self._metrics.items() if not self._is_absent(name, value)}
        self._bar.update(self._number, shown)
        if self._written:
            if self._writer is not None:
                self._writer.write(self._number, shown)
            self._steps, self._seconds = 0, 0.0
        self._number = None

    def _judge(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Counts a skipped update; ends a training whose state was not kept from a loss or gradient that is none."""
        watched = [name for name in ("learning/loss", "learning/grad_norm") if name in values]
        wrong = next((f"{name} is {values[name]}" for name in watched if not np.isfinite(values[name])), "")
        if values.get("learning/skipped", 0):
            self._written = True
            if not self.lost:
                self.skipped, self.reason = self.skipped + 1, f"{wrong} at step {number}"
                self.lost = self.skipped > self._max_skipped
            warnings.warn(f"{wrong} at step {number}: the update is skipped", RuntimeWarning, stacklevel=4)
        elif wrong:
            raise UserError(
                f"the training has diverged: {wrong} at step {number}. Lower the learning rate and start in another"
                " --workdir; the checkpoints before this step are kept"
            )
        else:
            self.good = number
            self.skipped = self.skipped if self.lost else 0

    def _is_absent(self, name: str, value: Any) -> bool:
        if self.skipped and not np.all(np.isfinite(value)):
            return True  # what a skipped update had instead of numbers
        return name.startswith(self._optional) and bool(np.isnan(value))


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, description: str, start: int, end: int, words: Mapping[str, str], shown: bool):
        self._words, self._shown = words, shown
        self._description, self._start, self._end = description, start, end
        self._began = self._last = time.perf_counter()
        self._first_seconds = 0.0
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=end, initial=start, desc=description, unit="step", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int, metrics: Metrics) -> None:
        shown = {word: f"{float(metrics[name]):.4g}" for word, name in self._words.items() if name in metrics}
        seconds = float(metrics["perf/step_time_seconds"])
        if self._bar is not None:
            self._bar.set_postfix({**shown, "step": f"{seconds:.3g}s"}, refresh=False)
            self._bar.update(number - self._bar.n)
            return
        now = time.perf_counter()
        done = number - self._start
        if done == 1:
            self._first_seconds = now - self._began  # compilation, mostly: no measure of the time left
        if not self._shown or (done > 1 and number < self._end and now - self._last < _QUIET_SECONDS):
            return
        self._last = now
        left = ""
        if done > 1:
            rate = (now - self._began - self._first_seconds) / (done - 1)
            left = f" · {tqdm.format_interval(int(rate * (self._end - number)))} left"
        numbers = "".join(f" · {word} {value}" for word, value in shown.items())
        print(
            f"{self._description}: step {number}/{self._end}{numbers} · {seconds:.3g} s a step{left}", file=sys.stderr
        )
