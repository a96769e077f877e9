"""The input of a run: an endless, deterministic mixture of tasks, as a grain dataset.

Sample number i of a run (its global index) does not depend on the batch size, the number of processes or the number
of threads: its task is drawn from (seed, i), and everything else is made from (i, task). If conditions repeat, the
condition's number c replaces i in both.
"""

import array
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from onereward_jax.data.source import ENDLESS
from onereward_jax.errors import UserError

Example = Mapping[str, Any]


def mixture(
    tasks: Mapping[str, float],
    make_example: Callable[[int, str], Example],
    seed: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
    num_threads: int = 2,
    prefetch: int | None = None,
    num_conditions: int = 0,
    repeats: int = 1,
    together: bool = False,
) -> grain.IterDataset:
    """Batches of examples whose tasks are drawn with probabilities p_k.

    Of several processes, each makes the rows of the global batch that its devices hold: the batch is the same however
    many there are. `iter(...)` gives an iterator with `get_state()` and `set_state()`, whose state is the same for all
    rows.

    Args:
      tasks: {task: weight}; the weights need not sum to 1.
      make_example: (global index, task) -> {name: array, number or string}, the same names and shapes for every
        sample; must depend on its arguments only. Called from `num_threads` threads.
      seed: of the draw of tasks.
      batch_size: global batch size B.
      rows: R of the B rows of a batch, which alone are made; None: all.
      num_threads: threads that make examples; 0 makes them in the caller's.
      prefetch: batches made ahead, by default one per thread.
      num_conditions: examples there are, which come in epochs, each in another order; 0: every sample is new.
      repeats: batches in a row that hold the same examples.
      together: whether the examples of a batch stay together in every epoch, since a batch has one size of images;
        `num_conditions` is then a multiple of `batch_size`.

    Returns:
      Dataset of {name: array with a leading axis of R}, with `index`: int64 (R,), the global sample indices,
      from which random keys are folded. If examples come again, also `condition`: int64 (R,), what `make_example` took
      for an index; if batches are repeated, `age`: int32 (R,), how many of them went before.

    Raises:
      UserError: weights that are negative, not finite or all zero; a batch without a sample.
    """
    names, cumulative = _cumulative(tasks)
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} has no sample: make it 1 or more")
    made = range(batch_size) if rows is None else rows

    def example_of(local_index: int) -> dict[str, Any]:
        batch, place = divmod(int(local_index), len(made))
        row = made[place]
        numbers: dict[str, Any] = {"index": np.int64(batch * batch_size + row)}
        drawn, age = divmod(batch, repeats)
        condition = drawn * batch_size + row
        if num_conditions:
            condition = _condition(seed, condition, num_conditions, batch_size if together else 1)
        if num_conditions or repeats > 1:
            numbers["condition"] = np.int64(condition)
        if repeats > 1:
            numbers["age"] = np.int32(age)
        return {**make_example(condition, names[draw_task(cumulative, seed, condition)]), **numbers}

    threads = max(num_threads, 0)
    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch or threads, threads))
    return (
        grain.MapDataset.range(ENDLESS)
        .map(example_of)
        .batch(len(made), drop_remainder=True, batch_fn=_stack)
        .to_iter_dataset(read_options)
    )


def draw_task(cumulative: np.ndarray, seed: int, index: int) -> int:
    """Draw the position of sample `index`'s task: one uniform draw from (seed, index) against cumulative weights."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index])).random()
    return int(np.searchsorted(cumulative, uniform, side="right"))


class SamplesOf:
    """The global indices of the samples of one task, in their order: `SamplesOf(...)[i]` is the i-th, for any i >= 0.

    They are drawn as far as they are asked for, from any thread.
    """

    def __init__(self, tasks: Mapping[str, float], task: str, seed: int):
        """
        Args:
          tasks, seed: see `mixture`.

        Raises:
          UserError: the task's weight is zero; see also `mixture`.
        """
        names, self._cumulative = _cumulative(tasks)
        if task not in names:
            raise UserError(f"the weight of task {task} is 0: give it a positive one")
        self._place, self._seed, self._next = names.index(task), seed, 0
        self._found = array.array("q")
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> int:
        with self._lock:
            while len(self._found) <= number:
                if draw_task(self._cumulative, self._seed, self._next) == self._place:
                    self._found.append(self._next)
                self._next += 1
        return self._found[number]


def _condition(seed: int, number: int, count: int, block: int) -> int:
    """Return the condition drawn as number `number`; each occurs once per epoch, in the order of shuffled blocks."""
    epoch, place = divmod(number, count)
    place, inside = divmod(place, block)
    return int(_order(seed, epoch, count // block)[place]) * block + inside


@functools.lru_cache(maxsize=2)  # at most two epochs are in use: threads finish one while others start the next
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    # Not the counter word that draws tasks.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch])).permutation(count)


def _cumulative(tasks: Mapping[str, float]) -> tuple[tuple[str, ...], np.ndarray]:
    weights = {task: float(weight) for task, weight in tasks.items()}
    for task, weight in weights.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of task {task} is {weight}: give 0 or a positive number")
    drawn = {task: weight for task, weight in weights.items() if weight > 0}
    if not drawn:
        raise UserError("all task weights are zero: give at least one task a positive weight")
    cumulative = np.cumsum(np.fromiter(drawn.values(), np.float64))
    cumulative /= cumulative[-1]
    return tuple(drawn), cumulative


def _stack(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = examples[0].keys()
    for example in examples:
        if example.keys() != names:
            raise UserError(f"examples of one batch differ in their fields: {sorted(example.keys() ^ names)}")
    return {name: np.stack([np.asarray(example[name]) for example in examples]) for name in names}
