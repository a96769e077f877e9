"""Two processes with four devices each train as one process with eight does, whatever happens to them."""

import os
import shutil
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.parallel import cluster
from onereward_jax.training.metrics import read_metrics
from tests.support import multiprocess_trainer
from tests.support.multiprocess_run import MEET, Run, newest

TRAINER = str(Path(multiprocess_trainer.__file__))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    multiprocess_trainer.main(str(workdir), "2,2,2")
    return workdir


def assert_same_run(found: Path, expected: Path) -> None:
    """Within float32 rounding, which Adam's division enlarges where a gradient is small."""
    states = [np.load(workdir / "final.npz") for workdir in (found, expected)]
    for name in states[1].files:
        np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-5, atol=1e-6)
    lines = [read_metrics(workdir / "metrics.jsonl") for workdir in (found, expected)]
    assert [line["step"] for line in lines[0]] == list(range(1, multiprocess_trainer.STEPS + 1))
    losses = [[line["learning/loss"] for line in of_run] for of_run in lines]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_disturbed_runs_end_as_the_undisturbed_one(alone, tmp_path):
    workdir = tmp_path / "run"
    command = (TRAINER, str(workdir), "2,2,2", "0.2")

    with Run(*command) as both:
        both.signal_after(workdir, 5, 1, signal.SIGTERM)
        assert both.ended() == [143, 143], both.said
        stopped = newest(workdir)
        assert stopped > 5
        assert "".join(both.said).count(f"stopped by SIGTERM at step {stopped}, saved in {workdir}") == 1
    shutil.copytree(workdir, tmp_path / "elsewhere")

    with Run(*command) as both:
        both.signal_after(workdir, stopped + 1, 1, signal.SIGKILL)
        assert both.ended() == [75, -signal.SIGKILL], both.said
        assert "process 1 of 2 has sent no heartbeat" in both.said[0]

    with Run(*command) as both:
        both.signal_after(workdir, newest(workdir) + 1, 0, signal.SIGKILL)
        assert both.ended() == [-signal.SIGKILL, -signal.SIGABRT], both.said

    damaged = newest(workdir)
    # Process 1 wrote the file, and verifies it or not: both restore the checkpoint before.
    [file] = (workdir / "checkpoints" / f"step_{damaged:08d}" / "state" / "ocdbt.process_1" / "d").iterdir()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with Run(*command) as both:
        assert both.ended() == [0, 0], both.said
        assert "does not have the digest it was written with" in both.said[0]
        assert f"step_{damaged:08d}" in both.said[0]
        assert "going on from step" in both.said[0]
        assert "training: " not in both.said[1]
    assert_same_run(workdir, alone)

    # One process, another mesh.
    multiprocess_trainer.main(str(tmp_path / "elsewhere"), "1,8,1")
    assert_same_run(tmp_path / "elsewhere", alone)


def test_a_wrong_input_is_said_once(tmp_path):
    """By processes that Slurm tells of each other."""
    slurm = {"SLURM_JOB_ID": "{port}", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"SLURM_PROCID": "{index}", "SLURM_LOCALID": "{index}", "JAX_COORDINATOR_PORT": "{port}"}
    command = (
        "-m",
        "onereward_jax.cli.main",
        "train",
        "--config",
        "quick",
        "--config.train.num_step=3",
    )
    with Run(*command, "--workdir", str(tmp_path / "run"), meet=slurm) as both:
        assert both.ended() == [2, 2], both.said
    assert "".join(both.said).count("has no field train.num_step: did you mean train.num_steps?") == 1
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_not_shared_is_refused(tmp_path):
    with Run(TRAINER, str(tmp_path / "{index}"), "2,2,2") as both:
        assert both.ended() == [2, 2], both.said
    assert f"process 1 does not see the {tmp_path / '1'} of process 0: give all" in both.said[1]
    assert "onereward:" not in both.said[0]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, ""),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, ""),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}, "JAX_NUM_PROCESSES is 4"),
        ({"SLURM_STEP_NODELIST": "a[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, "SLURM_NTASKS is 4"),
        ({"SLURM_NTASKS": "4"}, ""),  # allotted, and not started by srun
        ({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "a,b,c"}, "the TPU slice has 3 hosts"),
        ({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"JAX_PLATFORMS": "tpu", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "slice has 2 hosts"),
        ({"JAX_PLATFORMS": "tpu"}, "the TPU slice has 2 hosts"),
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b,c"}, ""),
    ],
)
def test_what_tells_of_others(monkeypatch, metadata, environment, reason):
    monkeypatch.setattr(cluster, "_has_tpus", lambda: True)
    monkeypatch.setattr(cluster, "_ENDPOINTS", metadata)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert reason in cluster.several()
    assert bool(reason) == bool(cluster.several())


@pytest.fixture(scope="module")
def metadata():
    """What a TPU VM's server of metadata says of a slice of two hosts."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_half_of_an_environment_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    assert cli.main(["train", "--config", "quick", "--workdir", "nowhere"]) == 2
    assert "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES is 'two'" in capsys.readouterr().err


def test_other_commands_are_one_process(monkeypatch, capsys):
    for name, value in MEET.items():
        monkeypatch.setenv(name, value.format(index=0, port=1))
    assert cli.main(["sanity-checks", "--config", "quick", "--workdir", "nowhere"]) == 2
    assert (
        "sanity-checks is one process, but this is one of several (JAX_NUM_PROCESSES is 2)" in capsys.readouterr().err
    )
