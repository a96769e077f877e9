"""Before JAX starts: eight simulated devices, and a compiler that spends less on code that runs once."""

import os

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=1",
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Torch beside JAX on the same cores: one thread keeps them from waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
