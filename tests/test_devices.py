"""Rows shared among devices and processes: the same parameters to rounding."""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxdp
from jaxdp import training
from jaxdp.training import _sharding
from tests import toy
from tests.processes import released, train

ROOT = pathlib.Path(__file__).resolve().parent.parent


def mesh(devices):
  return training.data_mesh(jax.devices()[:devices])


def fit(devices, workdir=None, **changes):
  """A run of Poisson batches with padding, in one call."""
  flags = {"mesh": None if devices is None else mesh(devices)}
  flags |= changes.pop("flags", {})
  arguments = {
    "mechanism": toy.mechanism(toy.poisson(max_batch_size=None), 2.0),
    "seed": 5,
    "log_every": 12,
    "checkpoint_every": 12,
    "performance": jaxdp.PerformanceFlags(**flags),
  }
  return toy.fit(workdir, **{**arguments, **changes})


@pytest.fixture(scope="module")
def alone():
  """The parameters of one device, without a mesh."""
  return fit(None)[0].params


@pytest.mark.parametrize(
  "devices",
  [
    2,
    8,
    pytest.param(1, marks=pytest.mark.slow),
    # 48 rows: padding makes them as many on each.
    pytest.param(5, marks=pytest.mark.slow),
  ],
)
def test_any_number_of_devices_gives_the_same_parameters(alone, devices):
  state, history = fit(devices)
  toy.assert_close(state.params, alone)
  kernel = state.params["kernel"]
  assert kernel.sharding.is_fully_replicated
  assert len(kernel.sharding.device_set) == devices
  assert history.ledger.num_steps == 12


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_gives_the_same_bits_of_noise(devices):
  zeros = jax.tree.map(np.zeros_like, toy.dataset())  # so are all gradients
  expected, _ = fit(None, dataset=zeros)
  state, _ = fit(devices, dataset=zeros)
  toy.assert_same(state.params, expected.params)


@pytest.mark.slow
def test_streamed_rows_reach_their_devices(alone):
  state, _ = fit(8, dataset=toy.Reader())
  toy.assert_close(state.params, alone)


@pytest.mark.slow
def test_microbatches_on_devices_change_nothing(alone):
  state, _ = fit(2, flags={"microbatch_size": 5})
  toy.assert_close(state.params, alone)


UNITS = {
  "buckets": {
    "loss_fn": jaxdp.units.mean_over_records(toy.loss_fn),
    "mechanism": toy.mechanism(
      jaxdp.sampling.Buckets(
        num_examples=48, expected_batch_size=12, num_buckets=6, bucket_size=6
      )
    ),
  },
  "inner momentum": {"inner_momentum": jaxdp.InnerMomentum(3)},
  "a public batch": {
    "mechanism": toy.mechanism(rule=jaxdp.clipping.preconditioned(0.3)),
    "public_batch": jaxdp.PublicBatch(toy.dataset(5, seed=3), 1),
  },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_every_kind_of_unit_is_shared_among_devices(name):
  one, eight = (
    toy.fit(
      **{"num_steps": 3, "seed": 5, **UNITS[name]},
      performance=jaxdp.PerformanceFlags(mesh=where),
    )[0]
    for where in (None, mesh(8))
  )
  toy.assert_close(eight.params, one.params)


@pytest.mark.slow
def test_training_without_privacy_is_shared_among_devices_too():
  changes = {"mechanism": None, "sampler": toy.poisson(), "seed": 5}
  one, _ = toy.fit(**changes)
  flags = jaxdp.PerformanceFlags(mesh=mesh(8))
  eight, _ = toy.fit(performance=flags, **changes)
  toy.assert_close(eight.params, one.params)


@pytest.mark.slow
def test_diagnostics_see_all_devices():
  sampler = toy.poisson()
  seen = []
  for devices in (None, 8):
    step = jaxdp.make_train_step(
      toy.loss_fn,
      toy.mechanism(sampler),
      optax.sgd(1.0),
      mesh=None if devices is None else mesh(devices),
      diagnostics=True,
    )
    state = step.init(toy.params(), toy.key())
    batch, mask = toy.batch(sampler)
    if devices:
      order = _sharding.lay_out(np.arange(24), devices, 0)
      batch, mask = {k: v[order] for k, v in batch.items()}, mask[order]
    seen.append(step(state, batch, mask)[1].sensitive)
  toy.assert_close(seen[1]._asdict(), seen[0]._asdict())


@pytest.mark.slow
def test_a_run_on_several_devices_resumes_bit_for_bit(tmp_path):
  expected, _ = fit(2)
  workdir = tmp_path / "run"
  fit(2, workdir, checkpoint_every=4, log_every=4, keep_checkpoints=4)
  (workdir / "checkpoints" / "12").rename(tmp_path / "lost")
  state, history = fit(
    2, workdir, checkpoint_every=4, log_every=4, keep_checkpoints=4
  )
  toy.assert_close(state.params, expected.params)
  assert history.ledger.num_steps == 12
  assert history.ledger.incarnation == 0


def test_rows_are_dealt_out_so_that_every_device_has_some_padding():
  rows = np.arange(10)
  dealt = _sharding.lay_out(rows, 4, -1)
  assert dealt.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, -1, 3, 7, -1]
  where = _sharding.positions(12, 4)
  assert where.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
  assert _sharding.lay_out(rows, 1, -1).tolist() == rows.tolist()


def test_a_mesh_needs_a_data_axis():
  devices = Mesh(np.array(jax.devices()[:2]), ("model",))
  with pytest.raises(ValueError, match=r"axis named 'data'.*data_mesh"):
    jaxdp.make_train_step(
      toy.loss_fn, toy.mechanism(), optax.sgd(1.0), mesh=devices
    )


# Processes.


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("processes") / "two"
  return workdir, train(workdir, processes=2, devices=1)


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one(two_processes, tmp_path):
  train(tmp_path / "one", processes=1, devices=1)
  toy.assert_close(released(two_processes[0]), released(tmp_path / "one"))
  ledgers = [
    (folder / "ledger.json").read_text()
    for folder in (two_processes[0], tmp_path / "one")
  ]
  assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_of_two_processes_one_writes_the_run_directory(two_processes):
  workdir, texts = two_processes
  assert "test accuracy" in texts[0]
  assert "test accuracy" not in texts[1]
  names = {path.name for path in workdir.iterdir()}
  assert {"report.html", "ledger.json", "metrics.jsonl", "release"} <= names
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [4, 8]
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  versions = json.loads((workdir / "versions.json").read_text())
  assert versions["device"].startswith("2 x")
  assert not list(workdir.glob("**/*.partial"))


@pytest.mark.slow
def test_two_processes_resume_together(two_processes, tmp_path):
  workdir = two_processes[0]
  expected = released(workdir)
  (workdir / "checkpoints" / "8").rename(tmp_path / "lost")
  before = (workdir / "ledger.json").read_text()
  texts = train(workdir, processes=2, devices=1)
  assert "This training is (ε" in texts[0]
  toy.assert_same(released(workdir), expected)
  assert (workdir / "ledger.json").read_text() == before


@pytest.mark.slow
def test_two_processes_and_one_with_two_devices_are_not_the_same_machine(
  two_processes, tmp_path
):
  """Rounding may differ: what was lost is charged again."""
  workdir = two_processes[0]
  (workdir / "checkpoints" / "8").rename(tmp_path / "lost")
  texts = train(workdir, processes=1, devices=2)
  assert "4 lost steps are made with fresh randomness" in texts[0]
  assert "4 steps ran again with new noise" in texts[0]
