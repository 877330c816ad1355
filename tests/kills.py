"""A run that is killed with SIGKILL again and again, and what becomes of it.

    python -m tests.kills --kills=20 --seed=0

starts a training run in a process, kills that process at a random moment,
starts it again in the same run directory, and so on; at last it lets it finish.
Parameters and ledger must be those of a run that nobody disturbed, bit for bit.
`test_resume.py` does this too, as a slow test.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_STEPS = 900


def train(workdir):
  """What a child does; the accountant takes most of its time."""
  from tests import toy

  def accuracy(params):
    print("evaluating", flush=True)
    return toy.accuracy(params)

  sampler = toy.poisson(max_batch_size=None)
  toy.fit(
    workdir,
    mechanism=toy.mechanism(sampler, noise_multiplier=2.0),
    seed=5,
    num_steps=_STEPS,
    eval_fn=accuracy,
    eval_every=6,
    log_every=6,
    checkpoint_every=12,
    ema_decay=0.9,
  )


def start(workdir):
  """A child on one device that trains there, and finds compiled programs."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "",
  }
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache/jax"))
  return subprocess.Popen(
    [sys.executable, "-m", "tests.kills", f"--child={workdir}"],
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )


def outcome(workdir):
  """Hash of the released parameters, and the text of the ledger."""
  from jaxdp import training
  from tests import toy

  params = training.load_release(workdir, toy.params())
  digest = hashlib.sha256(bytes(params["kernel"].tobytes())).hexdigest()
  return digest, (workdir / "ledger.json").read_text()


def where(workdir):
  """How far a run is, in words."""
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  step = max((int(name) for name in names if name.isdigit()), default=None)
  ledger = workdir / "ledger.json"
  text = ledger.read_text() if ledger.exists() else '{"next_step": 0}'
  return f"checkpoint at {step}, {json.loads(text)['next_step']} steps charged"


def kill_again_and_again(workdir, kills, seed, say=print):
  """Kills the run so many times, lets it finish, and returns its outcome."""
  rng = random.Random(seed)
  killed = 0
  while killed < kills:
    child = start(workdir)
    if rng.random() < 0.8:
      for _ in range(rng.randrange(1, 8)):
        child.stdout.readline()  # an evaluation
      delay = rng.uniform(0, 0.1)
    else:
      delay = rng.uniform(0, 3)  # during start, restore, compilation
    try:
      child.wait(delay)
    except subprocess.TimeoutExpired:
      child.kill()
    child.stdout.close()
    code = child.wait()
    if code == 0:
      raise AssertionError(f"the run ended after {killed} kills: too short")
    assert code == -9, f"the child failed by itself, with status {code}"
    killed += 1
    say(f"kill {killed:2}: {where(workdir)}")
  finish(workdir)
  return outcome(workdir)


def finish(workdir):
  child = start(workdir)
  child.communicate()
  assert child.returncode == 0, f"the child ended with {child.returncode}"


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--child")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  if args.child:
    train(pathlib.Path(args.child))
    return
  with tempfile.TemporaryDirectory() as folder:
    whole, run = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "run"
    begin = time.monotonic()
    finish(whole)
    expected = outcome(whole)
    print(f"undisturbed: {time.monotonic() - begin:.0f} s, {_STEPS} steps")
    print(f"parameters   sha256 {expected[0]}")
    actual = kill_again_and_again(run, args.kills, args.seed)
    print(f"parameters   sha256 {actual[0]}")
    for i, name in enumerate(["parameters", "ledger"]):
      same = actual[i] == expected[i]
      print(f"{name}: {'the same' if same else 'DIFFERENT'}")
    sys.exit(actual != expected)


if __name__ == "__main__":
  main()
