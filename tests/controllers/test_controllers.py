"""The contract that every controller and wrapper keeps."""

import json
import math
import pathlib
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from adabatch import controllers as c
from adabatch.controllers import buckets

B0 = 64  # sizes must be floats all the same
TABLE = '0:64 1K:96 3K:128'
SIZES = (16, 32, 64, 128, 256, 512)  # for rules that choose among some


def decay_schedule(examples):
  """Warmup, then a decay to exactly 0."""
  return 0.1 * min(examples / 500, 1.0) * max(1 - examples / 8000, 0.0)


# One line for each rule, variant and wrapper; the key of a rule starts with
# its name in CONTROLLERS.
CASES = {
  'constant': lambda **kw: c.constant(initial_batch_size=B0),
  'adadamp full': lambda **kw: c.adadamp(
    initial_batch_size=B0, loss_source='full', **kw
  ),
  'adadamp power': lambda **kw: c.adadamp(
    initial_batch_size=B0, loss_source='full', exponent=4.76, **kw
  ),
  'adadamp subset': lambda **kw: c.adadamp(
    initial_batch_size=B0, loss_source='subset', minimum_loss=0.05, **kw
  ),
  'adadamp ema': lambda **kw: c.adadamp(
    initial_batch_size=B0, loss_source='ema', **kw
  ),
  'adadamp ema first': lambda **kw: c.adadamp(
    initial_batch_size=B0, initial_updates=9, **kw
  ),
  'adadamp_grad full': lambda **kw: c.adadamp_grad(
    initial_batch_size=B0, gradient_source='full', **kw
  ),
  'adadamp_grad subset': lambda **kw: c.adadamp_grad(
    initial_batch_size=B0, gradient_source='subset', **kw
  ),
  'adadamp_grad ema': lambda **kw: c.adadamp_grad(
    initial_batch_size=B0, gradient_source='ema', **kw
  ),
  'adadamp_grad ema first': lambda **kw: c.adadamp_grad(
    initial_batch_size=B0, initial_updates=9, **kw
  ),
  'radadamp': lambda **kw: c.radadamp(initial_batch_size=B0, window=3, **kw),
  'radadamp median': lambda **kw: c.radadamp(
    initial_batch_size=B0, window=4, reduction='median', initial_updates=9, **kw
  ),
  'padadamp': lambda **kw: c.padadamp(initial_batch_size=B0, rate=0.3),
  'geodamp': lambda **kw: c.geodamp(
    initial_batch_size=B0, factor=2, delay_epochs=1
  ),
  'step_table': lambda **kw: c.step_table(table=TABLE),
  'step_table epochs': lambda **kw: c.step_table(
    table=[(0, 64), (2.5, 96)], unit='epochs'
  ),
  'ramp_up': lambda **kw: c.ramp_up(
    initial_batch_size=B0, final_batch_size=256, increment=16, examples=4000
  ),
  'from_lr_schedule': lambda **kw: c.from_lr_schedule(
    decay_schedule, initial_batch_size=B0
  ),
  'noise_scale': lambda **kw: c.noise_scale(initial_batch_size=B0, **kw),
  'norm_test': lambda **kw: c.norm_test(initial_batch_size=B0),
  'cabs': lambda **kw: c.cabs(initial_batch_size=B0, **kw),
  'probe': lambda **kw: c.probe(initial_batch_size=B0),
  'goodput': lambda **kw: c.goodput(initial_batch_size=B0, sizes=SIZES, **kw),
  'goodput devices': lambda **kw: c.goodput(
    initial_batch_size=B0,
    sizes=SIZES,
    devices=lambda size: max(1, int(size) // 64),
    per='device_second',
    **kw,
  ),
}
FLOOR_CASES = [name for name in CASES if name.split()[0] in {
  'adadamp', 'adadamp_grad', 'radadamp', 'noise_scale', 'cabs', 'goodput'
}]  # fmt: skip
WRAPPED = {
  'every': lambda: c.every(CASES['adadamp ema'](), updates=5, wait=7),
  'every every': lambda: c.every(
    c.every(CASES['adadamp full'](), updates=2), updates=3
  ),
  'monotone': lambda: c.monotone(CASES['cabs']()),
  'smooth': lambda: c.smooth(CASES['noise_scale'](), rho=0.7),
  'limit_growth': lambda: c.limit_growth(CASES['adadamp full'](), factor=1.1),
  'hysteresis': lambda: c.hysteresis(CASES['padadamp'](), ratio=1.2),
  'all wrappers': lambda: c.limit_growth(
    c.hysteresis(
      c.monotone(c.smooth(c.every(CASES['radadamp'](), 3), 0.5)), 1.05
    ),
    factor=1.5,
  ),
}
ALL = CASES | WRAPPED
COUNTERS = ('update', 'examples', 'epoch')
NON_FINITE = (math.nan, math.inf, -math.inf)
HOSTILE = (*NON_FINITE, None, 0.0, -1.0, 1e308, -1e308, 5e-324)


def random_signals(seed, num=60, growth=-0.03):
  """The signals of a run whose loss and gradient change by e^growth."""
  rng, other = np.random.default_rng(seed), random.Random(seed)
  result = []
  examples = 0
  for k in range(num):
    scale = math.exp(growth * k)
    noise = lambda: float(np.exp(0.2 * rng.normal()))  # noqa: B023, E731
    last = k > 0  # nothing has been trained on before the first update
    size = other.choice(SIZES)
    result.append(
      c.Signals(
        update=k,
        examples=examples,
        epoch=examples / 1000,
        loss=2.3 * scale * noise() if last else None,
        full_loss=2.3 * scale * noise(),
        subset_loss=2.3 * scale * noise(),
        gradient_norm_squared=5 * scale * noise() if last else None,
        full_gradient_norm_squared=4 * scale * noise(),
        subset_gradient_norm_squared=4 * scale * noise(),
        gradient_noise=c.GradientNoise(
          300 * noise() - 30 * rng.normal(),
          4 * scale * noise() - 0.5 * rng.normal(),
        )
        if last
        else None,
        learning_rate=0.5 * noise() if last else None,
        critical_batch_size=B0 * noise() / scale,
        batch_size=size if last else None,
        seconds_per_update=(0.02 + 1e-4 * size) * other.uniform(0.9, 1.1)
        if last
        else None,
      )
    )
    examples += int(rng.integers(64, 200))
  return result


def run(controller, signals, state=None):
  state = controller.init() if state is None else state
  sizes = []
  for s in signals:
    size, state = controller.update(state, s)
    sizes.append(size)
  return sizes, state


def ignored(state):
  """The rule's count, under any number of wrappers."""
  return ignored(state.inner) if hasattr(state, 'inner') else state.ignored


def replaced(signals, **fields):
  return [s._replace(**fields) for s in signals]


def measured(controller):
  """What the rule itself needs: a wrapper needs `update` for its `due`."""
  is_wrapper = hasattr(controller.init(), 'inner')
  return controller.needs - ({'update'} if is_wrapper else set())


def poisoned(field, value):
  """What a hostile value of one signal looks like."""
  if field == 'gradient_noise' and value is not None:
    return c.GradientNoise(value, value)
  return value


def test_every_rule_has_a_case():
  assert {name.split()[0] for name in CASES} == set(c.CONTROLLERS)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('growth', [-0.03, 0.03])
def test_sizes_are_finite_floats_of_at_least_one(name, growth):
  sizes, _ = run(ALL[name](), random_signals(0, growth=growth))
  assert all(type(size) is float for size in sizes)
  assert all(math.isfinite(size) and size >= 1 for size in sizes)


@pytest.mark.parametrize('name', [n for n in ALL if n != 'constant'])
def test_the_size_moves_at_all(name):
  sizes, _ = run(ALL[name](), random_signals(0, num=80))
  assert len(set(sizes)) > 1


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('cut', [0, 1, 7, 30])
def test_state_survives_json_mid_run(name, cut):
  signals = random_signals(1)
  controller = ALL[name]()
  sizes, last = run(controller, signals)
  _, state = run(controller, signals[:cut])
  text = json.dumps(c.state_to_json(state), allow_nan=False)
  # A new controller, as after a restart.
  controller = ALL[name]()
  restored = c.state_from_json(controller.init(), json.loads(text))
  assert restored == state
  resumed, resumed_last = run(controller, signals[cut:], restored)
  assert resumed == sizes[cut:]
  assert resumed_last == last


@pytest.mark.parametrize('name', ALL)
def test_update_is_pure(name):
  controller, other = ALL[name](), ALL[name]()
  state = controller.init()
  for s in random_signals(2):
    before = repr(state)
    first = controller.update(state, s)
    run(other, random_signals(3, num=2))  # no state shared behind the scenes
    assert controller.update(state, s) == first
    assert repr(state) == before
    hash(state)  # only immutable parts
    state = first[1]


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('seed', [0, 1])
def test_size_changes_only_where_due(name, seed):
  controller = ALL[name]()
  signals = random_signals(seed)
  sizes, _ = run(controller, signals)
  for k in range(1, len(sizes)):
    assert controller.due(k) or sizes[k] == sizes[k - 1]
  assert controller.due(0)


@pytest.mark.parametrize('name', ALL)
def test_expensive_signals_are_read_only_where_due(name):
  controller = ALL[name]()
  signals = random_signals(4)
  nothing = {
    field: None
    for field in c.Signals._fields
    if field.startswith(('full_', 'subset_'))
  }
  thinned = [
    s if controller.due(s.update) else s._replace(**nothing) for s in signals
  ]
  assert run(controller, signals)[0] == run(controller, thinned)[0]


@pytest.mark.parametrize('name', ALL)
def test_needs_declares_all_that_is_read(name):
  controller = ALL[name]()
  assert controller.needs <= set(c.Signals._fields)
  signals = random_signals(5)
  others = set(c.Signals._fields) - controller.needs - {'update'}
  for value in (math.nan, None):
    fields = {field: poisoned(field, value) for field in others}
    assert run(controller, replaced(signals, **fields)) == run(
      controller, signals
    )


@pytest.mark.parametrize('name', CASES)
def test_needs_declares_nothing_in_vain(name):
  controller = CASES[name]()
  signals = random_signals(5)
  for field in measured(controller):
    poison = replaced(signals, **{field: poisoned(field, math.nan)})
    assert run(controller, poison)[0] != run(controller, signals)[0]


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('value', HOSTILE, ids=str)
def test_hostile_signals(name, value):
  controller = ALL[name]()
  signals = random_signals(6)
  _, state = run(controller, signals[:20])
  needs = controller.needs
  for field in sorted(needs):
    if field in COUNTERS and value is None:
      continue  # the loop always counts
    poison = replaced(signals[20:40], **{field: poisoned(field, value)})
    if value is None:
      with pytest.raises(c.MissingSignal):
        run(controller, poison, state)
      continue
    sizes, _ = run(controller, [*poison, *signals[40:]], state)
    assert all(math.isfinite(size) and size >= 1 for size in sizes)
  fields = {
    field: poisoned(field, value)
    for field in c.Signals._fields
    if field not in COUNTERS and not (value is None and field in needs)
  }
  poison = replaced(signals[20:40], **fields)
  sizes, _ = run(controller, [*poison, *signals[40:]], state)
  assert all(math.isfinite(size) and size >= 1 for size in sizes)


# Beside what is hostile: what a run may measure, and what overflows squared.
ANY = (*(v for v in HOSTILE if v is not None), 1.0, 2.3, 1e-12, 1e12, 1e154)


@pytest.mark.parametrize('name', ALL)
def test_any_signals_give_a_size_that_can_be_run(name):
  """In any order and from the first, with counts as large as they can be."""
  ladder = buckets.ladder(1, 512, devices=2)
  for seed in range(20):
    rng = random.Random(seed)
    controller = ALL[name]()
    state = controller.init()
    for k in range(25):
      large = 10 ** rng.randrange(30) if rng.random() < 0.1 else 1
      x = [rng.choice(ANY) for _ in range(12)]
      noise = c.GradientNoise(*x[:2])
      counts = k * large, 64 * k * large, k * large / 9
      signals = c.Signals(*counts, *x[2:8], noise, *x[8:])
      try:
        size, state = controller.update(state, signals)
      except ValueError as error:
        if 'minimum_loss' not in str(error):  # F* is above the first loss
          raise
        break
      plan = buckets.plan(size, ladder)  # refuses what is no size
      assert isinstance(size, float)
      assert 1 <= plan.batch_size <= 512
      assert 0 < plan.damping <= 1
      json.dumps(c.state_to_json(state), allow_nan=False)


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('value', NON_FINITE)
def test_unusable_signal_keeps_the_size(name, value):
  controller = CASES[name]()
  signals = random_signals(7)
  sizes, state = run(controller, signals[:31])
  for field in measured(controller):
    poison = signals[31]._replace(**{field: poisoned(field, value)})
    size, after = controller.update(state, poison)
    assert size == sizes[-1]
    assert ignored(after) - ignored(state) == 1
    # The bad signal leaves no other trace.
    assert after == state._replace(**(
      {'inner': after.inner} if hasattr(state, 'inner')
      else {'ignored': state.ignored + 1}
    ))  # fmt: skip


NEEDY = [name for name in CASES if name != 'constant']


@pytest.mark.parametrize('name', NEEDY)
def test_a_missing_signal_is_named_where_a_decision_is_due(name):
  """Wrapped, between two decisions, it changes nothing."""
  rule = CASES[name]()
  signals = random_signals(7)
  for field in sorted(measured(rule)):
    if field == 'update':
      continue  # which is always there
    lacking = replaced(signals, **{field: None})
    _, state = run(rule, signals[:31])
    with pytest.raises(c.MissingSignal, match=repr(field)) as error:
      rule.update(state, lacking[31])
    assert name.split()[0] in str(error.value)
    assert '\n' not in str(error.value)
    controller = c.every(rule, updates=10, wait=5)
    sizes, state = run(controller, signals[:36])
    held = run(controller, lacking[36:45], state)
    assert held == ([sizes[-1]] * 9, state)
    with pytest.raises(c.MissingSignal, match='update 45'):
      controller.update(state, lacking[45])


@pytest.mark.parametrize('name', NEEDY)
def test_before_the_first_update_only_measurements_are_missed(name):
  """There is no minibatch loss yet, but F(x_0) and the counts are known."""
  controller = CASES[name]()
  known = controller.needs - {'update'}
  for_updates = {
    'loss', 'gradient_norm_squared', 'gradient_noise', 'learning_rate',
    'batch_size', 'seconds_per_update',
  }  # fmt: skip
  if known <= for_updates:
    assert run(controller, [c.Signals()])[0] == [B0]
  else:
    with pytest.raises(c.MissingSignal, match='update 0'):
      controller.update(controller.init(), c.Signals())


@pytest.mark.parametrize('name', CASES)
def test_first_signals_may_be_unusable(name):
  controller = CASES[name]()
  signals = random_signals(8)
  fields = {field: poisoned(field, math.nan) for field in controller.needs}
  first, state = run(controller, replaced(signals[:3], **fields))
  assert first == [B0] * 3
  sizes, _ = run(controller, signals[3:], state)
  assert all(math.isfinite(size) and size >= 1 for size in sizes)


@pytest.mark.parametrize('name', FLOOR_CASES)
@pytest.mark.parametrize('seed', [0, 1])
def test_initial_size_is_the_floor_unless_told_otherwise(name, seed):
  signals = [
    s._replace(
      learning_rate=1e-3,
      gradient_noise=s.gradient_noise
      and s.gradient_noise._replace(trace_covariance=1.0),
    )
    for s in random_signals(seed, growth=0.05)
  ]
  sizes, _ = run(CASES[name](), signals)
  assert min(sizes) == B0
  free, _ = run(CASES[name](floor=False), signals)
  assert {type(size) for size in [*sizes, *free]} == {float}
  assert 1 <= min(free) < B0


@pytest.mark.parametrize('name', sorted(set(CASES) - {'step_table epochs'}))
def test_first_size_is_the_initial_one(name):
  assert run(CASES[name](), random_signals(9)[:1])[0] == [B0]


def test_importing_controllers_does_not_import_jax():
  code = (
    'import sys, adabatch.controllers; '
    'print(sorted(m for m in sys.modules if m.split(".")[0] in '
    '("jax", "jaxlib", "flax", "optax")))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == '[]'


def test_json_of_a_tuple_of_any_length():
  template = c.radadamp(initial_batch_size=8).init()
  for values in ((), (0.1,), (1.0, math.inf, 2.5)):
    state = template._replace(losses=values, norms=values)
    text = json.dumps(c.state_to_json(state), allow_nan=False)
    assert c.state_from_json(template, json.loads(text)) == state
  for wrong in (None, 3.0, ['x'], [None], {'0': 1.0}):
    data = c.state_to_json(template) | {'losses': wrong}
    with pytest.raises(ValueError, match='restore with the controller'):
      c.state_from_json(template, data)


def test_json_keeps_every_number():
  numbers = (0.1, 1e-320, -0.0, *NON_FINITE, 3, 2**60 + 1, None, 0.1)
  template = (*[0.0] * 6, 0, 0, None, None)
  text = json.dumps(c.state_to_json(numbers), allow_nan=False)
  restored = c.state_from_json(template, json.loads(text))
  assert repr(restored) == repr(numbers)


@pytest.mark.parametrize(
  'data',
  [
    {},
    {'inner': {'batch_size': 1.0}, 'batch_size': 64.0},
    {'inner': {'batch_size': 'x', 'ignored': 0}, 'batch_size': 64.0},
    {'inner': {'batch_size': 1.0, 'ignored': 0.5}, 'batch_size': 64.0},
    {'inner': {'batch_size': None, 'ignored': 0}, 'batch_size': 64.0},
    {'inner': {'batch_size': 1.0, 'ignored': 0}, 'batch_size': [64.0]},
    {'inner': [1.0, 0], 'batch_size': 64.0},
    [],
    3.0,
    None,
  ],
)
def test_json_of_another_structure_is_refused(data):
  template = c.every(c.constant(initial_batch_size=8)).init()
  with pytest.raises(ValueError, match='restore with the controller') as error:
    c.state_from_json(template, data)
  assert '\n' not in str(error.value)


BAD_SIZES: list[Any] = [0, 0.5, -1, math.nan, math.inf, '8']


def wrapped(wrapper, *args, **kwargs):
  return lambda: wrapper(c.constant(initial_batch_size=8), *args, **kwargs)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    *[
      (lambda f=f, b=b: f(initial_batch_size=b), 'initial_batch_size=.*>= 1')
      for f in (
        c.constant, c.adadamp, c.adadamp_grad, c.radadamp, c.geodamp,
        c.noise_scale, c.norm_test, c.cabs,
      )
      for b in BAD_SIZES
    ],
    (lambda: c.adadamp(initial_batch_size=8, loss_source='x'),
     "loss_source='x'.* full, subset, ema"),
    (lambda: c.adadamp_grad(initial_batch_size=8, gradient_source='x'),
     'full, subset, ema'),
    (lambda: c.adadamp(initial_batch_size=8, decay=1.0), 'decay=1.0.*< 1'),
    (lambda: c.adadamp(initial_batch_size=8, exponent=0), 'exponent=0.*> 0'),
    (lambda: c.adadamp(initial_batch_size=8, minimum_loss=math.nan),
     'minimum_loss'),
    (lambda: c.radadamp(initial_batch_size=8, rho=1), 'rho'),
    (lambda: c.radadamp(initial_batch_size=8, window=0), 'window'),
    (lambda: c.radadamp(initial_batch_size=8, reduction='x'),
     'min, mean, median, max'),
    *[(lambda f=f: f(initial_batch_size=8, initial_updates=0),
       'initial_updates=0')
      for f in (c.adadamp, c.adadamp_grad, c.radadamp)],
    (lambda: c.parse_ramp('32 32'), "'32 32' is malformed.*increment"),
    (lambda: c.parse_olmo('batch_sizes=[B], schedule=[Duration.tokens(0)]'),
     'B is no number'),
    (lambda: c.parse_olmo('batch_sizes=[8, 16], schedule=[Duration.tokens(0)]'),
     '2 sizes and 1 durations'),
    (lambda: c.parse_olmo('batch_sizes=[8], schedule=[Duration.steps(0)]'),
     r'Duration.steps\(0\) is not in tokens'),
    (lambda: c.parse_olmo('batch_sizes=[8], schedule=[Duration.tokens(9)]'),
     'does not start at 0'),
    (lambda: c.parse_olmo('batch_sizes=[8]'), 'it needs two lists'),
    (lambda: c.parse_olmo('batch_sizes=[8'), 'is malformed'),
    (lambda: c.read_table('batch_sizes=[9], schedule=[Duration.tokens(0)]',
                          'tokens', 8), '9 tokens is no whole number'),
    (lambda: c.read_table('batch_sizes=[8], schedule=[Duration.tokens(0)]',
                          'examples', 8), "set unit to 'tokens'"),
    (lambda: c.step_table(table='0:8', unit='tokens'), 'tokens_per_example'),
    (lambda: c.padadamp(initial_batch_size=8, rate=-1), 'rate=-1.*>= 0'),
    (lambda: c.padadamp_rate(initial_batch_size=8, max_batch_size=4,
                             epochs=1, num_examples=9), 'max_batch_size'),
    (lambda: c.geodamp(initial_batch_size=8, factor=0.5), 'factor'),
    (lambda: c.geodamp(initial_batch_size=8, delay_epochs=0), 'delay_epochs'),
    *[
      (lambda t=t: c.step_table(table=t), 'table=')  # pyright: ignore
      for t in ('', '0', '0:', '0:64:3', '0:x', '0:64 5Q:128', '0:64 0:128',
                '9:64', '0:64 5:0', '0:64 9:96 5:128', '-1:64', '0:inf',
                'nan:64', [], [(0,)], [0, 64], None)
    ],
    (lambda: c.step_table(table='0:64', unit='steps'), 'examples, epochs'),
    (lambda: c.ramp_up(initial_batch_size=8, final_batch_size=16, increment=3,
                       examples=9), 'divisor'),
    (lambda: c.ramp_up(initial_batch_size=8, final_batch_size=4, increment=1,
                       examples=9), 'final_batch_size'),
    (lambda: c.ramp_up(initial_batch_size=8, final_batch_size=16, increment=0,
                       examples=9), 'increment'),
    (lambda: c.ramp_up(initial_batch_size=8, final_batch_size=16, increment=8,
                       examples=0), 'examples'),
    (lambda: c.from_lr_schedule(0.1, initial_batch_size=8), 'schedule=0.1'),  # pyright: ignore
    (lambda: c.noise_scale(initial_batch_size=8, c=0), 'c=0'),
    (lambda: c.norm_test(initial_batch_size=8, eta=0), 'eta=0'),
    (lambda: c.norm_test(initial_batch_size=8, eta=1e-200), 'eta=1e-200'),
    (lambda: c.norm_test(initial_batch_size=8, eta=1e200), 'eta=1e\\+200'),
    (lambda: c.cabs(initial_batch_size=8, c=-1), 'c=-1'),
    *[
      (lambda kw=kw: c.goodput(**{'initial_batch_size': 8, 'sizes': (8,)} | kw),
       message)
      for kw, message in (
        ({'initial_batch_size': 0}, 'initial_batch_size=0.*>= 1'),
        ({'sizes': ()}, 'sizes=.*at least one'),
        ({'sizes': (8, 8)}, r'sizes=\(8, 8\).*increasing'),
        ({'sizes': (0.5, 8)}, 'sizes=0.5'),
        ({'per': 'hour'}, "per='hour'.*second, device_second"),
        ({'gain': 0.9}, 'gain=0.9.*>= 1'),
        ({'decay': 1}, 'decay=1.*< 1'),
      )
    ],
    (wrapped(c.every, updates=0), 'updates'),
    (wrapped(c.every, wait=-1), 'wait'),
    (wrapped(c.smooth, rho=1), 'rho'),
    (wrapped(c.limit_growth, factor=1), 'factor'),
    (wrapped(c.hysteresis, ratio=1), 'ratio'),
  ],
)  # fmt: skip
def test_bad_arguments_are_refused_in_one_line(make, message):
  with pytest.raises(ValueError, match=message) as error:
    make()
  assert '\n' not in str(error.value)
