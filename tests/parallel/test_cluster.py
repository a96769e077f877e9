"""Machines are recognised by their variables: those of Kaggle and Colab as their users print them."""

import os

import pytest

from onereward_jax.parallel import cluster

# One process with eight chips: v5litepod-8.
KAGGLE = {
    "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
    "KAGGLE_URL_BASE": "https://www.kaggle.com",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_PROCESS_ADDRESSES": "local",
    "TPU_WORKER_HOSTNAMES": "t1v-n-0123abcd-w-0",
    "TPU_WORKER_ID": "0",
    "CLOUD_TPU_TASK_ID": "0",
}
COLAB = {
    "COLAB_RELEASE_TAG": "release-colab_20251112",
    "COLAB_TPU_1VM": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-1",
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
GKE = {
    "KUBERNETES_SERVICE_HOST": "34.118.224.1",
    "TPU_ACCELERATOR_TYPE": "v6e-16",
    "TPU_WORKER_HOSTNAMES": "fill-slice-0-0.fill,fill-slice-0-1.fill",
    "TPU_WORKER_ID": "1",
}
GKE_HOSTS = "the TPU slice has 2 hosts"
GIGABYTE = 10**9


@pytest.fixture
def root(tmp_path):
    """A kernel that tells of 64 GB of memory."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       62500000 kB\nMemFree:        1 kB\n")
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "name", "chips", "others"),
    [
        (KAGGLE, "Kaggle", 8, ""),
        (COLAB, "Colab", 1, ""),
        ({**COLAB, "COLAB_TPU_1VM": "", "TPU_ACCELERATOR_TYPE": ""}, "Colab", 0, ""),  # its machines without a TPU
        (GKE, "Kubernetes", 16, GKE_HOSTS),
        ({"SLURM_JOB_ID": "7", "TPU_SKIP_MDS_QUERY": "1"}, "Slurm", 0, ""),
        (
            {"TPU_ACCELERATOR_TYPE": "v5p-16", "TPU_WORKER_HOSTNAMES": "a,b"},
            "this machine",
            8,
            "the TPU slice has 2 hosts",
        ),
        ({"TPU_SKIP_MDS_QUERY": "1"}, "this machine", 0, ""),
    ],
)
def test_machines_are_known_by_their_variables(monkeypatch, root, variables, name, chips, others):
    for variable in [name for name in os.environ if name.startswith(("SLURM_", "TPU_", "JAX_", "KUBERNETES_"))]:
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(cluster, "_has_tpus", lambda: True)
    monkeypatch.setattr(cluster, "_ENDPOINTS", "http://127.0.0.1:9/")  # no server is asked
    assert cluster.machine(root) == cluster.Machine(name, 64 * GIGABYTE, chips)
    assert cluster.several() == others


@pytest.mark.parametrize(
    ("file", "text", "memory"),
    [
        ("memory.max", "12000000000\n", 12),
        ("memory.max", "max\n", 64),
        ("memory/memory.limit_in_bytes", "12000000000\n", 12),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", 64),
    ],
)
def test_host_memory_is_what_the_container_may_take(root, file, text, memory):
    """As on Colab, whose machines give 12 GB."""
    file = root / "sys/fs/cgroup" / file
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert cluster.machine(root).memory == memory * GIGABYTE
