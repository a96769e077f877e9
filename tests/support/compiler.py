"""How programs are compiled that run a few times only: with as little effort as XLA can spend.

Level 0 is LLVM's, fusion emitters go through MLIR first, and a program in several parts is copied for each.
"""

EFFORT = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def xla_flags(devices: int) -> str:
    """The value of XLA_FLAGS for a process of so many simulated devices."""
    return " ".join((f"--xla_force_host_platform_device_count={devices}", *EFFORT))
