"""`adabatch COMMAND ...`: the jobs by short names, and words on what there is.

What a job is told is turned into the flags of `launch.py` (`as_flags`), so both
do the same. Only a job imports JAX.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import adabatch
from adabatch.command import configs, explain, listing
from adabatch.config import ConfigError, command_line
from adabatch.config.extras import needing
from adabatch.report import __main__ as report_command


class Job(NamedTuple):
  """What the help says of a job.

  Attributes:
    does: in a line.
    examples: three lines, without the command and the job.
  """

  does: str
  examples: tuple[str, str, str]


JOBS = {
  'train': Job(
    'train a config, or go on where its run was',
    (
      'digits_mlp',
      'fashion_mnist_cnn --set data.data_dir=DIR --workdir runs/cnn',
      'runs/cnn  # goes on',
    ),
  ),
  'search': Job(
    'tune metaparameters of a config',
    (
      'digits_mlp --set search.trials=30 --set target.value=0.95',
      'digits_mlp --set search.sampler=tpe --workdir runs/tpe',
      'runs/tpe  # goes on, or is a second worker',
    ),
  ),
  'study': Job(
    'tune anew at each batch size: steps to a goal against the batch size',
    (
      'study_digits_mlp',
      'study_digits_mlp --set study.batch_sizes="(16, 64, 256)"',
      'runs/study_digits_mlp  # goes on, or is a second worker',
    ),
  ),
  'probe': Job(
    'ask a run how large its batch may be before it costs anything',
    (
      'runs/digits_mlp',
      'runs/digits_mlp --set probe.at=all --set probe.repeats=4',
      'runs/digits_mlp --set probe.learning_rate=tune',
    ),
  ),
  'plan': Job(
    'say what a run will be, and compile it for devices that need not be here',
    (
      'digits_mlp',
      'resnet50_imagenet:8k --set plan.topology=v5e:16x16',
      'digits_mlp --set plan.save=programs  # keeps all programs',
    ),
  ),
  'evaluate': Job(
    'measure the newest model of a run on a split',
    (
      'runs/digits_mlp',
      'runs/cnn --set data.eval_split=test',
      'runs/cnn --set data.eval_split="train[:10%%]"',
    ),
  ),
}
# Flags of a job that are handed on as they are; see `jobs`.
ALONG = ('coordinator_address', 'num_processes', 'process_id')


def make_parser() -> argparse.ArgumentParser:
  """Of all commands."""
  parser = argparse.ArgumentParser(
    'adabatch',
    description=adabatch.__doc__,
    epilog=_examples('adabatch', ('train digits_mlp', 'list', 'explain seed')),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--version', action='version', version=f'adabatch {adabatch.__version__}'
  )
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND', title='commands'
  )
  for name, job in JOBS.items():
    _add_job(commands, name, job)
  report = _add(commands, 'report', 'draw the page of a run, or compare runs')
  report_command.add_arguments(report)
  report.epilog = _examples(
    'adabatch report',
    ('runs/digits_mlp', 'runs/a runs/b  # compares them', '--help'),
  )
  words = _add(
    commands, 'list', 'name the configs, rules, models, ..., a line each'
  )
  words.add_argument('what', nargs='?', choices=list(listing.LISTS))
  words.epilog = _examples('adabatch list', ('', 'rules', 'configs'))
  key = _add(commands, 'explain', 'say what a key means, and what it may be')
  _complete(
    key.add_argument('key', help='of a config, or a table of keys'), _keys
  )
  key.epilog = _examples(
    'adabatch explain',
    ('controller.every', 'learning_rate.warmup', 'data.name'),
  )
  return parser


def _add(
  commands: 'argparse._SubParsersAction[argparse.ArgumentParser]',
  name: str,
  does: str,
) -> argparse.ArgumentParser:
  return commands.add_parser(
    name,
    help=does,
    description=f'{does[0].upper()}{does[1:]}.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def _add_job(
  commands: 'argparse._SubParsersAction[argparse.ArgumentParser]',
  name: str,
  job: Job,
) -> None:
  parser = _add(commands, name, job.does)
  parser.epilog = _examples(f'adabatch {name}', job.examples)
  _complete(
    parser.add_argument(
      'config',
      help='a name of `adabatch list configs`, a file, or the directory of a '
      'run',
    ),
    _configs,
  )
  _complete(
    parser.add_argument(
      '--set',
      metavar='KEY=VALUE',
      action='append',
      default=[],
      help='another value of a key; may be repeated',
    ),
    _assignments,
  )
  parser.add_argument(
    '--workdir', help='default: runs/NAME, or the directory of the run'
  )
  parser.add_argument(
    '--distributed', action='store_true', help='join other processes'
  )
  for flag in ALONG:
    parser.add_argument(f'--{flag}', help=argparse.SUPPRESS)


def _examples(command: str, arguments: Sequence[str]) -> str:
  lines = [f'  {command} {words}'.rstrip() for words in arguments]
  return '\n'.join(['examples:', *lines])


def as_flags(given: argparse.Namespace, others: Sequence[str]) -> list[str]:
  """What `launch.py` would be given for the same.

  Args:
    given: of `make_parser`, for a job.
    others: arguments that it did not know, such as --config.KEY=VALUE.

  Raises:
    ValueError: for a config that does not exist, or a `--set` without a value.

  >>> line = ['train', 'digits_mlp', '--set', 'epochs=2', '--workdir=here']
  >>> flags = as_flags(*make_parser().parse_known_args(line))
  >>> flags[0].rpartition('/')[2], flags[1:]
  ('digits_mlp.py', ['--config.epochs=2', '--workdir=here', '--job=train'])
  """
  config = configs.find(given.config)
  for one in given.set:
    if '=' not in one:
      raise ValueError(f'--set {one} has no value: write --set {one}=VALUE')
  of_run = config.partition(':')[0] == str(configs.OF_RUN)
  workdir = given.workdir or (given.config if of_run else None)
  along = {name: getattr(given, name) for name in ALONG}
  along['workdir'] = workdir
  return [
    f'--config={config}',
    *(f'--config.{one}' for one in given.set),
    *others,
    *(
      f'--{name}={value}' for name, value in along.items() if value is not None
    ),
    *(['--distributed'] if given.distributed else []),
    f'--job={given.command}',
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """The exit status; see `launch.py`."""
  parser = make_parser()
  if '_ARGCOMPLETE' in os.environ:  # the shell asks how a word may go on
    import argcomplete

    argcomplete.autocomplete(parser)
  given, others = parser.parse_known_args(argv)
  if given.command in JOBS:
    try:
      flags = as_flags(given, others)
    except ValueError as error:
      command_line.fail(str(error), command_line.USAGE)
    from adabatch.command import jobs

    # The flags of a config read the arguments of the process.
    sys.argv[:] = ['adabatch', *flags]
    jobs.run()
  if others:
    parser.error(f'unexpected argument {others[0]!r}')
  with command_line.refusing(ConfigError), needing():
    if given.command == 'report':
      return report_command.run(given)
    words = (
      explain.describe(given.key)
      if given.command == 'explain'
      else (listing.describe(given.what))
    )
    print(words)
  return 0


def _complete(action: argparse.Action, words: object) -> None:
  action.completer = words  # pyright: ignore  # argcomplete reads it


def _configs(**_: object) -> list[str]:
  return list(configs.files())


def _keys(**_: object) -> list[str]:
  return list(explain.keys_of(''))


def _assignments(**_: object) -> list[str]:
  return [f'{key}=' for key in explain.keys_of('')]
