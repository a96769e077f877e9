"""Says whether an update of `onereward train` fits a TPU slice, and what it takes; needs no TPU.

Compiles the update for the slice (the `tpu` extra brings the compiler) and prints for a device: each part of the state,
temporaries, the peak; and for the update: arithmetic, collectives, the least time by each limit of the chip.
Exit code 0: it fits; 3: it does not; 2: a wrong input.
"""

import argparse
from pathlib import Path

from onereward_jax.commands import config_arguments
from onereward_jax.configuration import override
from onereward_jax.errors import UserError
from onereward_jax.validation import validate

DOES_NOT_FIT = 3
_NEEDS = ("algorithm", "data", "mesh", "model", "optimizer", "rl", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, workdir=False, needs=_NEEDS)
    parser.add_argument("--topology", metavar="NAME", required=True, help="generation and sides, such as v5p:2x2x4")
    parser.add_argument("--mesh", metavar="AXES", help="instead of the configuration's: data=1,fsdp=8,tensor=2")
    parser.add_argument("--batch", type=int, metavar="N", help="instead of the configuration's train.batch_size")
    parser.add_argument("--json", metavar="FILE", help="a file for all figures")


def run(args: argparse.Namespace) -> int:
    from onereward_jax import topology

    config = args.config
    for axis, size in mesh_axes(args.mesh).items():
        override(config, f"mesh.{axis}", size, source="a mesh")
    if args.batch is not None:
        override(config, "train.batch_size", args.batch)
    validate(config, _NEEDS)

    topology.prepare_environment()
    from onereward_jax.files import check_writable, write_json
    from onereward_jax.rl.plan import plan, report

    if args.json:
        check_writable(Path(args.json).parent)
    found = plan(config, topology.open_topology(args.topology))
    print(report(args.config_file, found, config))
    if args.json:
        write_json(Path(args.json), {"config": args.config_file, **found.to_json()})
    return 0 if found.fits else DOES_NOT_FIT


def mesh_axes(text: str | None) -> dict[str, str]:
    """ "data=1,fsdp=8" -> {"data": "1", "fsdp": "8", "tensor": "1"}: an axis that is not named is 1."""
    if text is None:
        return {}
    axes = {"data": "1", "fsdp": "1", "tensor": "1"}
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if not equals:
            raise UserError(f"--mesh takes sizes of axes like data=1,fsdp=8,tensor=2, not {text!r}")
        axes[axis] = size
    return axes
