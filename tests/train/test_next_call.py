"""Which programs a run compiles before they are asked for."""

from adabatch.devices.programs import Programs
from adabatch.train import train
from tests.experiments import digits


def test_what_a_schedule_wants_late_in_the_run_is_compiled_at_its_start(
  tmp_path, monkeypatch
):
  """Nobody looks again before it is due."""
  asked, get = [], Programs.get

  def noting(self, key, *likely):
    asked.append([k.bucket.slots for k in (key, *likely)])
    return get(self, key, *likely)

  monkeypatch.setattr(Programs, 'get', noting)
  config = digits(
    **{
      'max_updates': 30,
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 400:32',  # 25 of 30 updates
      'controller.max_batch_size': 64,
    }
  )
  train(config, tmp_path)
  assert asked[0][:2] == [16, 32]


def test_the_program_without_a_sync_comes_before_a_far_bucket(
  tmp_path, monkeypatch
):
  """Post-local SGD agrees at each update at first, and seldom later."""
  asked, get = [], Programs.get

  def noting(self, key, *likely):
    asked.append([(k.bucket.slots, k.agree) for k in (key, *likely)])
    return get(self, key, *likely)

  monkeypatch.setattr(Programs, 'get', noting)
  config = digits(
    **{
      'max_updates': 30,
      'controller.name': 'step_table',
      'controller.step_table.table': '0:16 400:32',  # 25 of 30 updates
      'controller.max_batch_size': 64,
      'sync.name': 'post_local_sgd',
      'sync.replicas': 2,
      'sync.local_steps': 4,
      'sync.post_local_sgd.epoch': 0.1,
    }
  )
  train(config, tmp_path)
  now, *likely = asked[0]
  assert now[1]
  assert likely[0] == (now[0], False)
