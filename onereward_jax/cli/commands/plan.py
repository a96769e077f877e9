"""Plans an update of `onereward train` on a TPU slice: whether it fits, and its cost; needs no TPU.

Compiles the update for the slice (the `tpu` extra brings the compiler) and prints, per device, each part of the state,
temporaries and peak memory; and for the update arithmetic, collectives and the least time by each limit of the chip.
Exit code 0: it fits; 3: it does not; 2: wrong input.

--search tries attention block sizes, then every mesh, remat policy and two batch sizes, and prints the cheapest that
fits. That takes many compilations; with --json a stopped search resumes. Both compile with the least effort; --exact
compiles as a run does, which takes longer and may show that an update needs somewhat more.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereward_jax.cli.arguments import like, number, path, text
from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import Finetuning, JudgeTraining, RewardFeedback, SceneData, Training
from onereward_jax.errors import UserError

if TYPE_CHECKING:
    from onereward_jax.planning.topology import Topology

DOES_NOT_FIT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback, JudgeTraining, Finetuning, workdir=False)
    parser.add_argument(
        "--topology", type=text, metavar="NAME", required=True, help="generation and sides, such as v5p:2x2x4"
    )
    parser.add_argument(
        "--mesh", type=text, metavar="AXES", help="override the configuration's mesh: data=1,fsdp=8,tensor=2"
    )
    parser.add_argument("--batch", type=like(Training, "batch_size"), metavar="N", help="override train.batch_size")
    parser.add_argument("--json", type=path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--update", action="store_true", help="plan the update alone, not the whole run")
    parser.add_argument(
        "--keep", type=path, metavar="DIR", help="keep there what the compiler said, and compile no program twice"
    )
    parser.add_argument(
        "--disk_gbps",
        type=number(float, above=0, at_most=10_000),
        metavar="GB",
        default=1.0,
        help="gigabytes a second that a host reads from where the files are, and writes (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=like(SceneData, "num_conditions"),
        metavar="N",
        default=10_000,
        help="prompts that are encoded first (default: %(default)s)",
    )
    parser.add_argument("--exact", action="store_true", help="compile with full effort, as a run does: slow")
    parser.add_argument(
        "--search",
        action="store_true",
        help="try attention blocks, meshes, remat policies and batch sizes; --mesh and --batch fix theirs",
    )


def overrides(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Turn --mesh and --batch into overrides of the configuration."""
    batch = [] if args.batch is None else [("train.batch_size", str(args.batch))]
    return [(f"mesh.{axis}", size) for axis, size in mesh_axes(args.mesh).items()] + batch


def run(args: argparse.Namespace) -> int:
    from onereward_jax.planning import topology

    topology.prepare_environment()
    from onereward_jax.atomic_files import write_json
    from onereward_jax.planning.phases import Assumptions, Phase
    from onereward_jax.planning.plan import plan, report

    config, file = args.config, _output(args)
    place = topology.open_topology(args.topology)
    if args.search:
        if not isinstance(config, RewardFeedback):
            raise UserError("--search is for reward feedback learning: leave it out for another training")
        return _search(args, config, place, file)

    def tell(phase: Phase) -> None:
        if phase.how == "compiled":
            print(f"compiled: {phase.name}, {phase.what}", file=sys.stderr)

    found = plan(
        config,
        place,
        args.exact,
        whole_life=not args.update,
        assumptions=Assumptions(args.disk_gbps * 1e9, args.prompts),
        keep=args.keep and Path(args.keep),
        tell=tell,
    )
    print(report(args.config_file, found, config))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"config": args.config_file, **found.to_json()})
    return 0 if found.fits else DOES_NOT_FIT


def _output(args: argparse.Namespace) -> Path | None:
    """Check the file of --json before anything is compiled.

    Raises:
      UserError: it can't be written, or holds a search that would be lost.
    """
    from onereward_jax.atomic_files import check_writable

    if not args.json:
        return None
    file = Path(args.json)
    if file.is_dir():
        raise UserError(f"{file} is a directory: give --json a file")
    check_writable(file.parent)
    if not args.search and "rows" in _earlier(file):
        raise UserError(f"{file} holds a search: name another file, or resume it with --search")
    return file


def _earlier(file: Path) -> dict[str, Any]:
    """Read what the file of --json holds; nothing if it is missing, empty or damaged, since it is replaced then.

    Raises:
      UserError, PermissionError: it is no regular file, or can't be opened.
    """
    from onereward_jax.given_files import parse_json, read_bytes

    try:
        content = read_bytes(file)
    except FileNotFoundError:
        return {}
    try:
        value = parse_json(content)
    except UserError:
        return {}
    return value if isinstance(value, dict) else {}


def _search(args: argparse.Namespace, config: RewardFeedback, place: "Topology", file: Path | None) -> int:
    from tqdm import tqdm

    from onereward_jax.atomic_files import write_json
    from onereward_jax.parallel.mesh import make_mesh
    from onereward_jax.planning.plan import advice
    from onereward_jax.planning.search import (
        Choice,
        attention_blocks,
        cheapest,
        choices,
        fastest,
        meshes_of,
        search,
        table,
    )

    devices, batch = len(place.devices), config.train.batch_size
    meshes = [dict(make_mesh(**config.mesh, devices=place.devices).shape)] if args.mesh else meshes_of(devices)
    batches = [size for size in (batch, 2 * batch) if not config.data.num_conditions % size]
    tried = choices(meshes, (batch,) if args.batch else batches, config.rl.accumulate)
    if not tried:
        raise UserError(f"{devices} devices can't share a batch of {batch}: take a larger --batch or another --mesh")

    about = {"format": 3, "topology": place.name, "config": args.config_file, "exact": args.exact}
    about = json.loads(json.dumps(about | {"fields": config.flat()}))
    known: dict[Choice, Any] = {}
    blocks = None
    if file is not None and (earlier := _earlier(file)):
        if earlier.get("about") != about:
            raise UserError(f"{file} holds another search: name another file")
        try:
            known = {Choice(**row["choice"]): row["plan"] for row in earlier["rows"]}
            blocks = earlier["attention_blocks"]
        except (KeyError, TypeError):
            raise UserError(f"{file} is damaged, its rows can't be read: remove it, or name another file") from None
    takes_blocks = config.model.attention_blocks is not None and config.model.attention in ("auto", "splash")
    if takes_blocks and blocks is None:
        blocks = fastest(attention_blocks(config, place, lambda sizes: tqdm(sizes, "attention blocks", unit="pair")))
    if blocks:
        config = config.replace({"model.attention_blocks": tuple(blocks)})
        print(f"fastest attention: --config.model.attention_blocks={tuple(blocks)}".replace(", ", ","), flush=True)
    found: dict[Choice, dict[str, Any]] = {}

    def write() -> None:
        if file is None:
            return
        best = cheapest(found)
        of_best = {
            "fits": best is not None,
            "hbm_gib": place.chip.hbm_gib,
            "peak_gib": best and found[best]["peak_gib"],
            "choice": best and best._asdict(),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"choice": choice._asdict(), "plan": row} for choice, row in (known | found).items()]
        write_json(file, {"about": about, **of_best, "attention_blocks": blocks, "rows": rows})

    def keep(choice: Choice, row: dict[str, Any]) -> None:
        found[choice] = row
        bar.update()
        write()

    write()
    with tqdm(total=len(tried), desc=f"plans on {place.name}", unit="plan") as bar:
        search(config, place, tried, known, args.exact, keep)
    print(table(found, place.chip.hbm_gib))
    if cheapest(found) is not None:
        return 0
    print(f"nothing fits; what helps: {advice(config)}")
    return DOES_NOT_FIT


def mesh_axes(given: str | None) -> dict[str, str]:
    """Parse "data=1,fsdp=8" into {"data": "1", "fsdp": "8", "tensor": "1"}; unnamed axes are 1."""
    if given is None:
        return {}
    axes, named = {"data": "1", "fsdp": "1", "tensor": "1"}, {}
    for part in given.split(","):
        axis, equals, size = part.strip().partition("=")
        if not equals:
            raise UserError(f"--mesh takes sizes of axes like data=1,fsdp=8,tensor=2, not {given!r}")
        if axis not in axes:
            raise UserError(f"a mesh has no axis {axis!r}: name data, fsdp and tensor")
        if axis in named:
            raise UserError(f"--mesh names {axis} twice, in {given!r}: say one size")
        named[axis] = size
    return axes | named
