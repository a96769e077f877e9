"""Several processes that run one command together, as on the hosts of a TPU slice: what one does for all, and how all
end as one.

Every process runs the same program on the same input. A computation spans all devices, and each process holds its part;
what is on the host (reading, encoding text, deciding) each does for itself and alike; files are written by the first.
Nothing but a checkpoint has to agree on failures: the first process that ends with an error ends all of them, with its
exit code and its sentence (`together`), and what is restarted goes on from the newest checkpoint.

With one process, which is the rule, every function here does the plain thing. Imports no JAX before it is needed: a
wrong command line is answered at once.
"""

import atexit
import dataclasses
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from onereward_jax.errors import Fault, UserError

T = TypeVar("T")

_ENDED, _PULSES, _LEFT = "onereward/ended/", "onereward/pulses/", "onereward/left/"
_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds
_PAUSE = 1.0  # seconds between two pulses
_FAREWELL = 10.0  # seconds that the first process stays for the others to see how the run ended: it keeps the record
_FETCHED_AT_ONCE = 1 << 28  # bytes
# Of Google's server of metadata: the hosts of a TPU VM's slice.
_ENDPOINTS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


# ------------------------------------------------------------------------------------------------- who is there


def several() -> str:
    """What in the environment says that this process is one of several; empty where it is alone.

    Raises:
      UserError: the environment says half of it.
      Fault: it is a TPU VM, and its server of metadata does not answer.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return f"JAX_NUM_PROCESSES is {_number('JAX_NUM_PROCESSES')}" if _number("JAX_NUM_PROCESSES") > 1 else ""
    if "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1":
        return f"SLURM_NTASKS is {os.environ['SLURM_NTASKS']}"
    hosts = _hosts_of_slice()
    return f"the TPU slice has {hosts} hosts" if hosts > 1 else ""


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is set, but {name} is {text!r}: set JAX_NUM_PROCESSES to how many processes there"
            " are and JAX_PROCESS_ID to this one's number, from 0"
        )
    return int(text)


def _hosts_of_slice() -> int:
    """Of the TPU slice that this machine belongs to and that JAX would compute on; 1 where there is none."""
    if "tpu" not in (os.environ.get("JAX_PLATFORMS") or "tpu").split(",") or not _has_tpus():
        return 1
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))
    # GKE says it in the environment, a TPU VM's server of metadata knows it.
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in os.environ:
            return slices * len(os.environ[name].split(","))
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return 1
    request = urllib.request.Request(_ENDPOINTS, headers={"Metadata-Flavor": "Google"})
    for attempt in range(3):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return slices * len(answer.read().decode().split(","))
        except OSError as error:
            absent = isinstance(getattr(error, "reason", None), socket.gaierror) or getattr(error, "code", 0) == 404
            if absent:  # no TPU VM of Google's
                return 1
            reason = error
            time.sleep(attempt)
    # One host that took itself for all of them would train beside the others, in the same directory.
    raise Fault(f"the server of metadata does not say how many hosts the TPU slice has ({reason}): start again")


def _has_tpus() -> bool:
    return find_spec("libtpu") is not None and any(
        next(Path("/dev").glob(pattern), None) for pattern in ("accel*", "vfio/[0-9]*")
    )


def initialise(patience: float = 60.0) -> None:
    """Joins the other processes, if `several`; before JAX's first computation.

    Args:
      patience: seconds without a sign of life after which a process is taken for dead.

    JAX ends this process by SIGABRT when they have not come within 300 s.

    Raises:
      Fault: the service by which they find each other can't be made.
    """
    global _team
    if _team is not None or not (reason := several()):
        return
    print(f"waiting for the other processes ({reason})", file=sys.stderr)
    import jax
    from jax._src.distributed import global_state  # where Orbax, too, finds the client

    given: dict[str, Any] = {}
    if "JAX_COORDINATOR_ADDRESS" in os.environ:  # which JAX reads by itself, and no more
        given = {"num_processes": _number("JAX_NUM_PROCESSES"), "process_id": _number("JAX_PROCESS_ID")}
        if given["process_id"] >= given["num_processes"]:
            raise UserError(
                f"JAX_PROCESS_ID is {given['process_id']} of {given['num_processes']} processes: count from 0"
            )
    try:
        jax.distributed.initialize(**given)
    except RuntimeError as error:
        what = str(error).partition("\n")[0]
        raise Fault(f"the processes did not find each other ({reason}): {what}") from error
    _team = _Team(global_state.client, jax.process_index(), jax.process_count(), patience)
    threading.Thread(target=_watch, args=(_team,), name="processes", daemon=True).start()


@dataclasses.dataclass
class _Team:
    """The processes, as one of them sees them.

    Attributes:
      client: of JAX's coordination service, which the first process holds: keys, values and barriers.
      over: set when this process needs no more watching.
      spoke: whether this is the process that ended the run: it has to say why before it leaves.
      calls: numbers of `on_first`.
    """

    client: Any
    index: int
    count: int
    patience: float
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    spoke: bool = False
    calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)


_team: _Team | None = None


def count() -> int:
    return 1 if _team is None else _team.count


def is_first() -> bool:
    """Whether this process is the one that writes, and speaks where all would say the same."""
    return _team is None or _team.index == 0


# ------------------------------------------------------------------------------------------ what is done together


def on_first(function: Callable[[], T]) -> T:
    """What a function gives in the first process, which alone calls it while the others wait; a JSON value.

    All processes call this in the same order, from their main threads.
    """
    if _team is None:
        return function()
    key = f"onereward/on_first/{next(_team.calls)}"
    if _team.index == 0:
        _team.client.key_value_set(key, json.dumps(function()))
    return json.loads(_team.client.blocking_key_value_get(key, _FOREVER))


def wait_for_all(what: str) -> None:
    """Returns when every process has come here; `what` is used once."""
    if _team is not None:
        _team.client.wait_at_barrier(f"onereward/{what}", _FOREVER)


def own(directory: Path) -> Path:
    """A directory for files that all processes make alike: that one for the first, for the others one that goes with
    them."""
    if is_first():
        return directory
    temporary = tempfile.mkdtemp(prefix="onereward-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def check_shared(file: Path) -> None:
    """Has the first process write a file, which all the others must find: its directory is one and the same.

    Raises:
      UserError: it is not.
    """
    if _team is None:
        return

    def write() -> str:
        token = secrets.token_hex(16)
        file.write_text(token)
        return token

    token, deadline = on_first(write), time.monotonic() + 2 * _team.patience
    while not (file.exists() and file.read_text() == token):
        if time.monotonic() > deadline:
            raise UserError(
                f"process {_team.index} does not see the {file.parent} of process 0: give all processes one directory,"
                " of a file system or bucket that they share"
            )
        time.sleep(_PAUSE)


# ------------------------------------------------------------------------------------- arrays of several processes


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
    """A jitted function that is launched, the first time for arguments of some shapes, when all have compiled it.

    Compiling takes one process longer than another, which may have it in a cache, and on CPUs they wait 30 s at most.
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


def broadcast(tree: Any) -> Any:
    """NumPy arrays as the first process has them; the others give such of the same shapes."""
    if _team is None:
        return tree
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(tree)


# ------------------------------------------------------------------------------------------------------- the end


def together(run: Callable[[], int]) -> int:
    """Runs a program that returns an exit code and says why before it does, in one or several processes.

    Of several, the first that ends with another code than 0 ends all, wherever they are, with that code; a program asks
    `speaks` before it says anything. One that is killed is found by its silence: exit code 75. If that was the first
    process, JAX ends the others at once by SIGABRT: it holds the service by which they know each other.
    """
    try:
        code = run()
        if not code:
            wait_for_all("end")
    except Exception as error:
        if _team is None:
            raise
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error):
            _team.over.wait(_team.patience + 5)  # most likely another process died in the middle of a computation
        if speaks(1):
            traceback.print_exc()
        code = 1
    if _team is None:
        return code
    if code:
        speaks(code)
        _leave(_team)
    _team.over.set()
    import jax

    jax.distributed.shutdown()
    return 0


def speaks(code: int) -> bool:
    """Tells all processes that the run is over with this exit code; whether this is the first to tell."""
    if _team is None or _team.spoke:
        return True
    _team.spoke = True  # before the others, and the thread that watches, know
    try:
        _team.client.key_value_set(f"{_ENDED}code", str(code))
    except Exception:  # it is there already, or the service is gone
        _team.spoke = False
    return _team.spoke


def _leave(team: _Team) -> NoReturn:
    """Ends this process as the first that failed wanted it; Python's own end would wait for the others."""
    code = Fault.CODE
    try:
        code = int(dict(team.client.key_value_dir_get(_ENDED))[f"{_ENDED}code"])
        team.client.key_value_set(f"{_LEFT}{team.index}", "", allow_overwrite=True)
        deadline = time.monotonic() + _FAREWELL
        while team.index == 0 and time.monotonic() < deadline:
            if len(team.client.key_value_dir_get(_LEFT)) == team.count:
                break
            time.sleep(_PAUSE / 10)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(team: _Team) -> None:
    """Gives signs of life; ends this process when the run is over; the first one misses those that are silent."""
    watched = range(1, team.count) if team.index == 0 else ()
    seen = {f"{_PULSES}{index}": ("", time.monotonic()) for index in watched}
    for pulse in itertools.count():
        if team.over.wait(_PAUSE):
            return
        try:
            team.client.key_value_set(f"{_PULSES}{team.index}", str(pulse), allow_overwrite=True)
            over = bool(team.client.key_value_dir_get(_ENDED))
            pulses = dict(team.client.key_value_dir_get(_PULSES)) if watched else {}
        except Exception:  # the first process is gone: JAX ends this one
            continue
        if over and not team.spoke:
            _leave(team)
        now = time.monotonic()
        for name, (last, since) in seen.items():
            if pulses.get(name, "") != last:
                seen[name] = (pulses[name], now)
            elif now - since > team.patience and not team.spoke and speaks(Fault.CODE):
                print(
                    f"onereward: process {name.removeprefix(_PULSES)} of {team.count} has given no sign of life for"
                    f" {team.patience:g} s: the same command in all of them goes on from the newest checkpoint",
                    file=sys.stderr,
                )
                _leave(team)
