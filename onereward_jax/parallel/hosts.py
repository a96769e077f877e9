"""What the processes of one command do together, as on the hosts of a TPU slice.

Every process runs the same program on the same input. A computation spans all devices, and each process holds its part;
what runs on the host (reading, encoding text, deciding) every process does for itself, with the same result; the
primary process writes the files. Nothing but a checkpoint has to agree on failures: see `heartbeat`.

With one process, the usual case, every function here does the plain thing. Imports no JAX before it is needed: a wrong
command line is answered at once.
"""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import json
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from onereward_jax import buckets
from onereward_jax.atomic_files import atomic_directory
from onereward_jax.errors import UserError

T = TypeVar("T")

_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds
_FETCHED_AT_ONCE = 1 << 28  # bytes


@dataclasses.dataclass
class Team:
    """The processes, as one of them sees them.

    Attributes:
      client: of JAX's coordination service, which the primary process holds: keys, values and barriers.
      timeout: seconds without a heartbeat after which a process is taken for dead.
      over: set when this process needs no more watching.
      spoke: whether this is the process that ended the run: it has to say why before it leaves.
      calls: numbers of `on_primary`.
    """

    client: Any
    index: int
    count: int
    timeout: float
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    spoke: bool = False
    calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)


_team: Team | None = None


def team() -> Team | None:
    """The processes of this command; None where there is one."""
    return _team


def join(team: Team) -> None:
    """Makes this process one of several (`cluster.initialise`)."""
    global _team
    _team = team


def count() -> int:
    """How many processes run this command."""
    return 1 if _team is None else _team.count


def index() -> int:
    """The number of this process, from 0."""
    return 0 if _team is None else _team.index


def is_primary() -> bool:
    """Whether this process is the one that writes, and speaks where all would say the same."""
    return _team is None or _team.index == 0


def on_primary(function: Callable[[], T]) -> T:
    """Calls a function in the primary process alone and returns its result, a JSON value, in all.

    All processes call this in the same order, from their main threads.
    """
    if _team is None:
        return function()
    key = f"onereward/on_primary/{next(_team.calls)}"
    if _team.index == 0:
        _team.client.key_value_set(key, json.dumps(function()))
    return json.loads(_team.client.blocking_key_value_get(key, _FOREVER))


def gather(value: T, what: str = "") -> list[T]:
    """The JSON values that the processes give, in the order of the processes, in all of them.

    All processes call this in the same order, from their main threads; elsewhere `what` is used once.
    """
    if _team is None:
        return [value]
    key = f"onereward/gather/{what or next(_team.calls)}"
    _team.client.key_value_set(f"{key}/{_team.index}", json.dumps(value))
    values = [
        json.loads(_team.client.blocking_key_value_get(f"{key}/{index}", _FOREVER)) for index in range(_team.count)
    ]
    _team.client.wait_at_barrier(key, _FOREVER)
    if is_primary():
        _team.client.key_value_delete(key)  # a run has as many as it has checkpoints
    return values


def check_same(digest: Callable[[], str], what: str) -> None:
    """Checks that all processes have read the same.

    Args:
      digest: makes a digest of what was read.
      what: its name, in the plural.

    Raises:
      UserError: this process has another value than the primary.
    """
    if _team is not None and on_primary(digest) != digest():
        raise UserError(f"process {_team.index} has read other {what} than process 0: give all the same files")


def wait_for_all(what: str) -> None:
    """Returns when every process has come here; `what` is used once."""
    if _team is not None:
        _team.client.wait_at_barrier(f"onereward/{what}", _FOREVER)


def share(directory: Path) -> None:
    """Waits until the primary has come here, and has what it wrote in a directory in the other processes, too."""
    on_primary(lambda: buckets.push(directory))
    if not is_primary():
        buckets.pull(directory)


def own_directory(directory: Path) -> Path:
    """A directory for files that every process makes alike: `directory` itself for the primary process, a temporary one
    for the others."""
    if is_primary():
        return directory
    temporary = tempfile.mkdtemp(prefix="onereward-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def check_shared(file: Path) -> None:
    """Checks that all processes share a directory: the primary writes a file that the others must find.

    Raises:
      UserError: they do not.
    """
    if _team is None:
        return

    def write() -> str:
        token = secrets.token_hex(16)
        file.write_text(token)
        return token

    token, deadline = on_primary(write), time.monotonic() + 2 * _team.timeout
    while not (file.exists() and file.read_text() == token):
        if time.monotonic() > deadline:
            raise UserError(
                f"process {_team.index} does not see the {file.parent} of process 0: give all processes one directory,"
                " of a file system or bucket that they share"
            )
        time.sleep(1.0)


# ----------------------------------------------------------------------------------------- arrays of several processes


def place(tree: Any, shardings: Any) -> Any:
    """`jax.device_put` of arrays that every process has alike: each keeps its devices' parts, and nothing is sent.

    Args:
      shardings: one for all leaves, or a tree of them.
    """
    import jax
    import numpy as np

    if _team is None:
        return jax.device_put(tree, shardings)

    def placed(x: Any, sharding: Any) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: placed(x, shardings), tree)
    return jax.tree.map(placed, tree, shardings)


def rows_of(sharding: Any, size: int) -> list[int]:
    """The rows of a batch of `size` that the devices of this process hold, ascending."""
    parts = sharding.addressable_devices_indices_map((size,)).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(size))})


def place_rows(batch: Any, sharding: Any, size: int) -> Any:
    """A batch of `size` rows, of which each process gives those of `rows_of`."""
    import jax
    import numpy as np

    if _team is None:
        return jax.device_put(batch, sharding)
    places = {row: place for place, row in enumerate(rows_of(sharding, size))}

    def placed(x: Any) -> Any:
        values = np.asarray(x)

        def part(index: Any) -> Any:
            return values[[places[row] for row in range(*index[0].indices(size))]]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, part)

    return jax.tree.map(placed, batch)


def launch_together(jitted: Any) -> Callable:
    """Wraps a jitted function so that its first launch for some shapes waits until every process has compiled it.

    Compiling takes one process longer than another, which may have it in a cache, and on CPUs JAX waits 30 s at most.
    """
    import jax

    if _team is None:
        return jitted
    compiled: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        shapes = tuple(x.shape for x in jax.tree.leaves(arguments))
        if shapes not in compiled:
            compiled[shapes] = jitted.lower(*arguments).compile()
            wait_for_all(f"program {len(compiled)} is compiled")
        return compiled[shapes](*arguments)

    return call


def fetch(tree: Any) -> Any:
    """`jax.device_get` of arrays whose parts may lie in other processes, all of which call this.

    A large array comes in slices, so that no device has to hold the whole of it.
    """
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    def fetched(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        x = jax.device_put(x, x.sharding.with_memory_kind("device"))  # from the hosts' memory, where it may lie
        whole = np.empty(x.shape, x.dtype)
        rows = min(len(x), max(1, _FETCHED_AT_ONCE * len(x) // x.nbytes))
        for start in range(0, len(x), rows):
            start = min(start, len(x) - rows)  # one program for all slices
            part = jax.lax.dynamic_slice_in_dim(x, start, rows)
            whole[start : start + rows] = process_allgather(part, tiled=True)
        return whole

    return jax.tree.map(fetched, tree)


def fetch_to_primary(x: Any, index: int | None = None, dtype: Any = None) -> Any:
    """An array in the primary's host memory; None in the other processes, all of which call this.

    The part is taken and cast where the array lies, so that neither a device nor a host holds more of it than that.

    Args:
      x: an array of NumPy or JAX; its parts may lie in several processes.
      index: the part along the leading axis; None is the whole.
      dtype: of the result; None is the array's own.
    """
    import jax
    import numpy as np

    if not isinstance(x, jax.Array):
        part = np.asarray(x) if index is None else np.asarray(x)[index]
        return (part if dtype is None else part.astype(dtype, copy=False)) if is_primary() else None
    x = jax.device_put(x, x.sharding.with_memory_kind("device"))  # from the hosts' memory, where it may lie
    whole = isinstance(x.sharding, jax.sharding.NamedSharding) and not x.is_fully_addressable
    place = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec()) if whole else None
    part = _part(place)(x, 0 if index is None else index, index is None, np.dtype(dtype or x.dtype))
    if not is_primary():
        return None
    return np.asarray(part.addressable_data(0) if whole else part)


@functools.cache
def _part(place: Any) -> Callable:
    import jax

    def part(x: Any, index: Any, all_of_it: bool, dtype: Any) -> Any:
        return (x if all_of_it else jax.lax.dynamic_index_in_dim(x, index, keepdims=False)).astype(dtype)

    return jax.jit(part, static_argnums=(2, 3), out_shardings=place)


@contextlib.contextmanager
def primary_output(directory: Path) -> Iterator[Path | None]:
    """`atomic_files.atomic_directory` of the primary process; None in the others, which write nothing."""
    if not is_primary():
        yield None
        return
    with atomic_directory(directory) as partial:
        yield partial


def broadcast(tree: Any) -> Any:
    """Returns the primary's NumPy arrays in every process; the others pass arrays of the same shapes."""
    if _team is None:
        return tree
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(tree)
