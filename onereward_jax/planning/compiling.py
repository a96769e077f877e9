"""What the TPU compiler says of a program: memory of a device, collectives."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from onereward_jax.atomic_files import make_directory, write_json
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.planning.hlo import Collective, collectives_of

# Spends the least effort on the last part of compilation, code for one chip, which takes most of the time.
LEAST_EFFORT: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
# Allocations in device memory, in the compiler's own report; the temporaries that JAX reports are up to half as large
# again. "thread-local" allocations belong to computations on the hosts.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(?!.*(?:, thread-local|, color [1-9]))", re.MULTILINE)
_REPORT = "*buffer-assignment.txt"
# Bytes of every device that the runtime reserves: libtpu 0.0.42 reports 260 to 263 MiB.
_RESERVED = 263 * 2**20
# The two sentences in which the TPU compiler says that a program is too large.
_TOO_LARGE = (
    re.compile(r"Used (?P<needed>[\d.]+)(?P<unit>[KMGT]) of [\d.]+[KMGT] hbm"),
    re.compile(r"required for [^(]*\((?P<needed>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM"),
)


class CompilerError(UserError):
    """The TPU compiler failed for another reason than device memory."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, bytes of one device.

    Attributes:
      arguments: of its arguments.
      peak: of all that it lays out, arguments included; None if the compiler rejected it as too large. `needed` is then
        the least size that it reported.
      collectives: None if the compiler rejected it.
      seconds: that compiling took.
    """

    arguments: int = 0
    peak: int | None = None
    needed: float | None = None
    collectives: list[Collective] | None = None
    seconds: float = 0.0

    @property
    def temporaries(self) -> int | None:
        """What it takes beside its arguments, results included that don't lie in their place."""
        return None if self.peak is None else self.peak - self.arguments


def compile_program(
    traced: Any,
    exact: bool = False,
    *,
    trips: Mapping[str, float] | None = None,
    shares: Mapping[str, Sequence[float]] | None = None,
    keep: Path | None = None,
    topology: str = "",
    compiles: bool = True,
) -> Compiled | None:
    """Compile a traced program for the devices of its arguments' shardings.

    Args:
      exact: see `plan.plan`.
      trips, shares: see `planning.hlo.collectives_of`.
      keep: directory in which answers are kept: a program that was compiled before, for this topology by this compiler,
        is not compiled again.
      compiles: whether to compile what is not kept.

    Returns:
      None if it is not kept and was not to be compiled.

    Raises:
      CompilerError: the compiler failed for another reason than memory.
    """
    lowered = traced.lower()
    options = {} if exact else LEAST_EFFORT
    if keep is None:
        return _compiled(lowered, options, trips, shares)
    about = [topology, importlib.metadata.version("libtpu"), options, dict(trips or {}), dict(shares or {})]
    digest = hashlib.sha256(json.dumps(about).encode() + lowered.as_text().encode()).hexdigest()
    file = keep / f"{digest}.json"
    if file.is_file():
        known = read_json(file)
        collectives = known["collectives"]
        if collectives is not None:
            known["collectives"] = [Collective(**one) for one in collectives]
        return Compiled(**known)
    if not compiles:
        return None
    found = _compiled(lowered, options, trips, shares)
    make_directory(keep)
    unknown = found.needed is not None and math.isinf(found.needed)  # which JSON has no word for
    write_json(file, dataclasses.asdict(found) | ({"needed": None} if unknown else {}))
    return found


def _compiled(lowered: Any, options: Mapping[str, Any], trips: Any, shares: Any) -> Compiled:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        try:
            compiled = lowered.compile({**options, "xla_dump_to": directory})
        except jax.errors.JaxRuntimeError as error:
            if "memory space vmem" in str(error):
                raise CompilerError(
                    "a kernel of this program needs more vector memory than a chip has: set smaller"
                    " --config.model.attention_blocks"
                ) from error
            needed = needed_bytes(str(error))
            if needed is None:
                first_line = str(error).partition("\n")[0]
                raise CompilerError(
                    f"the TPU compiler can't compile this program ({first_line}): try another --mesh"
                    + ("" if options else ", or leave --exact out")
                ) from error
            return Compiled(needed=needed, seconds=time.perf_counter() - started)
        memory = compiled.memory_analysis()
        reports = [file.read_text(encoding="utf-8") for file in Path(directory).glob(_REPORT)]
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # a donated argument's memory is reused
    laid_out = max(
        (sum(map(int, _ALLOCATION.findall(report))) for report in reports),
        default=memory.argument_size_in_bytes + memory.temp_size_in_bytes + results,
    )
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        peak=laid_out + memory.generated_code_size_in_bytes + _RESERVED,
        collectives=collectives_of(compiled.as_text(), trips, shares),
        seconds=time.perf_counter() - started,
    )


def needed_bytes(message: str) -> float | None:
    """Read from a compiler error how many bytes a device would need; None if it is about something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = next((found for pattern in _TOO_LARGE if (found := pattern.search(message))), None)
    if found is None:
        return math.inf
    return float(found["needed"]) * 1024 ** ("KMGT".index(found["unit"]) + 1)
