"""Where a command runs: on which machine, and in which processes, as on the hosts of a TPU slice. Both are found in the
environment; the processes are joined.

Imports no JAX before it is needed: a wrong command line is answered at once.
"""

import dataclasses
import os
import socket
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onereward_jax.errors import Fault, UserError
from onereward_jax.parallel import heartbeat, hosts

# Google's metadata server lists here the hosts of a TPU VM's slice.
_ENDPOINTS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What this process runs on.

    Attributes:
      name: the service that lends the machine; "this machine" where the environment names none.
      memory: bytes of host memory that the process may take: the machine's, or its container's limit.
      chips: TPU chips that the environment names; 0 where it names none.
    """

    name: str
    memory: int
    chips: int


# The first whose variable is there: a notebook of Kaggle or Colab is also a container with a TPU.
_SERVICES = (
    ("KAGGLE_KERNEL_RUN_TYPE", "Kaggle"),
    ("COLAB_RELEASE_TAG", "Colab"),
    ("COLAB_TPU_1VM", "Colab"),
    ("KUBERNETES_SERVICE_HOST", "Kubernetes"),
    ("SLURM_JOB_ID", "Slurm"),
)


def machine(root: Path = Path("/")) -> Machine:
    """The machine, by the environment's variables and the kernel's files under `root`. Asks no server."""
    name = next((name for variable, name in _SERVICES if os.environ.get(variable)), "this machine")
    # As v5litepod-8, v5e-1 or v6e-16. Of the older ones the number counts cores, two a chip.
    kind, _, number = os.environ.get("TPU_ACCELERATOR_TYPE", "").rpartition("-")
    chips = int(number) if number.isdecimal() else 0
    if kind in ("v2", "v3", "v4", "v5p", "tpu7x"):
        chips //= 2
    return Machine(name, _host_memory(root), chips)


def _host_memory(root: Path) -> int:
    fields = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    limits = [int(field[1]) * 1024 for field in fields if field[0] == "MemTotal:"]
    for file in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of cgroups 2 and 1
        try:
            limits.append(int((root / file).read_text()))
        except (OSError, ValueError):  # not this version, or "max"
            continue
    return min(limits)


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


def initialise(timeout: float = 60.0) -> None:
    """Joins the other processes, if `several`; before JAX's first computation.

    Args:
      timeout: seconds without a heartbeat after which a process is taken for dead.

    JAX ends this process by SIGABRT when they have not come within 300 s.

    Raises:
      Fault: the service by which they find each other can't be made.
    """
    if hosts.team() is not None or not (reason := several()):
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
    team = hosts.Team(global_state.client, jax.process_index(), jax.process_count(), timeout)
    hosts.join(team)
    threading.Thread(target=heartbeat.watch, args=(team,), name="heartbeat", daemon=True).start()
