"""Processes of `scripts/train.py`: one, or several that train together."""

import os
import pathlib
import socket
import subprocess
import sys

from jaxdp import models, training

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def start(workdir, processes=1, index=0, port=0, devices=1, **options):
  """One process of `scripts/train.py` on the digits.

  Args:
    workdir: of the run.
    processes: how many there are.
    index: which one this is.
    port: of process 0.
    devices: of each process.
    **options: other numbers of `config.training`.
  """
  options = {
    "seed": 5,
    "num_steps": 8,
    "checkpoint_every": 4,
    "log_every": 4,
    "eval_every": 4,
    "ema_decay": 0.5,
    **options,
  }
  command = [
    sys.executable,
    "scripts/train.py",
    "--config=configs/digits.py",
    f"--workdir={workdir}",
    *(f"--config.training.{name}={x}" for name, x in options.items()),
    "--config.model.num_features=100",
    "--config.sampler.expected_batch_size=32",
    "--config.privacy.target_epsilon=None",
    "--config.privacy.max_epsilon=None",
    "--config.privacy.noise_multiplier=2.0",
  ]
  if processes > 1:
    command += [
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={processes}",
      f"--process_id={index}",
    ]
  flag = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def train(workdir, processes, devices):
  """Runs all processes to their end; what each printed."""
  port = free_port()
  running = [
    start(workdir, processes, index, port, devices)
    for index in range(processes)
  ]
  try:
    texts = [child.communicate(timeout=300)[0] for child in running]
  finally:
    for child in running:
      child.kill()
  for child, text in zip(running, texts, strict=True):
    assert child.returncode == 0, text
  return texts


def released(workdir):
  like, _ = models.create(
    "random_features",
    seed=0,
    num_classes=10,
    input_shape=(8, 8, 1),
    num_features=100,
  )
  return training.load_release(workdir, like)
