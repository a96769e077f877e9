"""metrics.jsonl without gaps or repeats, and TensorBoard's purge step."""

import json
import os
import struct
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from onereward_jax.errors import UserError
from onereward_jax.training import metrics
from onereward_jax.training.metrics import MetricsWriter, read_metrics


def write(workdir, steps, resume_step=0, tensorboard=False):
    with MetricsWriter(workdir, resume_step, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, {"learning/loss": jnp.float32(1 / step)})


def events(workdir):
    """Every event of TensorBoard's files, oldest file first (records: length, CRC, bytes, CRC)."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 16 + length
    return found


def test_one_line_a_step(tmp_path):
    write(tmp_path, [1, 2, 3])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"step": 2, "learning/loss": 0.5}
    assert lines[2] == '{"step": 3, "learning/loss": 0.33333334}'
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resuming_drops_later_steps(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(6, 10), resume_step=5)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_starting_anew_drops_all(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, [1])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("torn", ['{"step": 4, "lear', '{"step": 4}', "4", "\0\0\0"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    write(tmp_path, [4], resume_step=3)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("lost", ["\0" * 40 + "\n", "\0\0\n{}\n", '{"step": 4, "le\n'])
def test_what_a_power_cut_made_of_the_lines_after_the_checkpoint_is_dropped(tmp_path, lost):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(lost + '{"step": 5}\n')
    with pytest.raises(UserError, match="line 4"):
        read_metrics(tmp_path / "metrics.jsonl")
    write(tmp_path, [4], resume_step=3)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_damage_in_the_middle_is_named(tmp_path):
    write(tmp_path, [1, 2, 3])
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text.replace('{"step": 2', "{step: 2"))
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(tmp_path, 3, tensorboard=False)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "other.jsonl")


def test_not_finite_is_null_with_one_warning(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.warns(RuntimeWarning, match="learning/loss"):
            writer.write(1, {"learning/loss": np.float32("nan"), "learning/grad_norm": 2})
        writer.write(2, {"learning/loss": float("inf")})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "learning/loss": None, "learning/grad_norm": 2},
        {"step": 2, "learning/loss": None},
    ]


def test_lines_are_there_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"a": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    writer.close()
    writer.close()


def test_lines_and_events_are_forced_onto_the_disk_while_no_step_ends(tmp_path, monkeypatch):
    """Every minute; sooner here."""
    forced, force = threading.Event(), os.fsync
    monkeypatch.setattr(metrics, "_SYNC_SECONDS", 0.01)
    with MetricsWriter(tmp_path) as writer:
        monkeypatch.setattr(os, "fsync", lambda file: (force(file), file == writer._file and forced.set()))
        writer.write(1, {"learning/loss": 0.5})
        assert forced.wait(10)
        deadline = time.monotonic() + 10
        while not (found := [event for event in events(tmp_path) if event.HasField("summary")]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert found[0].step == 1


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_while_it_is_written_comes_back(tmp_path, replaced):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"learning/loss": 0.5})
        writer.path.unlink()
        if replaced:
            writer.path.write_text("")
        writer.write(2, {"learning/loss": 0.4})
        with pytest.warns(RuntimeWarning, match="written again"):
            writer.sync()
        writer.write(3, {"learning/loss": 0.3})
        writer.sync()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_tensorboard_purges_what_was_dropped(tmp_path):
    write(tmp_path, range(1, 8), tensorboard=True)
    write(tmp_path, [6, 7], resume_step=5, tensorboard=True)
    all_events = events(tmp_path)
    starts = [event.step for event in all_events if event.HasField("session_log")]
    assert starts[-1] == 6
    scalars = [(event.step, event.summary.value[0].tag) for event in all_events if event.HasField("summary")]
    assert scalars == [(step, "learning/loss") for step in [*range(1, 8), 6, 7]]
