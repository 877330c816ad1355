"""Executors of surveys: who makes the runs, and who dies, changes no table."""

import io
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
import types

import jax
import numpy as np
import pandas as pd
import psutil
import pytest

from jaxdp.studies import (
  LocalExecutor,
  RayExecutor,
  _executors,
  _ray_executor,
  _survey_groups,
  run_survey,
)
from jaxdp.studies._journal import Journal
from jaxdp.studies._progress import Runs
from jaxdp.studies._survey_groups import Group, spread
from tests import kills, survey_kills


def table(workdir):
  """The runs; each has one line in the journal."""
  runs = pd.read_parquet(workdir / "runs.parquet")
  lines = (workdir / "runs.jsonl").read_text().splitlines()
  assert sorted(json.loads(line)["run"] for line in lines) == [*runs.run]
  return runs


def assert_same(found, expected):
  """To rounding, which may move an example to another class."""
  numbers = ["accuracy", "test_loss"]
  pd.testing.assert_frame_equal(
    found.drop(columns=numbers), expected.drop(columns=numbers)
  )
  np.testing.assert_allclose(found.test_loss, expected.test_loss, rtol=1e-4)
  np.testing.assert_allclose(found.accuracy, expected.accuracy, atol=0.006)


# Groups without programs.


class Fake:
  """A group of runs that take some seconds of a clock of their own."""

  def __init__(self, runs, clock=None, error=None):
    self.rows = [{"run": run} for run in runs]
    self._clock, self._error = clock, error

  @property
  def work(self):
    return len(self.rows)

  def halves(self):
    return [
      Fake([row["run"] for row in self.rows[i::2]], self._clock, self._error)
      for i in range(2)
    ]

  def __call__(self, seconds=math.inf):
    for row in self.rows:
      if self._error:
        raise self._error
      if self._clock:
        if seconds <= 0:
          return
        self._clock.now += 1
        seconds -= 1
      yield row


def runs_of(groups):
  return [sorted(row["run"] for row in group.rows) for group in groups]


def test_groups_are_split_until_all_have_work():
  groups = [Fake(range(6)), Fake([6])]
  assert runs_of(spread(groups, 2)) == [[*range(6)], [6]]
  assert runs_of(spread(groups, 3)) == [[0, 2, 4], [1, 3, 5], [6]]
  assert len(spread(groups, 100)) == 7
  assert spread([], 4) == []


def test_every_device_makes_runs_until_none_is_left():
  seen = set()

  class Seeing(Fake):
    def __call__(self, seconds=math.inf):
      seen.add(jax.numpy.zeros(()).device)
      time.sleep(0.05)  # a device alone would make them all
      yield from super().__call__(seconds)

  groups = [Seeing([run]) for run in range(10)]
  devices = jax.local_devices()[:3]
  rows = LocalExecutor(devices)(groups)
  assert sorted(row["run"] for row in rows) == [*range(10)]
  assert seen == set(devices)


def test_a_group_gets_the_time_that_is_left(monkeypatch):
  clock = types.SimpleNamespace(now=0.0)
  clock.monotonic = lambda: clock.now
  monkeypatch.setattr(_executors, "time", clock)
  one = LocalExecutor(jax.local_devices()[:1])
  rows = one([Fake([0, 1, 2], clock), Fake([3, 4], clock)], seconds=4)
  assert [row["run"] for row in rows] == [0, 1, 2, 3]


def test_an_error_of_one_device_stops_all():
  groups = [Fake([0]), Fake([1], error=OSError("no data"))]
  with pytest.raises(OSError, match="no data"):
    list(LocalExecutor(jax.local_devices()[:2])(groups))


# Ray, played by a few lines.


class FakeRay:
  """Streams that end as a script says: which runs come, before what."""

  exceptions = types.SimpleNamespace(
    **{
      name: type(name, (Exception,), {})
      for name in (
        "WorkerCrashedError",
        "NodeDiedError",
        "OutOfMemoryError",
        "ObjectLostError",
      )
    }
  )

  def __init__(self, *scripts):
    self._scripts = iter(scripts)
    self.submitted = []

  def is_initialized(self):
    return True

  def cluster_resources(self):
    return {"CPU": 1.0}

  def remote(self, **_):
    def submit(survey, rows, deadline):
      self.submitted.append([row["run"] for row in rows])
      return self._stream(rows, *next(self._scripts))

    return lambda _: types.SimpleNamespace(remote=submit)

  def _stream(self, rows, count, error):
    for row in rows[:count]:
      yield lambda: row  # noqa: B023
    if error:
      yield lambda: (_ for _ in ()).throw(getattr(self.exceptions, error)())

  def wait(self, streams, num_returns):
    return streams[:num_returns], streams[num_returns:]

  def get(self, what):
    return what()

  def cancel(self, stream, force):
    stream.close()


def rows_by(monkeypatch, ray, **options):
  monkeypatch.setattr(_ray_executor, "_import_ray", lambda: ray)
  rows = [{"run": i, "num_steps": 9 - i, "q": 1, "num_examples": 1}
          for i in range(4)]  # fmt: skip
  groups = [Group(survey_kills.survey(), rows)]
  return [row["run"] for row in RayExecutor(**options)(groups)]


def test_runs_that_a_dead_worker_did_not_send_are_made_again(monkeypatch):
  ray = FakeRay(
    (2, "WorkerCrashedError"), (0, "NodeDiedError"), (1, "OutOfMemoryError"),
    (1, "ObjectLostError"),  # after its last run
  )  # fmt: skip
  assert rows_by(monkeypatch, ray) == [0, 1, 2, 3]
  assert ray.submitted == [[0, 1, 2, 3], [2, 3], [2, 3], [3]]


def test_workers_that_die_again_and_again_are_given_up(monkeypatch):
  ray = FakeRay((1, "WorkerCrashedError"), *[(0, "WorkerCrashedError")] * 9)
  with pytest.raises(RuntimeError, match="3 workers died one after another"):
    rows_by(monkeypatch, ray, max_deaths=2)
  assert len(ray.submitted) == 3


def test_ray_that_is_missing_is_named_with_the_remedy(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ImportError, match=r"pip install 'jaxdp\[ray\]'"):
    RayExecutor()


def test_options_that_contradict_each_other_are_refused(monkeypatch):
  monkeypatch.setattr(_ray_executor, "_import_ray", lambda: None)
  with pytest.raises(ValueError, match="num_cpus=2 is for address='local'"):
    RayExecutor("10.0.0.1:6379", num_cpus=2)
  with pytest.raises(ValueError, match="max_deaths must be >= 0, got -1"):
    RayExecutor(max_deaths=-1)


# Surveys.


@pytest.mark.slow
def test_two_devices_give_the_table_of_one(tmp_path):
  survey = survey_kills.survey(num_runs=5)
  for count in (1, 2):
    executor = LocalExecutor(jax.local_devices()[:count])
    assert run_survey(
      survey, tmp_path / str(count), progress=False, executor=executor
    )
  assert_same(table(tmp_path / "2"), table(tmp_path / "1"))
  with pytest.raises(ValueError, match=r"runs\.jsonl holds runs, and resume"):
    run_survey(survey, tmp_path / "1", progress=False, resume=False)


def test_runs_that_were_begun_before_the_deadline_are_kept(monkeypatch):
  survey = survey_kills.survey(num_runs=6)
  rows = survey.table().assign(noise_multiplier=2.0).to_dict("records")
  group, *_ = _survey_groups.groups(survey, rows)
  assert len(group.rows) > 2
  ticks = itertools.count()
  clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
  monkeypatch.setattr(_survey_groups, "time", clock)
  made = [row["run"] for row in group(seconds=2.5)]
  assert sorted(made) == sorted(row["run"] for row in group.rows[:2])


def test_a_run_that_comes_twice_is_kept_once(tmp_path):
  survey = survey_kills.survey(num_runs=2)

  def twice(groups, seconds):
    for row in (row for group in groups for row in group.rows):
      yield from (row, row)

  assert run_survey(survey, tmp_path, progress=False, executor=twice)
  assert len(table(tmp_path)) == 2


def test_a_journal_drops_the_line_that_a_crash_cut_short(tmp_path):
  path = tmp_path / "lines"
  line = '{"name": "ε"}\n'.encode()
  path.write_bytes(line + line[:11])  # half of a character
  journal = Journal(path)
  assert list(journal) == [{"name": "ε"}]
  journal.add({"name": "δ"})
  assert list(Journal(path)) == [{"name": "ε"}, {"name": "δ"}]


def test_a_bar_counts_runs_an_hour():
  text = io.StringIO()
  with Runs(100, 40, file=text, mininterval=0) as bar:
    bar.start_t -= 3600
    bar.update(20)
    bar.refresh()
  last = text.getvalue().split("\r")[-1]
  assert "60/100 runs, 20 runs/h [1:00:00<2:00:00]" in last


# Processes.


@pytest.fixture
def ray_folder():
  """A folder for Ray, whose sockets need a short path; nothing stays in it."""
  with tempfile.TemporaryDirectory(
    prefix="ray", dir="/tmp", ignore_cleanup_errors=True
  ) as folder:
    yield folder
    deadline = time.monotonic() + 60
    while left := [
      process.info["pid"]
      for process in psutil.process_iter(["pid", "cmdline"])
      if folder in " ".join(process.info["cmdline"] or ())
    ]:
      assert time.monotonic() < deadline, f"{left} outlived their driver"
      time.sleep(0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  kills.finish(survey_kills.start(workdir))
  return table(workdir)


def kill_again_and_again(start, count):
  kills.again_and_again(
    start, kills=count, seed=2, most_lines=2, seconds=15, say=lambda _: None
  )


@pytest.mark.slow
def test_a_survey_that_is_killed_ten_times_gives_the_same_table(
  undisturbed, tmp_path
):
  kill_again_and_again(lambda: survey_kills.start(tmp_path), count=10)
  assert_same(table(tmp_path), undisturbed)


@pytest.mark.slow
def test_so_it_does_on_two_workers_of_ray(undisturbed, tmp_path, ray_folder):
  pytest.importorskip("ray")
  kill_again_and_again(
    lambda: survey_kills.start(tmp_path, workers=2, RAY_TMPDIR=ray_folder),
    count=4,  # of half a minute; ten gave the same too
  )
  assert_same(table(tmp_path), undisturbed)


@pytest.mark.slow
def test_workers_of_ray_that_are_killed_change_no_table(
  undisturbed, tmp_path, ray_folder
):
  pytest.importorskip("ray")
  child = survey_kills.start(tmp_path, workers=2, RAY_TMPDIR=ray_folder)
  try:
    survey_kills.kill_workers(child, count=3, seed=1)
    kills.finish(child)
  finally:
    child.kill()
  assert_same(table(tmp_path), undisturbed)


_POOL = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing, os, time
from jaxdp.studies import _survey_plan
if __name__ == "__main__":
  context = multiprocessing.get_context("spawn")
  end = _survey_plan._end_with_parent
  with ProcessPoolExecutor(1, mp_context=context, initializer=end) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_searches_for_noise_end_with_a_survey_that_is_killed(tmp_path):
  script = tmp_path / "pool.py"
  script.write_text(_POOL)
  command = [sys.executable, str(script)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
    worker = psutil.Process(int(child.stdout.readline()))
    child.kill()
  worker.wait(60)
