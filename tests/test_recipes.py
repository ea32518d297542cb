"""The recipes for clusters, as far as no cluster is needed."""

import importlib.util
import json
import pathlib
import re
import shlex
import signal
import subprocess
import tomllib

import pytest
import yaml

from adabatch import config
from adabatch.command import jobs
from adabatch.config.command_line import ERROR, EXIT_CODES, USAGE
from adabatch.devices.processes import RETRY
from tests.experiments import records
from tests.jobset_fields import JOBSET, unknown
from tests.slurm import SBATCH, Slurm, finish, free_job, tasks, wait_until

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = ROOT / 'launch'
DOCKERFILE = (RECIPES / 'Dockerfile').read_text()
JOBSETS = list(yaml.safe_load_all((RECIPES / 'jobset.yaml').read_text()))
STOPPED = 128 + signal.SIGTERM
HOPELESS = {ERROR, USAGE, EXIT_CODES['diverged']}


def test_the_folder_hides_no_module():
  found = importlib.util.find_spec('launch')
  assert found is not None
  assert found.origin == str(ROOT / 'launch.py')


@pytest.mark.parametrize('name', sorted(p.name for p in RECIPES.iterdir()))
def test_keys_and_files_exist(name):
  text, keys = (RECIPES / name).read_text(), config.flatten(config.default())
  for key in re.findall(r'--config\.([\w.]+)', text):
    assert key in keys
  for file in re.findall(r'\bconfigs/\w+\.py', text):
    assert (ROOT / file).is_file()
  for key in re.findall(r'`(\w+\.\w+)`', text):
    assert key in keys or (RECIPES / key).is_file()


def parts(jobset):
  """The job of a set, its pod and its container."""
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  return job, pod, container


def flags(arguments):
  """Of a command line, by name."""
  pairs = (a.removeprefix('--').partition('=') for a in arguments)
  return {name: value for name, _, value in pairs}


def test_one_manifest_for_each_kind():
  kinds = [jobset['metadata']['labels']['accelerator'] for jobset in JOBSETS]
  assert kinds == ['tpu', 'gpu']
  resources = [parts(j)[2]['resources']['limits'].keys() for j in JOBSETS]
  assert resources == [{'google.com/tpu'}, {'nvidia.com/gpu'}]


@pytest.mark.parametrize('jobset', JOBSETS)
def test_jobset_has_no_field_that_is_not_known(jobset):
  assert list(unknown(jobset, JOBSET)) == []
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert jobset['kind'] == 'JobSet'
  (replicated,) = jobset['spec']['replicatedJobs']
  # Of its last pod, with the five letters that Kubernetes adds.
  pod = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0-999-abcde'
  assert re.fullmatch('[a-z]([-a-z0-9]*[a-z0-9])?', pod)
  assert len(pod) <= 63


@pytest.mark.parametrize('jobset', JOBSETS)
def test_exit_statuses_end_or_restart_the_jobset(jobset):
  """As its own checks want them, and as the trainer means them."""
  job, pod, container = parts(jobset)
  actions = {}
  for rule in job['podFailurePolicy']['rules']:
    assert rule['action'] in ('Count', 'FailIndex', 'FailJob', 'Ignore')
    assert ('onExitCodes' in rule) != ('onPodConditions' in rule)
    codes = rule['onExitCodes']
    assert codes['containerName'] == container['name']
    assert codes['operator'] == 'In'
    assert codes['values'] == sorted(set(codes['values']))
    assert 0 < len(codes['values']) <= 255
    assert all(0 < code < 256 for code in codes['values'])
    actions |= dict.fromkeys(codes['values'], rule['action'])
  retried = dict.fromkeys([RETRY, STOPPED], 'Count')
  assert actions == dict.fromkeys(HOPELESS, 'FailJob') | retried
  # What counts ends the job, whose set starts all anew: by default.
  assert job['backoffLimit'] == 0
  assert pod['restartPolicy'] == 'Never'  # podFailurePolicy allows no other
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] > 0
  (rule,) = policy['rules']
  assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert pod['terminationGracePeriodSeconds'] >= 120


@pytest.mark.parametrize('jobset', JOBSETS)
def test_pods_share_what_they_must(jobset):
  job, pod, container = parts(jobset)
  assert job['parallelism'] == job['completions'] > 1
  assert job['completionMode'] == 'Indexed'
  mounts = {m['mountPath']: m['name'] for m in container['volumeMounts']}
  volumes = {volume.pop('name'): volume for volume in map(dict, pod['volumes'])}
  assert volumes.keys() == set(mounts.values())
  assert volumes[mounts['/dev/shm']]['emptyDir']['medium'] == 'Memory'
  given = flags(container['args'])
  for path in (given['workdir'], given['config.data.data_dir']):
    mount = '/' + path.split('/')[1]
    assert 'persistentVolumeClaim' in volumes[mounts[mount]]
  assert given['workdir'].endswith(jobset['metadata']['name'])
  others = given.keys() - {'config', 'config.data.data_dir'}
  assert others <= {'distributed', 'workdir', *(f.name for f in PLACES)}


PLACES = jobs.COORDINATOR, jobs.PROCESSES, jobs.PROCESS


def test_processes_with_gpus_find_the_first():
  jobset = JOBSETS[1]
  job, _, container = parts(jobset)
  given = flags(container['args'])
  place, processes, process = (given[flag.name] for flag in PLACES)
  name = jobset['metadata']['name']
  (replicated,) = jobset['spec']['replicatedJobs']
  assert jobset['spec']['network'] == {'enableDNSHostnames': True}
  host, port = place.split(':')
  assert host == f'{name}-{replicated["name"]}-0-0.{name}'
  assert 1024 < int(port) < 2**15  # no port that a system hands out
  assert int(processes) == job['completions']
  assert process == '$(JOB_COMPLETION_INDEX)'


def test_the_slice_of_tpus_has_its_hosts():
  job, pod, container = parts(JOBSETS[0])
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  rows, columns = map(int, topology.split('x'))
  each = container['resources']['limits']['google.com/tpu']
  assert rows * columns == each * job['completions']


def instructions(dockerfile):
  lines = re.sub(r'^#.*\n', '', dockerfile, flags=re.M).replace('\\\n', ' ')
  return [line.split(maxsplit=1) for line in lines.splitlines() if line]


def test_the_image_hears_signals_and_is_no_root():
  found = instructions(DOCKERFILE)
  last = dict(found)
  assert json.loads(last['ENTRYPOINT'])[-2:] == ['python', 'launch.py']
  assert last['STOPSIGNAL'] == 'SIGTERM'
  assert int(last['USER']) > 0
  assert 'CMD' not in last


def test_the_image_installs_what_there_is():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  asked = re.findall(r'EXTRAS=([\w,]+)', DOCKERFILE)
  assert len(asked) == 3
  for extra in ','.join(asked).split(','):
    assert extra in project['optional-dependencies']
  copied = [
    source
    for name, rest in instructions(DOCKERFILE)
    if name == 'COPY'
    for source in rest.split()[:-1]
  ]
  assert all((ROOT / source).exists() for source in copied)
  assert {project['readme'], *project['license-files']} <= set(copied)
  assert {'adabatch', 'configs', 'launch.py'} <= set(copied)


# Of sbatch, as its manual has them.
OPTIONS = {
  'job-name': str,
  'output': str,
  'open-mode': ('append', 'truncate').index,
  'time': lambda text: [int(part) for part in text.split(':')],
  'nodes': int,
  'ntasks-per-node': int,
  'gpus-per-node': int,
  'cpus-per-task': int,
  'requeue': lambda text: text == '',
  'signal': lambda text: re.fullmatch(r'(TERM)@(\d+)', text).groups(),
}


def test_what_sbatch_is_asked():
  given = flags(re.findall(r'^#SBATCH (\S+)$', SBATCH, re.M))
  assert given.keys() == OPTIONS.keys()
  read = {name: OPTIONS[name](text) for name, text in given.items()}
  assert read['requeue']
  assert given['open-mode'] == 'append'
  assert read['ntasks-per-node'] == read['gpus-per-node']
  hours, minutes, seconds = read['time']
  notice = int(read['signal'][1])
  assert 60 <= notice < 3600 * hours + 60 * minutes + seconds
  # Those after the first command are comments.
  assert SBATCH.rindex('#SBATCH') < SBATCH.index('\nactivate=')


@pytest.fixture
def slurm(tmp_path):
  """Runs the script with small commands in the place of SLURM's."""
  return Slurm(tmp_path)


def test_bash_reads_the_script():
  subprocess.run(['bash', '-n', RECIPES / 'slurm.sbatch'], check=True)


@pytest.mark.parametrize('status', [0, *sorted(HOPELESS), 76, 130])
def test_a_run_that_is_over_ends_the_job(slurm, status):
  slurm.start()
  assert slurm.end(status) == (status, '')


@pytest.mark.parametrize('status', [RETRY, STOPPED, 128 + signal.SIGKILL])
def test_a_run_that_can_go_on_is_put_back(slurm, status):
  """Of a task that was killed srun tells the signal, not what others say."""
  slurm.start(restarts=3)
  assert slurm.end(status) == (status, 'requeue 1\n')
  assert f'status {status} after 3 restarts' in slurm.said


def test_it_is_not_put_back_for_ever(slurm):
  slurm.start(restarts=7, most_restarts=7)
  assert slurm.end(RETRY) == (RETRY, '')
  assert 'after 7 restarts: ends' in slurm.said


@pytest.mark.parametrize(
  ('reason', 'calls'), [('None', ''), ('TimeLimit', 'requeue 1\n')]
)
def test_a_job_that_is_cancelled_stays_so(slurm, reason, calls):
  """SLURM tells the shell as well, then; one that was late goes on."""
  slurm.start(reason=reason)
  slurm.step()  # after which the trap is set
  slurm.batch.send_signal(signal.SIGTERM)
  assert slurm.end(STOPPED) == (STOPPED, calls)


def test_two_tasks_are_stopped_and_go_on(slurm):
  """As at --signal: SIGTERM to each task, and none to the shell."""
  keys = {
    'controller.name': 'constant',
    'model.mlp.hidden_sizes': '(32,)',
    'max_updates': 200,
    'epochs': 1000.0,
    'log.every_updates': 1,
  }
  job, given = free_job(), (f'--config.{k}={v}' for k, v in keys.items())
  asked = f'({shlex.join(given)})'
  slurm.start(job=job, flags=asked)
  processes = tasks(slurm)
  metrics = slurm.workdir / 'metrics.jsonl'

  def trained():
    assert all(p.poll() is None for p in processes)
    return metrics.exists() and metrics.read_bytes().count(b'\n') >= 10

  wait_until(trained)
  for p in processes:
    p.send_signal(signal.SIGTERM)
  status, said = finish(processes)
  assert status == STOPPED, said
  assert slurm.end(status) == (STOPPED, f'requeue {job}\n')
  updates = summary(slurm)['updates']
  assert summary(slurm)['status'] == 'preempted'
  assert 10 <= updates < 200

  slurm.start(restarts=1, job=job, flags=asked)
  status, said = finish(tasks(slurm))
  assert status == 0, said
  assert slurm.end(status) == (0, '')
  assert f'resumed at update {updates}' in said[0][1]
  assert summary(slurm)['status'] == 'completed'
  assert [r['update'] for r in records(slurm.workdir)] == list(range(1, 201))


def summary(slurm):
  return json.loads((slurm.workdir / 'summary.json').read_text())
