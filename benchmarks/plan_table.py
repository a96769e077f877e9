"""The tables of docs/lab-notes/scale.md: the whole life of each recipe at full size, on slices of three generations.

    python -m benchmarks.plan_table --keep plans > table.md

For each row the first slice is taken on which every phase fits. Every program of every phase is compiled, hours of CPU
for all of them; with `--keep` nothing is compiled twice, so a table that was stopped goes on. `--kept_only` compiles
nothing: phases whose program is not kept are marked, and no slice is said to fit by them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

EVALUATED = {"evaluation.every": "500", "data.source": "requests"}  # of images without a ground truth
OFFLOADED = {"train.offload": "('ema','opt_state')"}


class Row(NamedTuple):
    """A run, and the slices of a generation that are tried for it, smallest first."""

    config: str
    slices: tuple[str, ...]
    overrides: dict[str, str] = {}  # noqa: RUF012 (never changed)


ROWS = (
    Row("flux_fill:dynamic_1024", ("v5p:2x2x4",), EVALUATED),
    Row("flux_fill:dynamic_1024", ("v6e:2x4", "v6e:4x4"), EVALUATED | OFFLOADED),
    Row("flux_fill:dynamic_1024", ("v5e:4x4", "v5e:4x8"), EVALUATED | OFFLOADED),
    Row("judge_7b", ("v5p:2x2x4",)),
    Row("judge_7b", ("v6e:2x4", "v6e:4x4")),
    Row("judge_7b", ("v5e:4x4", "v5e:4x8")),
    Row("finetune:flux_fill", ("v5p:2x2x4",)),
    Row("finetune:flux_fill", ("v6e:2x4", "v6e:4x4")),
    Row("finetune:flux_fill", ("v5e:4x4", "v5e:4x8")),
)


def main(arguments: list[str] | None = None) -> int:
    from onereward_jax.cli.arguments import path, text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=path, required=True, metavar="DIR", help="what the compiler said")
    parser.add_argument("--kept_only", action="store_true", help="compile nothing")
    parser.add_argument("--only", type=text, default="", metavar="TEXT", help="rows whose recipe or slices have it")
    args = parser.parse_args(arguments)

    from onereward_jax.planning import topology

    topology.prepare_environment()
    for row in ROWS:
        if args.only not in " ".join((row.config, *row.slices)):
            continue
        for name in row.slices:
            found = planned(row, name, Path(args.keep), not args.kept_only)
            print(table(row, found), flush=True)
            if found is not None and found.fits:
                break
    return 0


def planned(row: Row, name: str, keep: Path, compiles: bool) -> Any:
    """Plan a row on a slice; None where the batch or the mesh does not fit it."""
    from onereward_jax.config.load import load_config
    from onereward_jax.planning.phases import Phase
    from onereward_jax.planning.plan import plan
    from onereward_jax.planning.topology import open_topology

    def tell(phase: Phase) -> None:
        print(f"{row.config} on {name}: {phase.name}, {phase.what}: {phase.how}", file=sys.stderr, flush=True)

    config = load_config(row.config, row.overrides)
    return plan(config, open_topology(name), whole_life=True, keep=keep, compiles=compiles, tell=tell)


def table(row: Row, found: Any) -> str:
    """Format a plan in Markdown."""
    mesh = ", ".join(map(str, found.mesh.values()))
    options = "".join(f" --config.{name}={value}" for name, value in row.overrides.items())
    unseen = [phase for phase in found.phases if phase.how == "not compiled"]
    verdict = "fits" if found.fits else "not all of it was compiled" if unseen else "does NOT fit"
    lines = [
        f"`{row.config}` on `{found.topology.name}`, mesh {mesh}: **{verdict}**; {found.topology.hosts} hosts of"
        f" {found.topology.machine.memory / 1e9:.0f} GB; start {found.start_seconds(False):.0f} s, resumed"
        f" {found.start_seconds(True):.0f} s; a checkpoint of {found.checkpoint / 1e9:.1f} GB;"
        f" `--config {row.config}{options}`",
        "",
        f"| phase | | GiB of a device, of {found.chip.hbm_gib} | GB of a host | seconds, at least | |",
        "|---|---|---|---|---|---|",
    ]
    for phase in found.phases:
        least = "" if phase.temporaries is not None else "at least "
        lines.append(
            f"| {phase.name} | {phase.what} | {least}{phase.device / 2**30:.1f} | {phase.host / 1e9:.0f} |"
            f" {phase.seconds:.1f} | {phase.how} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
