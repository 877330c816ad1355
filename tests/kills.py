"""A run that is killed with SIGKILL again and again, and what becomes of it.

    python -m tests.kills --kills=20 --seed=0

starts a training run in a process, kills that process at a random moment,
starts it again in the same run directory, and so on; at last it lets it finish.
Parameters and ledger must be those of a run that nobody disturbed, bit for bit.
`test_resume.py` does this too, as a slow test. More kills need more steps, some
42 each: --kills=200 --steps=9000.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 900


def train(workdir, num_steps):
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
    num_steps=num_steps,
    eval_fn=accuracy,
    eval_every=6,
    log_every=6,
    checkpoint_every=12,
    ema_decay=0.9,
  )


def start(module, *arguments, **environment):
  """A child on one device that runs a module, and finds compiled programs."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "",
    **environment,
  }
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache/jax"))
  return subprocess.Popen(
    [sys.executable, "-m", module, *arguments],
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )


def start_training(workdir, num_steps=STEPS):
  return start("tests.kills", f"--child={workdir}", f"--steps={num_steps}")


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


def again_and_again(start, kills, seed, most_lines, seconds, say):
  """Kills a child so many times, and lets the last one finish.

  Args:
    start: of a child, which prints a line now and then.
    kills: how many.
    seed: of the moments.
    most_lines: that a child prints before it is killed.
    seconds: within which some are killed, whatever they have printed by then.
    say: called with the number of each kill.
  """
  rng = random.Random(seed)
  for kill in range(1, kills + 1):
    child = start()
    early = rng.random() < 0.2  # during start, restore, compilation
    wait_for_lines(
      child,
      count=rng.randint(1, most_lines),
      seconds=rng.uniform(0, seconds) if early else 600,
    )
    try:
      child.wait(rng.uniform(0, 0.1))
    except subprocess.TimeoutExpired:
      child.kill()
    child.stdout.close()
    code = child.wait()
    assert code != 0, f"the child ended after {kill - 1} kills: too short"
    assert code == -9, f"the child failed by itself, with status {code}"
    say(kill)
  finish(start())


def wait_for_lines(child, count, seconds):
  """Until a child has printed so many lines, has ended, or time is over."""
  end = time.monotonic() + seconds
  pipe = child.stdout.fileno()
  while count > 0:
    left = max(0, end - time.monotonic())
    ready, _, _ = select.select([pipe], [], [], left)
    text = os.read(pipe, 1) if ready else b""
    if not text:
      return
    count -= text == b"\n"


def finish(child):
  child.communicate()
  assert child.returncode == 0, f"the child ended with {child.returncode}"


def kill_again_and_again(workdir, kills, seed, num_steps=STEPS, say=print):
  """Kills the run so many times, lets it finish, and returns its outcome."""
  again_and_again(
    lambda: start_training(workdir, num_steps),
    kills,
    seed,
    most_lines=7,  # evaluations
    seconds=3,
    say=lambda kill: say(f"kill {kill:3}: {where(workdir)}"),
  )
  return outcome(workdir)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--child")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--steps", type=int, default=STEPS)
  args = parser.parse_args()
  if args.child:
    train(pathlib.Path(args.child), args.steps)
    return
  with tempfile.TemporaryDirectory() as folder:
    whole, run = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "run"
    begin = time.monotonic()
    finish(start_training(whole, args.steps))
    expected = outcome(whole)
    print(f"undisturbed: {time.monotonic() - begin:.0f} s, {args.steps} steps")
    print(f"parameters   sha256 {expected[0]}")
    actual = kill_again_and_again(run, args.kills, args.seed, args.steps)
    print(f"parameters   sha256 {actual[0]}")
    for i, name in enumerate(["parameters", "ledger"]):
      same = actual[i] == expected[i]
      print(f"{name}: {'the same' if same else 'DIFFERENT'}")
    sys.exit(actual != expected)


if __name__ == "__main__":
  main()
