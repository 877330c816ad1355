"""Strict JAX on the CPU with eight host devices, for every test."""

import os
import pathlib

# Before JAX is imported. They are environment variables, so that programs
# started by tests run on the same devices and find the same compiled code.
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
  flags = [os.environ.get("XLA_FLAGS", ""), f"{_DEVICES}=8"]
  # Tests compile more than they compute. Optimised code rounds otherwise:
  # `make slow` runs what is marked "rounding" once more, optimised.
  if not os.environ.get("JAXDP_TEST_OPTIMISED"):
    flags += [
      "--xla_backend_optimization_level=0",
      "--xla_llvm_disable_expensive_passes=true",
      "--xla_cpu_use_fusion_emitters=false",
      "--xla_cpu_parallel_codegen_split_count=1",
    ]
  os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# No deadline: the first example of a test compiles, the others do not.
hypothesis.settings.register_profile(
  "jaxdp",
  derandomize=True,
  deadline=None,
  database=None,
  max_examples=50,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxdp")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """The folder of the public datasets in TFDS format; skips without it."""
  named = os.environ.get("JAXDP_DATA_DIR")
  folder = pathlib.Path(named or _ROOT.parent / "shared" / "datasets")
  if not folder.is_dir():
    pytest.skip(
      f"no datasets at {folder}; set JAXDP_DATA_DIR to a folder that holds "
      "mnist/, cifar10/ ... as written by TFDS"
    )
  return folder
