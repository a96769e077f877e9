"""`onereward plan` on a simulated slice."""

import dataclasses
import functools
import hashlib
import json
import math
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.cli.commands.plan import DOES_NOT_FIT, mesh_axes
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import RewardLearning
from onereward_jax.errors import UserError
from onereward_jax.parallel.mesh import make_mesh, replicated
from onereward_jax.planning import plan as plans
from onereward_jax.planning import topology
from onereward_jax.planning.compiling import Compiled, compile_program, needed_bytes
from onereward_jax.planning.lives import HostShare, Work, expected_trips, life_of
from onereward_jax.planning.phases import Assumptions, phase_of
from onereward_jax.planning.topology import Chip, Topology
from onereward_jax.rl.profile_scopes import JUDGEMENT, REFERENCE, ROLLOUT
from onereward_jax.runs import reward_feedback
from onereward_jax.training import trainer
from onereward_jax.training.compile import Placement
from tests.support.tiny_plan import TINY

ADAPTER = {"lora.rank": 2, "model.dtype": "bfloat16", "model.remat": "full", "rl.rollout_true_cfg_scale": 2.0}


class ReadyToRun(Exception):
    pass


def program_of_training(config, workdir, monkeypatch) -> str:
    """The program, lowered, as `train` would run it: with weights, a state on the mesh and a batch of data."""
    found = {}
    compile_step = trainer.compile_step

    def compile_and_watch(*arguments, **options):
        jitted, start, frozen = compile_step(*arguments, **options)

        def lower(*inputs):
            found["text"] = jitted.lower(*inputs).as_text()
            raise ReadyToRun

        return lower, start, frozen

    def run(*, step, start, batches, prepare, **_):
        step(start.make(), prepare(next(batches)))

    monkeypatch.setattr(trainer, "compile_step", compile_and_watch)
    monkeypatch.setattr(trainer.loop, "run", run)
    with pytest.raises(ReadyToRun):
        reward_feedback.train(config, workdir)
    return found["text"]


def test_the_program_is_the_one_that_training_runs(tmp_path, monkeypatch):
    """With cached references; tests/planning/test_lives.py has others."""
    monkeypatch.chdir(tmp_path)
    saving = {"rl.predictions": 2, "rl.reference_cache": "pool", "data.num_conditions": 8}
    config = load_config("fixed", TINY | ADAPTER | saving)
    planned = life_of(config).program.trace(make_mesh(**config.mesh), Placement.of(config)).lower().as_text()
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
    assert digest(planned) == digest(program_of_training(config, tmp_path, monkeypatch))


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def slice_of(monkeypatch):
    """Replace the TPU compiler: eight simulated devices and a fixed answer to `compile()`; without `traced` the program
    is empty."""

    def use(answer, traced=True):
        chip = Chip(hbm_gib=1.0, flops=1e12, hbm_bandwidth=1e11, link_bandwidth=1e10)
        monkeypatch.setattr(topology, "open_topology", lambda name: Topology(name, chip, jax.devices()))

        def without_compiler(config, mesh):
            life = life_of(config, mesh)
            program = life.program
            shapes = program.state, program.frozen, program.batch
            jaxpr = jax.make_jaxpr(program.step)(*shapes) if traced else jax.make_jaxpr(lambda x: x)(0.0)
            lowered = types.SimpleNamespace(compile=answer, as_text=lambda: "")
            fake = types.SimpleNamespace(jaxpr=jaxpr, lower=lambda: lowered)
            own = {name: getattr(program, name) for name in ("held", "held_state", "held_frozen")}
            own |= {"trace": lambda *_: fake}
            life.program = types.SimpleNamespace(**program._asdict(), **own)
            works = list(life.works(mesh, HostShare(jax.devices()[:4], 2), 100)) if traced else []
            life.works = lambda *_: [
                dataclasses.replace(work, trace=work.trace and (lambda: fake), trips=program.trips) for work in works
            ]
            return life

        monkeypatch.setattr(plans, "life_of", without_compiler)

    return use


def run(*arguments: str, **overrides) -> int:
    fields = [f"--config.{name}={value}" for name, value in (TINY | overrides).items()]
    return cli.main(["plan", "--config", "fixed", *fields, *arguments])


def compiled(options, reports=True):
    if reports:
        lines = (
            "allocation 0: size 134217728, parameter 0, shape |f32[33554432]| at ShapeIndex {}, maybe-live-out:",
            " value: <1 p @0> (size=134217728,offset=0): f32[33554432]{0}",
            "allocation 1: size 134217728, color 5, parameter 1, shape |f32[33554432]| at ShapeIndex {}:",
            "allocation 2: size 1073741824, thread-local:",
            "allocation 3: size 134217728, preallocated-temp:",
        )
        (Path(options["xla_dump_to"]) / "module_0001.jit_step.buffer-assignment.txt").write_text("\n".join(lines))
    memory = types.SimpleNamespace(
        argument_size_in_bytes=2**27,
        output_size_in_bytes=2**27,
        alias_size_in_bytes=2**27,
        temp_size_in_bytes=2**28,
        generated_code_size_in_bytes=2**20,
    )
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n"
        "  %all-reduce.1 = f32[1000000]{0} all-reduce(%p), replica_groups=[4,2]<=[8]\n}\n"
    )
    return types.SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: text)


def test_it_fits(slice_of, capsys, tmp_path):
    slice_of(compiled)
    assert run("--topology", "v5p:2x2x2", "--batch", "16", "--json", str(tmp_path / "new" / "plan.json")) == 0
    said = capsys.readouterr().out
    assert "mesh data 1, fsdp 4, tensor 2, batch 16\nfits: 0.5 GiB of 1.0 GiB" in said
    assert "start, without compiling: " in said
    found = json.loads((tmp_path / "new" / "plan.json").read_text())
    # What the report says, code, and what the runtime keeps; JAX's own figure for temporaries is larger.
    assert (found["fits"], found["hbm_gib"], found["peak_gib"]) == (True, 1.0, round((256 + 1 + 263) / 1024, 3))
    assert found["temporaries_gib"] == round((128 + 1 + 263) / 1024, 3)
    assert set(found["held_gib"]) == {"params", "ema", "opt_state", "reference", "vae", "judge", "batch"}
    assert found["collectives"] == {"all-reduce": {"times": 1.0, "bytes": 4e6}}
    seconds = found["seconds"]
    assert seconds["links"] == pytest.approx(4e6 / 2e10)
    assert seconds["arithmetic"] == pytest.approx(found["flops"] / 8e12)
    assert found["images_per_hour"] == pytest.approx(16 * 3600 / seconds["update"])
    # The miniature's transformer in three steps of the reference and on average so many of the policy's.
    steps = found["expected_steps"]
    assert steps[REFERENCE] == 3
    parts = found["flops_of_parts"]
    assert parts[REFERENCE] > parts[ROLLOUT] > 0
    assert parts[JUDGEMENT] > 0
    assert sum(parts.values()) == pytest.approx(found["flops"])
    # The other phases.
    phases = found["phases"]
    names = ["encode", "load", "create", "restore", "step", "checkpoint", "export", "export"]
    assert [phase["name"] for phase in phases] == names
    assert {phase["name"] for phase in phases if phase["how"] == "compiled"} == {
        "encode",
        "create",
        "step",
        "checkpoint",
    }
    for phase in phases:
        whole = sum(phase["held_gib"].values()) + phase["temporaries_gib"]
        assert phase["device_gib"] == pytest.approx(whole, abs=0.01)
    assert found["checkpoint_gb"] > 0
    assert found["start_seconds"]["first"] > found["start_seconds"]["resumed"] > 0


def test_a_phase_fits_on_the_devices_and_on_their_host():
    chip = Chip(hbm_gib=1.0, flops=1e12, hbm_bandwidth=1e11, link_bandwidth=1e10, machines={4: 16})
    place = Topology("v5p:2x2x2", chip, jax.devices())
    array = jax.ShapeDtypeStruct((2**27,), np.float32, sharding=replicated(make_mesh()))  # half a GiB
    work = functools.partial(Work, name="load", what="it", held={"array": array})
    fits = lambda work, compiled=None: phase_of(work, compiled, 0.0, place, Assumptions()).fits(place)
    assert fits(work(on_host={"reading": 1e9}))
    assert not fits(work(on_host={"reading": 3e9}))  # beside what a process takes
    running = work(trace=lambda: None)
    assert not fits(running)  # whose program was not compiled
    assert fits(running, Compiled(arguments=2**20, peak=2**28))
    assert not fits(running, Compiled(arguments=2**20, peak=2**30))
    assert not fits(running, Compiled(needed=2.0**31))


def test_what_the_compiler_said_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.42")  # libtpu is not installed with the tests
    asked = []
    lowered = types.SimpleNamespace(
        as_text=lambda: "a program", compile=lambda options: asked.append(0) or compiled(options)
    )
    traced = types.SimpleNamespace(lower=lambda: lowered)
    ask = lambda topology, **options: compile_program(traced, keep=tmp_path / "kept", topology=topology, **options)
    first = ask("v5p:2x2x2")
    assert ask("v5p:2x2x2") == first
    assert len(asked) == 1
    assert ask("v5p:2x2x1", compiles=False) is None
    assert (first.arguments, first.temporaries) == (2**27, 2**27 + 2**20 + 263 * 2**20)


@pytest.mark.parametrize(("arguments", "least"), [((), {"exec_time_optimization_effort": -1.0}), (("--exact",), {})])
def test_only_exact_compiles_with_full_effort(slice_of, capsys, tmp_path, arguments, least):
    asked = []
    slice_of(lambda options: asked.append(options) or compiled(options, reports=False), traced=False)
    file = tmp_path / "plan.json"
    assert run("--topology", "v5p:2x2x2", "--json", str(file), *arguments) == 0
    assert asked == [least | {"xla_dump_to": asked[0]["xla_dump_to"]}]
    assert not Path(asked[0]["xla_dump_to"]).exists()
    assert ("check with --exact" in capsys.readouterr().out) == (not arguments)
    found = json.loads(file.read_text())
    assert found["exact"] == bool(arguments)
    assert found["peak_gib"] == round((128 + 256 + 1 + 263) / 1024, 3)  # without a report JAX's figure is taken


def test_it_does_not_fit(slice_of, capsys, tmp_path):
    def refuse(options):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
            " Used 67.25G of 31.25G hbm. Exceeded hbm capacity by 36.00G."
        )

    slice_of(refuse, traced=False)
    assert run("--topology", "v6e:2x4", "--json", str(tmp_path / "plan.json")) == DOES_NOT_FIT
    said = capsys.readouterr().out
    assert "does NOT fit: at least 67.2 GiB of 1.0 GiB" in said
    assert "--config.model.remat=full" in said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["fits"], found["peak_gib"], found["collectives"]) == (False, 67.25, None)


@pytest.mark.parametrize(
    ("arguments", "overrides", "words"),
    [
        (("--topology", "v9:2x2"), {}, "there is no topology 'v9:2x2': give a generation (v5e, v5p, v6e, tpu7x)"),
        (("--topology", "v5p"), {}, "there is no topology 'v5p'"),
        (("--topology", "v5p:2x2x1", "--mesh", "fsdp"), {}, "--mesh takes sizes of axes like data=1,fsdp=8,tensor=2"),
        (
            ("--topology", "v5p:2x2x1", "--mesh", "depth=2"),
            {},
            "a mesh has no axis 'depth': name data, fsdp and tensor",
        ),
        (("--topology", "v5p:2x2x1", "--mesh", "fsdp=2,fsdp=4"), {}, "--mesh names fsdp twice"),
        (
            ("--topology", "v5p:2x2x1", "--mesh", "fsdp=-2"),
            {},
            "mesh.fsdp must be a whole number from 1 to",
        ),
        (
            ("--topology", "v5p:1024x1024x1024"),
            {},
            "a slice has at most 16,384 chips, which v5p:1024",
        ),
        (("--topology", "v5p:2x2x٣"), {}, "there is no topology 'v5p:2x2x٣'"),
        (("--topology", "v6e:2x2x2"), {}, "a slice of v6e has 2 sides, not 3 as v6e:2x2x2"),
        (("--topology", "v5p:2x2x1", "--json", "."), {}, ". is a directory: give --json a file"),
        (("--topology", "v5p:2x2x1", "--batch", "0"), {}, "--batch: it must be a whole number from 1 to 65,536, not 0"),
        ((), {}, "the following arguments are required: --topology"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, overrides, words, capsys):
    assert run(*arguments, **overrides) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "overrides", "words"),
    [
        (("--mesh", "fsdp=3"), {}, "asks for 3 devices, but there are 8"),
        ((), {"mesh.fsdp": 16, "mesh.tensor": -1}, "asks for 16 devices or a multiple, but there are 8"),
        (("--batch", "6"), {}, "a batch of 6 can't be shared by 4 devices"),
        ((), {"model.base": "some/where"}, "the configuration of some/where is not built in: give a directory"),
    ],
)
def test_an_impossible_combination_is_one_sentence(slice_of, arguments, overrides, words, capsys):
    slice_of(compiled)
    assert run("--topology", "v5p:2x2x2", *arguments, **overrides) == 2
    assert words in capsys.readouterr().err


def test_batch_and_mesh_are_set_before_the_configuration_is_checked(slice_of):
    slice_of(compiled, traced=False)
    few = {"data.num_conditions": 12}  # no multiple of the configuration's batch
    assert run("--topology", "v5p:2x2x2", "--batch", "12", "--mesh", "fsdp=4,tensor=2", **few) == 0


def test_a_compiler_that_fails_is_one_sentence(slice_of, capsys):
    def answer(options):
        raise jax.errors.JaxRuntimeError("INTERNAL: Peak memory usage exceeds the max size\nat line 1")

    slice_of(answer, traced=False)
    assert run("--topology", "v5p:2x2x2", "--exact") == 2
    said = capsys.readouterr().err
    assert (
        "can't compile this program (INTERNAL: Peak memory usage exceeds the max size): try another --mesh, or" in said
    )


def test_too_large_blocks_are_not_reported_as_lack_of_memory(slice_of, capsys):
    def answer(options):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem while"
            " allocating on stack. Scoped allocation with size 16.48M and limit 16.00M exceeded scoped vmem limit"
        )

    slice_of(answer, traced=False)
    assert run("--topology", "v5p:2x2x2") == 2
    assert "more vector memory than a chip has: set smaller --config.model.attention_blocks" in capsys.readouterr().err


def test_a_search_is_not_overwritten(slice_of, tmp_path, capsys):
    (tmp_path / "search.json").write_text('{"rows": []}')
    slice_of(compiled, traced=False)
    assert run("--topology", "v5p:2x2x2", "--json", str(tmp_path / "search.json")) == 2
    assert "holds a search: name another file, or resume it with --search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "search"), [*((content, False) for content in (b"", b"{", b"[1]", b"\xff\xff")), (b'{"fits": tr', True)]
)
def test_an_empty_or_damaged_file_is_replaced(slice_of, tmp_path, content, search):
    slice_of(compiled, traced=False)
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    assert run("--topology", "v5p:2x2x2", "--batch", "16", "--json", str(file), *["--search"] * search) in (0, 3)
    assert json.loads(file.read_text())["fits"]


def test_a_device_is_no_file(slice_of, capsys):
    slice_of(compiled, traced=False)
    assert run("--topology", "v5p:2x2x2", "--json", "/dev/null") == 2
    assert "/dev/null is a pipe or a device" in capsys.readouterr().err


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'onereward-jax\[tpu\]'"):
        topology.open_topology("v5p:2x2x4")


def test_several_judges_are_refused():
    config = load_config("fixed", TINY | {"model.judge_adapters": ("runs/a", "runs/b")})
    with pytest.raises(UserError, match=r"model\.judge_adapters"):
        life_of(config)


def test_unnamed_axes_are_1():
    assert mesh_axes("fsdp=8, tensor=2") == {"data": "1", "fsdp": "8", "tensor": "2"}
    assert mesh_axes(None) == {}


def test_a_batch_waits_for_its_latest_sample():
    config = RewardLearning(num_steps=50, first_index=15, last_index=35)
    draws = np.random.default_rng(0).integers(15, 36, (100_000, 8)).max(axis=1)
    assert expected_trips(config, 8)[ROLLOUT] == pytest.approx(draws.mean(), abs=0.05)
    assert expected_trips(dataclasses.replace(config, index_per_sample=False), 8)[ROLLOUT] == pytest.approx(25)
    assert expected_trips(dataclasses.replace(config, accumulate=8), 8)[ROLLOUT] == pytest.approx(25)
    matched = expected_trips(dataclasses.replace(config, matched_reference=True), 8)
    assert matched[REFERENCE] == matched[ROLLOUT]
    endpoint = dataclasses.replace(config, estimator="endpoint", policy_steps=40, reference_steps=30)
    assert expected_trips(endpoint, 8) == {REFERENCE: 30, ROLLOUT: 40}


def test_the_needed_size_is_read_from_the_compilers_error():
    older = "RESOURCE_EXHAUSTED: ... Used 67.25G of 31.25G hbm. Exceeded"
    newer = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (223.59G) exceeds"
        " available HBM (95.74G)."
    )
    assert needed_bytes(older) == 67.25 * 2**30
    assert needed_bytes(newer) == 223.59 * 2**30
    assert needed_bytes("RESOURCE_EXHAUSTED: in other words") == math.inf
    assert needed_bytes("INVALID_ARGUMENT: something else") is None
