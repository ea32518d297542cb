"""Steps by the TPU's compiler: what the script makes of what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch.plan import hlo
from adabatch.plan.compiler import Compiled
from adabatch.plan.hlo import Collective, Cost
from benchmarks import flax_imagenet_step, page, tpu_steps


def made(cycles, *collectives):
  cost = Cost(cycles, 0.0, 0, collectives, 0)
  return Compiled(cost, {'temp': 3_000_000}, 1.0, None)


def test_exchanges_are_counted_by_kind_and_size():
  program = tpu_steps.PROGRAMS['resnet50_16x16']
  found = tpu_steps.said(
    program,
    made(
      3e6,
      Collective('all-gather', 49, 3e4, False, 32),
      Collective('all-gather', 4, 2e4, True, 32),
      Collective('all-reduce', 7, 99.0, False, 256),
      Collective('all-reduce', 1, 1e8, False, 256),
    ),
  )
  assert found['ms'] == pytest.approx(2.0)
  assert found['exchanges'] == {
    'small all-gather, 32 chips': 53,
    'small all-reduce, 256 chips': 7,
    'large all-reduce, 256 chips': 1,
  }
  (row,) = tpu_steps.rows({'resnet50_16x16': found})
  assert row['number'] == 7
  assert row['met'] == 'yes'


def test_a_branch_that_is_seldom_taken_is_counted_apart():
  text = """HloModule m, is_scheduled=true

%long (p: f32[]) -> f32[] {
  %a = f32[] copy(%p), backend_config={"estimated_cycles":"700"}
}

%short (q: f32[]) -> f32[] {
  %b = f32[] copy(%q), backend_config={"estimated_cycles":"20"}
}

ENTRY %main (x: f32[]) -> f32[] {
  %c = f32[] copy(%x), backend_config={"estimated_cycles":"1000"}
  %d = f32[] conditional(%c, %x, %x), branch_computations={%short, %long}
}
"""
  cost = hlo.read(text)
  assert (cost.cycles, cost.spared) == (1020, 700)
  found = tpu_steps.said(
    tpu_steps.PROGRAMS['resnet50'], Compiled(cost, {'temp': 0}, 1.0, None)
  )
  assert found['cycles'] == 1020
  assert found['spared_ms'] == pytest.approx(1e3 * 700 / 1.5e9)


def test_rows_judge_what_was_found():
  cycles = {'resnet50': 100.0, 'resnet50_no_bn': 87.0, 'flax': 101.0}

  def compile_(program):
    (name,) = (k for k, v in tpu_steps.PROGRAMS.items() if v is program)
    return made(1e6 * cycles[name])

  log = {}
  for new in tpu_steps.measured(log, 'before', list(cycles), compile_):
    log = new
  whole, share, against = log['rows']
  assert whole['ms'] == pytest.approx(100 / 1.5)
  assert share['percent'] == pytest.approx(13.0)
  assert share['met'] == 'no'
  assert against['ratio of cycles'] == pytest.approx(100 / 101)
  assert against['met'] == 'yes'
  # The page of all benchmarks shows them.
  lines = list(page.plain_rows(page.ESTIMATE, log))
  assert [line.goal for line in lines] == ['', '≤ 12 %', '≤ 1']
  # A later version does not forget what was before, nor other programs.
  cycles['flax'] = 99.0
  (log,) = tpu_steps.measured(log, 'now', ['flax'], compile_)
  assert set(log['found']) == {'before', 'now'}
  (log,) = tpu_steps.measured(log, 'before', ['flax'], compile_)
  assert set(log['found']['before']['programs']) == set(cycles)
  assert log['rows'] == []  # of now, of which there is no whole row
  text = '\n'.join(tpu_steps.tables(log))
  assert 'ratio of cycles 1.01' in text
  cycles['resnet50'] = 90.0
  (log,) = tpu_steps.measured(log, 'now', ['resnet50'], compile_)
  whole, against = log['rows']
  assert (whole['ms'], whole['before']) == pytest.approx((60.0, 100 / 1.5))
  assert against['before'] == pytest.approx(100 / 99)


def test_an_unknown_program_is_refused(capsys):
  with pytest.raises(SystemExit):
    tpu_steps.main(['--only=resnet20,resnet51'])
  assert "['resnet51'] are none of resnet50, " in capsys.readouterr().err


def test_flax_s_network_is_resnet_50():
  model = flax_imagenet_step.ResNet()
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.bfloat16)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  sizes = [x.size for x in jax.tree.leaves(shapes['params'])]
  assert sum(sizes) == 25_557_032


def test_flax_s_step_takes_the_mean_of_devices():
  """Two with the same images are one; the statistics are not exchanged."""
  model = flax_imagenet_step.ResNet((1,), 4, 3, jnp.float32)
  lowered = [
    flax_imagenet_step.lower(jax.devices()[:n], 2, model=model, side=8)
    for n in (1, 2)
  ]
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
  labels = np.array([0, 2], np.int32)
  variables = model.init(jax.random.key(0), images)
  params = jax.tree.map(np.asarray, variables['params'])
  tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
  results = []
  for n, program in zip((1, 2), lowered, strict=True):
    compiled = program.compile()
    own = jax.tree.map(
      lambda x, n=n: np.stack([np.asarray(x)] * n), variables['batch_stats']
    )
    arguments = (
      params,
      tx.init(params),
      own,
      np.concatenate([images] * n),
      np.concatenate([labels] * n),
    )
    placed = jax.device_put(arguments, compiled.input_shardings[0])
    new, _, statistics, (loss, _) = compiled(*placed)
    assert jax.tree.leaves(statistics)[0].shape[0] == n
    results.append(jax.device_get((new, loss)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    *results,
  )
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), results[0][0], params)
  assert min(moved['Dense_0'].values()) > 0
