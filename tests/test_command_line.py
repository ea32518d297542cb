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


def test_a_search_says_of_what_its_best_value_is():
  summary = {
    'job': 'search',
    'status': 'completed',
    'seconds': 3.4,
    'metric': 'val/classification_error',
    'trials': {'complete': 6, 'infeasible': 1, 'unmeasured': 3},
    'best': {'trial': 4, 'steps': 9, 'value': 0.05291, 'parameters': {}},
  }
  assert describe(summary).splitlines() == [
    'completed: 6 trials (3 ended before their first evaluation) and 1 that '
    'diverged, 3 s',
    'best: trial 4, val/classification_error 0.0529, goal after 9',
  ]
