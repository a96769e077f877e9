"""Where compiled programs are kept, and that one which was cut short is not kept."""

import os
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from onereward_jax.cli.commands import use_compilation_cache
use_compilation_cache(Path(sys.argv[1]))
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.jit(lambda x: x * 2 + 1)(3.0)
"""


def test_a_run_keeps_what_it_compiled_and_drops_what_may_be_torn(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def start() -> dict[str, int]:
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, check=True, timeout=120)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "programs").glob("*-cache")}

    first = start()
    assert first
    assert start().keys() == first.keys()  # killed before its first checkpoint: made again
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.json").write_text("{}")
    torn = tmp_path / "programs" / "jit_torn-cache"
    measured = tmp_path / "programs" / "xla_gpu_per_fusion_autotune_cache_dir" / "fusion.textproto"
    measured.parent.mkdir()
    for path in (torn, measured):
        path.write_bytes(b"half")
    kept = {name: os.stat(tmp_path / "programs" / name).st_mtime_ns for name in first}
    assert start() == kept
    assert not torn.exists()
    assert not measured.exists()
