"""The scripts of launch/: what they would do, word by word, and the parts that can be done here.

goldens/launch.txt is a transcript: a line that begins with `$ ` is a command, what follows is its output. Written anew,
for the commands in it, by

    python -m tests.test_launch
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TRANSCRIPT = ROOT / "tests/goldens/launch.txt"
TRAIN = ["train", "--config", "flux_fill:dynamic_lora_512", "--workdir", "gs://my-bucket/runs/fill"]
HARD_WORDS = ["", "a b", "it's", '"$HOME"', r"back\slash", "$(date) `date`", "*", "~", "--c=('a',\"b\")", "--a.b=", "é"]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what changes the scripts' ways."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "GLIBC_TUNABLES")}
    return kept | more


def bash(*words: str, root: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *words], cwd=root, env=environment(**variables), capture_output=True, text=True, timeout=60
    )


def said(command: str) -> str:
    """A command's stdout and stderr, and its exit code if that is not 0."""
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    return result.stdout + (f"[exit code {result.returncode}]\n" if result.returncode else "")


def transcript(text: str) -> str:
    commands = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    return "\n".join(f"$ {command}\n{said(command)}" for command in commands)


def test_prints_what_the_transcript_says():
    golden = TRANSCRIPT.read_text(encoding="utf-8")
    assert golden.count("$ ") > 10
    assert transcript(golden) == golden


def test_a_dry_run_is_quoted_as_a_shell_takes_it():
    line = bash("-c", 'source launch/run.sh; dry_run=yes; run "$@"', "run", "printf", "%s\\0", *HARD_WORDS).stdout
    assert bash("-c", line).stdout.split("\0")[:-1] == HARD_WORDS


# ----------------------------------------------------------------------------------------------------- the resume loop


@pytest.fixture
def fake(tmp_path):
    """A command that ends with the given exit codes in turn, and how often it ran; the last one again and again."""
    script, runs = tmp_path / "fake.sh", tmp_path / "runs"

    def make(*codes: int, body: str = "") -> tuple[str, ...]:
        script.write_text(
            f"echo run >> {runs}\n{body}\ncodes=({' '.join(map(str, codes))})\n"
            f"done=$(wc -l < {runs})\nexit ${{codes[done - 1]:-{codes[-1]}}}\n"
        )
        return "launch/resume.sh", "bash", str(script)

    make.count = lambda: len(runs.read_text().split()) if runs.exists() else 0
    return make


@pytest.mark.parametrize(
    ("codes", "code", "runs"),
    [
        ((1, 137, 0), 0, 3),
        ((143, 0), 0, 2),  # the trainer alone was told to stop: it saved
        ((0,), 0, 1),
        ((2,), 2, 1),
        ((3,), 3, 1),
        ((127,), 127, 1),
        ((1, 2), 2, 2),
        ((1,), 1, 3),
    ],
)
def test_resumes_until_done_or_hopeless(fake, codes, code, runs):
    result = bash(*fake(*codes), RESUME_PAUSE="0", RESUME_TRIES="3")
    assert (result.returncode, fake.count()) == (code, runs)
    assert result.stderr.count("starting it again") == runs - 1


def test_only_quick_failures_in_a_row_count(fake):
    # A run of one second is long here: the count begins anew after it.
    long_third = '[ "$(wc -l < "$0/../runs")" != 3 ] || sleep 1.1'
    command = fake(1, 1, 1, 1, 1, 0, body=long_third.replace("$0/..", "$(dirname $0)"))
    assert bash(*command, RESUME_PAUSE="0", RESUME_TRIES="3", RESUME_QUICK="1").returncode == 0
    assert fake.count() == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command_and_ends_the_loop(tmp_path, number):
    """As kubectl and a shutdown send it: to the loop alone. The command saves and ends as the trainer does."""
    program = tmp_path / "trainer.py"
    program.write_text(
        "import signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.2)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(128 + number)\n"
        "signal.signal(signal.SIGTERM, stop)\nsignal.signal(signal.SIGINT, stop)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    # Where these tests run in the background, SIGINT is ignored, and what a shell inherits as ignored it can't trap.
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)
    command = ["bash", "launch/resume.sh", sys.executable, str(program)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as loop:
        assert loop.stdout.readline() == "ready\n"
        loop.send_signal(number)
        assert loop.communicate(timeout=60)[0] == "saved\n"
    assert loop.returncode == 128 + number


# -------------------------------------------------------------------------------------------------------- a TPU slice

# Notes what it was asked; says the states in turn; runs what goes to the workers here, in the home of the worker.
GCLOUD = """#!/bin/bash
echo "$*" >> {home}/asked
case $* in
  *' list '*) head -n 1 {home}/states; sed -i 1d {home}/states ;;
  *' scp '*) cp "$5" {home}/worker/onereward.tar.gz ;;
  *' ssh '*) cd {home}/worker && bash -c "${{8#--command=}}" ;;
esac
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A laptop with a checkout, and a worker where everything is installed already but the code."""
    from hashlib import sha256

    laptop, tools, worker = (tmp_path / name for name in ("laptop", "tools", "worker/onereward"))
    for name in ("launch", "onereward_jax/cli/commands", "pyproject.toml", "constraints.txt", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (laptop / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, laptop / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=x"]):
        subprocess.run([*git, *words], cwd=laptop, check=True)

    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    program(tools / "gcloud", GCLOUD.format(home=tmp_path))
    program(tools / "gcsfuse", f'#!/bin/bash\necho "$*" >> {tmp_path}/mounted\n')
    program(worker / ".venv/bin/onereward", "#!/bin/bash\necho trains: $*\n[ -e hold ] || exit 0\nsleep 60 & wait\n")
    (worker / ".venv/bin/activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    (worker / ".venv/bin/python").symlink_to(sys.executable)
    files = (laptop / "pyproject.toml").read_bytes() + (laptop / "constraints.txt").read_bytes()
    (worker / ".venv/installed-tpu").write_text(f"tpu {sha256(files).hexdigest()}\n")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")

    def pod(*words: str, states: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "asked").write_text("")
        return bash("launch/tpu_pod.sh", "--name", "fill", "--zone", "z", *words, root=laptop, TPU_POD_PAUSE="0")

    pod.asked = lambda: [line.split()[2:4] for line in (tmp_path / "asked").read_text().splitlines()]
    pod.home, pod.worker = tmp_path, worker
    return pod


def test_a_slice_is_made_trains_says_so_and_is_stopped(cloud):
    up = ("--type", "v5p-8", "--", *TRAIN)
    result = cloud(*up, states=("", "CREATING", "READY"))
    assert result.returncode == 0, result.stderr
    assert [verb for _, verb in cloud.asked()] == ["list", "create", "list", "list", "scp", "ssh", "ssh"]
    assert (cloud.home / "mounted").read_text().split()[-2:] == ["my-bucket", "gs/my-bucket"]
    wait_for(lambda: "trains:" in (cloud.worker / "run.log").read_text())
    trains = " ".join(TRAIN).replace("gs://", "gs/")
    assert f"{os.uname().nodename}: trains: {trains}" in cloud("--logs").stdout.splitlines()

    # It goes on in the slice that is there, beside no other training.
    (cloud.worker / "hold").touch()
    wait_for(lambda: cloud("--stop").returncode == 2)  # the first one is over
    assert cloud(*up, states=("READY",)).returncode == 0
    assert [verb for _, verb in cloud.asked()] == ["list", "scp", "ssh", "ssh"]
    result = cloud(*up, states=("READY",))
    assert result.returncode == 2
    assert result.stderr == "background.sh: a command is running here already: stop it first\n"
    wait_for(lambda: "trains:" in (cloud.worker / "run.log").read_text())
    assert cloud("--stop").returncode == 0
    assert cloud("--stop").returncode == 2


@pytest.mark.parametrize(
    ("options", "states", "asked"),
    [
        ((), ("PREEMPTED", "", "READY"), ["tpu-vm delete", "tpu-vm create"]),
        ((), ("STOPPED", "READY"), ["tpu-vm start"]),
        (
            ("--queued",),
            ("SUSPENDED", "", "WAITING_FOR_RESOURCES", "ACTIVE"),
            ["queued-resources delete", "queued-resources create"],
        ),
    ],
)
def test_a_slice_that_was_taken_away_is_made_anew(cloud, options, states, asked):
    assert cloud("--type", "v6e-8", "--spot", *options, "--", "judge", "--help", states=states).returncode == 0
    found = [" ".join(words) for words in cloud.asked()]
    assert [words for words in found if words.split()[1] not in ("list", "scp", "ssh")] == asked
    assert sum(words.endswith("list") for words in found) == len(states)


def test_a_slice_that_fails_at_once_is_not_asked_for_again(cloud):
    result = cloud("--type", "v6e-8", "--queued", "--", "train", states=("FAILED", "", "FAILED"))
    assert result.returncode == 1
    assert "`gcloud compute tpus queued-resources describe fill --zone=z` says why" in result.stderr
    assert [verb for _, verb in cloud.asked()] == ["list", "delete", "list", "create", "list"]


# Takes the slice away when the training has come to each of the steps in `preempt_at`; `refuses` says why none is made.
PREEMPTING_GCLOUD = """#!/bin/bash
echo "$*" >> {home}/asked
package=$PWD/$5
cd {home}
take_away() {{
  for pid in $(cut -d ' ' -f 1 worker/onereward/run.pid) $(cat pids); do kill -9 $pid 2>/dev/null; done
  rm -rf worker
}}
case $* in
  *' list '*)
    if [ -e worker ] && [ -s preempt_at ] && [ "$(cat bucket/step)" -ge "$(head -n 1 preempt_at)" ]; then
      sed -i 1d preempt_at; take_away; echo PREEMPTED > state
    fi
    [ ! -e state ] || cat state ;;
  *' create '*)
    if [ -s refuses ]; then head -n 1 refuses >&2; sed -i 1d refuses; exit 1; fi
    cp -r new worker; echo READY > state ;;
  *' delete '*) take_away 2>/dev/null; rm -f state ;;
  *' scp '*) cp "$package" worker/onereward.tar.gz ;;
  *' ssh '*) cd worker && bash -c "${{8#--command=}}" ;;
esac
"""

# Counts to 9 in the bucket and ends with the exit code in `code`.
TRAINER = """#!/bin/bash
echo $$ >> {home}/pids
step=$(cat gs/my-bucket/step)
echo $step >> {home}/starts
[ $(cat {home}/code) = 0 ] || exit $(cat {home}/code)
while [ $step -lt 9 ]; do sleep 0.1; step=$((step + 1)); echo $step > new; mv new gs/my-bucket/step; done
"""


@pytest.fixture
def spot(cloud, monkeypatch):
    """The same laptop, watching slices that are taken away: their workers are new each time."""
    home = cloud.home
    (home / "worker").rename(home / "new")
    (home / "bucket").mkdir()
    (home / "bucket/step").write_text("0\n")
    for path, text in {
        "tools/gcloud": PREEMPTING_GCLOUD,
        "tools/gcsfuse": '#!/bin/bash\n[ -L "$4" ] || { rmdir "$4" && ln -s HOME/bucket "$4"; }\n',
        "new/onereward/.venv/bin/onereward": TRAINER,
    }.items():
        text = text.replace("HOME", str(home)) if "HOME" in text else text.format(home=home)
        (home / path).write_text(text)
    for name, value in {"PAUSE": "0.1", "TRIES": "3"}.items():
        monkeypatch.setenv(f"TPU_POD_{name}", value)
        monkeypatch.setenv(f"RESUME_{name}", "1")

    def watch(*words: str, preempt_at: tuple[int, ...] = (), refuses: tuple[str, ...] = (), code: int = 0):
        for name, lines in {
            "preempt_at": preempt_at,
            "refuses": refuses,
            "code": (code,),
            "asked": (),
            "pids": (),
        }.items():
            (home / name).write_text("".join(f"{line}\n" for line in lines))
        words = ("--type", "v6e-8", "--spot", *words, "--watch", "--", *TRAIN)
        result = bash("launch/tpu_pod.sh", "--name", "fill", "--zone", "z", *words, root=home / "laptop")
        verbs = [verb for _, verb in cloud.asked()]
        assert not (home / "state").exists(), result.stderr  # it is deleted, however the watch ends
        return result, verbs.count("create"), [int(step) for step in lines_of(home / "starts")]

    return watch


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_a_watched_slice_is_made_anew_until_the_command_is_done(cloud, spot):
    result, made, starts = spot(preempt_at=(3, 6), refuses=("There is no more capacity in the zone z",) * 4)
    assert result.returncode == 0, result.stderr
    assert (made, len(starts), starts[0]) == (7, 3, 0)  # of which four were refused: more than a failure may repeat
    assert starts[1] >= 3
    assert starts[2] >= max(6, starts[1])
    assert result.stderr.count("was taken away") == 2
    assert (cloud.home / "bucket/step").read_text() == "9\n"
    assert (cloud.home / "laptop/runs/fill.log").exists()


@pytest.mark.parametrize(
    ("options", "code", "made", "starts"),
    [
        ({"code": 2}, 2, 1, 1),  # wrong input stays wrong
        ({"code": 1}, 1, 3, 3),
        ({"refuses": ("Invalid accelerator",) * 3}, 1, 3, 0),
    ],
)
def test_a_watch_gives_up_on_failures_that_are_no_preemption(spot, options, code, made, starts):
    result, *counts, begun = spot(**options)
    assert (result.returncode, *counts, len(begun)) == (code, made, starts), result.stderr


def background(cloud, *command: str) -> None:
    """Start a command on the slice, which is there."""
    shutil.copytree(cloud.home / "new", cloud.home / "worker", symlinks=True)
    shutil.copytree(cloud.home / "laptop/launch", cloud.worker / "launch")
    (cloud.home / "state").write_text("READY\n")
    assert bash("launch/background.sh", "start", *command, root=cloud.worker).returncode == 0


def test_a_watch_takes_no_other_command_for_its_own(cloud, spot):
    background(cloud, "true")
    wait_for((cloud.worker / "run.code").exists)
    result, made, starts = spot()
    assert (result.returncode, made, starts) == (0, 0, [0]), result.stderr
    assert (cloud.home / "bucket/step").read_text() == "9\n"

    background(cloud, "sleep", "60")
    result = cloud("--type", "v6e-8", "--watch", "--", *TRAIN)
    assert (result.returncode, result.stderr.count("another command is running on fill")) == (2, 1)
    assert {verb for _, verb in cloud.asked()} == {"list", "ssh"}  # it is left alone
    assert cloud("--stop").returncode == 0


def test_a_watch_that_was_left_goes_on(cloud, spot):
    assert cloud("--type", "v6e-8", "--", *TRAIN).returncode == 0
    result, made, starts = spot()
    assert (result.returncode, made, starts) == (0, 0, [0]), result.stderr


def test_the_token_of_the_hub_is_read_on_the_worker_alone(cloud):
    """The secret's name goes over command lines, the token only through the environment of the command."""
    secrets = cloud.home / "tools/gcloud"
    secrets.write_text(secrets.read_text().replace("case $* in", 'case $* in\n  "secrets "*) echo hf_token ;;', 1))
    trainer = cloud.worker / ".venv/bin/onereward"
    trainer.write_text('#!/bin/bash\necho "$HF_TOKEN" > token\n')
    up = ("--type", "v5p-8", "--hf_token_secret", "hugging-face", "--", *TRAIN)
    assert cloud(*up, states=("READY",)).returncode == 0
    wait_for(lambda: lines_of(cloud.worker / "token") == ["hf_token"])
    said = (cloud.home / "asked").read_text() + (cloud.worker / "run.log").read_text()
    assert "hugging-face" in said
    assert "hf_token" not in said


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


# ------------------------------------------------------------------------------------------------------------ GKE


def test_the_manifest_holds_the_command_word_by_word():
    words = ["train", *(word for word in HARD_WORDS), "gs://one/a", "('gs://two/b',)", "${bucket}"]
    options = ["--image", "r.example/p/onereward:1", "--accelerator", "tpu-v5p-slice", "--topology", "2x2x2"]
    printed = bash("launch/gke.sh", "--name", "fill", *options, "--hosts", "2", "--dry_run", "--", *words).stdout
    first, *lines, last = printed.splitlines()
    assert (first, last) == ("kubectl apply --filename=- <<'MANIFEST'", "MANIFEST")
    manifest = yaml.safe_load("\n".join(lines))
    assert "${" not in json.dumps(manifest).replace("${bucket}", "", 1)

    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["args"] == words
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert job["parallelism"] == job["completions"] == 2
    assert {volume["name"]: volume["csi"]["volumeAttributes"]["bucketName"] for volume in pod["volumes"]} == {
        "bucket-0": "one",
        "bucket-1": "two",
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/onereward/gs/one", "/onereward/gs/two"]


if __name__ == "__main__":
    TRANSCRIPT.write_text(transcript(TRANSCRIPT.read_text(encoding="utf-8")), encoding="utf-8")
