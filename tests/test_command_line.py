"""What the command prints at the end."""

from adabatch.command_line import describe

SUMMARY = {
  'status': 'diverged',
  'updates': 1234,
  'examples': 56789,
  'epochs': 2.54,
  'seconds': 1.25,
  'final': {'validation': {'loss': 0.25, 'accuracy': 0.98765}},
  'message': 'the loss or gradient of update 9 is not finite',
}


def test_a_run_in_three_lines():
  assert describe(SUMMARY).splitlines() == [
    'diverged: 1,234 updates, 56,789 examples, 2.5 epochs, 1.2 s of training',
    'the loss or gradient of update 9 is not finite',
    'validation: loss 0.2500, accuracy 0.9877',
  ]
