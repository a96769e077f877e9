"""Scoring in processes gives the same scores as in this one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from onereward_jax.proving_ground import ProvingGround, score, scoring_processes
from onereward_jax.proving_ground.scoring_processes import score_all
from onereward_jax.tasks import TASKS


@pytest.mark.parametrize("scenes_per_task", [1, 5])  # few stay in this process
def test_scores_come_in_their_order(scenes_per_task):
    ground = ProvingGround("test", 64)
    scenes = [ground.scene(index, task) for index in range(scenes_per_task) for task in TASKS]
    images = np.stack([[scene.target, scene.sample.image] for scene in scenes])
    scores = score_all(scenes, images)
    assert scores == [[score(scene, image) for image in row] for scene, row in zip(scenes, images, strict=True)]
    assert any(target != source for target, source in scores)


def test_an_error_in_another_process_arrives_here():
    scene = ProvingGround("test", 64).scene(0, "image_fill")
    with pytest.raises(ValueError, match="give the scene's size"):
        score_all([scene] * 40, [[np.zeros((32, 32, 3))]] * 40)


_SCRIPT = """
import os, signal, sys, multiprocessing
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.proving_ground.scoring_processes import score_all

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    scene = ProvingGround("test", 64).scene(0, "image_fill")
    score = lambda: len(score_all([scene] * 10, [[scene.target] * 4] * 10))
    score()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    sys.stdin.readline()
    print(score(), flush=True)  # after a Ctrl-C
    sys.stdin.readline()
"""


def test_the_processes_survive_a_ctrl_c_and_end_with_their_parent(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], start_new_session=True, **pipes)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    os.killpg(parent.pid, signal.SIGINT)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "10\n"
    parent.kill()
    parent.communicate()
    ended = time.monotonic() + 20
    while any(_lives(pid) for pid in children):
        assert time.monotonic() < ended, "a scoring process outlives its parent"
        time.sleep(0.1)


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # a zombie waits for somebody to ask
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("signal_number", "words"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "took more than")])
def test_a_process_that_dies_or_hangs_is_replaced(signal_number, words, monkeypatch):
    scene = ProvingGround("test", 64).scene(0, "image_fill")
    scenes, images = [scene] * 20, [[scene.target, scene.sample.image]] * 20
    expected = score_all(scenes, images)
    end_processes = scoring_processes._end_processes

    def end_with_a_longer_timeout():  # new ones have to start first
        monkeypatch.setattr(scoring_processes, "_TIMEOUT", 120.0)
        end_processes()

    monkeypatch.setattr(scoring_processes, "_TIMEOUT", 1.0)
    monkeypatch.setattr(scoring_processes, "_end_processes", end_with_a_longer_timeout)
    for worker in list(scoring_processes._processes()._processes.values()):
        os.kill(worker.pid, signal_number)
    with pytest.warns(RuntimeWarning, match=f"a scoring process {words}"):
        assert score_all(scenes, images) == expected
