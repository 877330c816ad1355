"""A small survey in a child process, to be killed; see `test_executors.py`.

    python -m tests.survey_kills --workdir=/tmp/survey --workers=2

makes it on a Ray cluster of two workers; with none, on the local devices.
"""

import argparse
import contextlib
import random
import time

import psutil

from tests import kills


def survey(num_runs=40):
  """Two groups of short runs, whose accounting is soon done."""
  from tests import test_survey

  law = {
    "name": "random",
    "num_runs": num_runs,
    "seed": 1,
    "factors": [
      {"name": "lr", "low": 0.01, "high": 1.0, "scale": "log"},
      {"name": "C", "low": 0.1, "high": 1.0},
      {"name": "q", "values": [0.02, 0.15]},
    ],
  }
  model = {"name": "mlp", "seed": 0, "num_classes": 10, "hidden": ()}
  return test_survey.survey(
    base={**test_survey.BASE, "model": model},
    law=law,
    cells=[{**test_survey.CELL, "epsilon": 0.5, "num_steps": 6}],
    repeats={},
  )


def start(workdir, workers=0, **environment):
  """A child that prints a line when it begins, and one after each run."""
  arguments = [f"--workdir={workdir}", f"--workers={workers}"]
  return kills.start("tests.survey_kills", *arguments, **environment)


def kill_workers(child, count, seed):
  """Kills so many of the processes in which Ray makes runs, at random."""
  rng = random.Random(seed)
  for _ in range(count):
    child.stdout.readline()  # no death without a run in between
    time.sleep(rng.uniform(0, 0.1))
    while not (workers := at_work(child)):
      assert child.poll() is None, "the survey ended before all kills"
      time.sleep(0.05)
    rng.choice(workers).kill()


def at_work(child):
  """The processes of Ray that are in a task."""
  found = []
  for process in psutil.Process(child.pid).children(recursive=True):
    with contextlib.suppress(psutil.Error):
      if "ray::_runs" in " ".join(process.cmdline()):
        found.append(process)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir")
  parser.add_argument("--workers", type=int)
  args = parser.parse_args()
  from jaxdp import studies

  executor = studies.LocalExecutor()
  if args.workers:
    executor = studies.RayExecutor(num_cpus=args.workers)

  def telling(*given):
    for row in executor(*given):
      yield row
      print("run", flush=True)
      time.sleep(0.05)  # a kill leaves few runs the time to be made

  print("begin", flush=True)
  assert studies.run_survey(
    survey(), args.workdir, progress=False, executor=telling
  )


if __name__ == "__main__":
  main()
