"""Plans of four experiments for two TPUs that are not there: docs/plans.md.

    pip install -e '.[tpu]'
    python docs/make_plans.py

It takes about an hour on two cores the first time; what the compiler says is
kept, so that it takes minutes afterwards. `--from_log` writes the tables anew
from docs/plans.json.
"""

import json
import pathlib
import runpy
import sys
import tempfile

from adabatch.plan.job import plan
from adabatch.report.plan_scaling import scaling_lines, scaling_tables
from adabatch.report.plan_table import (
  flops,
  in_bytes,
  ladder_table,
  lines_of_totals,
  machine_tables,
)

HERE = pathlib.Path(__file__).parent
MACHINES = 'v5e:16x16', 'v5p:4x4x4'
# Of a rule that reads losses: an assumed one, from guessing to a good network.
CONFIGS = {
  'resnet50_imagenet.py:8k': None,
  'resnet50_imagenet_adadamp.py': '6.9 0.5 0.1',
  'transformer_lm1b.py': '10.4 2.0 0.1',
  'resnet20_cifar10_post_local.py': None,
}
ABOUT = (
  '# Plans for TPUs\n\nMade by `python docs/make_plans.py` ([log](plans.json))'
  '; nothing of it was measured on a TPU. What each figure is, and the '
  'formulas: [What a plan says](plan.md). All in bfloat16. The assumed losses '
  'fall as a power of the examples, `{losses}` (first, last, exponent): they '
  'are no measurement, and stand for what AdaDamp would be shown. Compiled '
  'with {compiler}.\n'
)


def load(name):
  """The config of a file in configs/, with its variant."""
  file, _, variant = name.partition(':')
  path = HERE.parent / 'configs' / file
  get_config = runpy.run_path(str(path))['get_config']
  return get_config(*([variant] if variant else []))


def made(name, loss, machine):
  """The plan, without what only pictures need."""
  config = load(name)
  config.model.dtype = 'bfloat16'
  config.plan.topology = machine
  config.plan.loss = loss
  config.plan.scaling = config.sync.name == 'synchronous'
  with tempfile.TemporaryDirectory() as workdir:
    found = plan(config, workdir)
  found.pop('changed')
  found.pop('config')
  if 'schedule' in found:
    found['schedule'].pop('points')
  return found


def table(columns, rows):
  yield '| ' + ' | '.join(columns) + ' |'
  yield '|' + '---|' * len(columns)
  for row in rows:
    yield '| ' + ' | '.join(row) + ' |'


def section(name, machine, found):
  model, about = found['model'], found['data']
  yield f'## {name} on {machine}\n'
  yield (
    f'{model["parameters"]:,} parameters, {flops(model["flops_per_example"])} '
    f'an example as XLA counts them before compiling, state of '
    f'{in_bytes(model["state_bytes"])}; {about["examples"]:,} examples, '
    f'{"streamed" if about["streaming"] else "on the devices"}.\n'
  )
  yield from table(*ladder_table(found))
  for title, columns, rows in (*machine_tables(found), *scaling_tables(found)):
    yield f'\n{title}\n'
    yield from table(columns, rows)
  yield ''
  for words, text in lines_of_totals(found):
    yield f'- {words}: {text}'
  for line in (*scaling_lines(found), *found['remarks']):
    yield f'- {line}'
  yield ''


def main(argv):
  log = HERE / 'plans.json'
  if '--from_log' in argv:
    plans = json.loads(log.read_text())
  else:
    plans = {
      name: {machine: made(name, loss, machine) for machine in MACHINES}
      for name, loss in CONFIGS.items()
    }
    log.write_text(json.dumps(plans, indent=1) + '\n')
  first = next(iter(next(iter(plans.values())).values()))
  losses = '`, `'.join(filter(None, CONFIGS.values()))
  compiler = first['topology']['compiler']
  lines = [ABOUT.format(losses=losses, compiler=compiler)]
  for name, by_machine in plans.items():
    for machine, found in by_machine.items():
      lines += section(name, machine, found)
  (HERE / 'plans.md').write_text('\n'.join(lines).rstrip() + '\n')


if __name__ == '__main__':
  main(sys.argv)
