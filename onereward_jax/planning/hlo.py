"""Reads the communication between devices from a compiled program's HLO, with loops as often as they run."""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 1, "u4": 1, "c64": 8}

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r" = (?P<type>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_WHILE = re.compile(r" while\(.*condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{(?P<many>[^}]*)\}"
    r"|true_computation=%?(?P<yes>[\w.\-]+), false_computation=%?(?P<no>[\w.\-]+)"
)
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d+\w*|pred)\[(?P<shape>[\d,]*)\]")
# Groups of devices: [groups,size]<=..., {{0,2},{1,3}}, or mesh['a'=4,'b'=2] {'a', 'b':(1)2}.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]*)\}|mesh\[(?P<mesh>[^\]]*)\] *\{(?P<axes>[^}]*)\})"
)
_COUNTER = re.compile(r" [su]32\[\]\S* get-tuple-element\(.*index=(\d+)")
_SCOPE = re.compile(r'op_name="(?P<scope>[^"]*)"')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      size: bytes of the whole array, which a device holds in part before or after.
      group: number of devices that take part together.
      times: how often it runs.
      scope: named scope that it comes from.
    """

    kind: str
    size: float
    group: int
    times: float
    scope: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends per run, by the ring algorithm."""
        if self.kind == "collective-permute":
            return self.size
        share = (self.group - 1) / self.group
        return self.size * share * (2 if self.kind == "all-reduce" else 1)


def collectives_of(
    text: str, trips: Mapping[str, float] | None = None, shares: Mapping[str, Sequence[float]] | None = None
) -> list[Collective]:
    """List the collectives of a compiled program.

    Args:
      text: result of `compiled.as_text()`.
      trips, shares: see `planning.cost.cost_of_program`. A compiler-made loop of unknown length that contains
        collectives is counted once, with a warning that names it.
    """
    program = _Program(text, dict(trips or {}), dict(shares or {}))
    return list(program.collectives(program.entry, 1.0, scattered=False))


class _Program:
    def __init__(self, text: str, trips: dict[str, float], shares: dict[str, Sequence[float]]):
        self._trips, self._shares = trips, shares
        self._lines: dict[str, list[str]] = {}
        self.entry, lines = "", []
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                lines = self._lines[found["name"]] = []
                self.entry = found["name"] if found["entry"] else self.entry
            else:
                lines.append(line)

    def collectives(self, computation: str, times: float, scattered: bool) -> Iterator[Collective]:
        """Yield the collectives of a computation that runs `times` times, and of all that it calls.

        `scattered`: the computation fuses an all-reduce with a slice of its result.
        """
        for line in self._lines.get(computation, ()):
            scope = found["scope"] if (found := _SCOPE.search(line)) else ""
            if found := _COLLECTIVE.search(line):
                kind = "reduce-scatter" if scattered and found["kind"] == "all-reduce" else found["kind"]
                group = _group(line)
                if group > 1 or kind == "collective-permute":
                    size = _size(kind, found["type"], group, bool(found["start"]), scattered)
                    yield Collective(kind, size, group, times, scope)
            if found := _WHILE.search(line):
                inside = list(self.collectives(found["body"], times, False))
                turns = self._turns(line, found["condition"], found["body"], scope) if inside else 1.0
                yield from (dataclasses.replace(one, times=one.times * turns) for one in inside)
            elif found := _BRANCHES.search(line):
                names = re.findall(r"[\w.\-]+", found["many"]) if found["many"] else [found["no"], found["yes"]]
                given = next((s for name, s in self._shares.items() if name in scope and len(s) == len(names)), None)
                for name, share in zip(names, given or [1.0] * len(names), strict=True):
                    yield from self.collectives(name, times * share, False)
            else:
                for name in _CALLS.findall(line):
                    yield from self.collectives(name, times, name.startswith("all-reduce-scatter"))

    def _turns(self, line: str, condition: str, body: str, scope: str) -> float:
        if found := _KNOWN_TRIPS.search(line):
            return float(found[1])
        # Otherwise the condition compares a counter, which starts at 0, with a constant.
        lines = self._lines.get(condition, [])
        constants = [int(n) for text in lines for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", text)]
        if len(constants) == 1 and any("direction=LT" in text for text in lines):
            return float(-(-constants[0] // self._stride(lines, body)))
        for name, turns in self._trips.items():
            if re.search(rf"\b{re.escape(name)}/while$", scope):
                return turns
        warnings.warn(
            f"the length of a loop in {scope or 'no scope'} is unknown: its collectives count once", stacklevel=2
        )
        return 1.0

    def _stride(self, condition: list[str], body: str) -> int:
        """Return the increment of the counter: more than 1 in a loop that the compiler has partly unrolled."""
        lines = self._lines.get(body, [])
        counter = next((found[1] for text in condition if (found := _COUNTER.search(text))), None)
        root = next((text for text in lines if text.lstrip().startswith("ROOT ")), "")
        results = re.findall(r"%[\w.\-]+", root.rpartition(" tuple(")[2].partition(")")[0])
        if counter is None or int(counter) >= len(results):
            return 1
        added = next((text for text in lines if f"{results[int(counter)]} = " in text and " add(" in text), "")
        for name in re.findall(r"%[\w.\-]+", added.rpartition(" add(")[2].partition(")")[0]):
            for text in lines:
                if found := re.search(rf"{re.escape(name)} = [su]32\[\]\S* constant\((\d+)\)", text):
                    return int(found[1])
        return 1


def _group(line: str) -> int:
    found = _GROUPS.search(line)
    if found is None:
        return 1
    if found["mesh"]:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found["mesh"])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found["axes"])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return int(found["size"]) if found["size"] else len(found["first"].split(","))


def _size(kind: str, types: str, group: int, start: bool, scattered: bool) -> float:
    arrays = [
        _BYTES.get(found["dtype"], 4) * math.prod(int(side) for side in found["shape"].split(",") if side)
        for found in _ARRAY.finditer(types)
    ]
    total = float(sum(arrays))
    if start and kind == "all-gather":  # its type holds the parts and the whole
        return total * group / (group + 1)
    if start and kind == "reduce-scatter":
        return total * group / (group + 1)
    if start and kind == "collective-permute":  # source, target, two contexts
        return float(arrays[0])
    if kind == "reduce-scatter" and not scattered:  # its type holds the part
        return total * group
    return total
