"""The keys that only a job other than training reads, with their meanings."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def add_jobs(c: ConfigDict) -> None:
  """Adds the tables of search, study and plan to a config.

  Args:
    c: the config, which is changed.

  >>> c = ConfigDict()
  >>> add_jobs(c)
  >>> sorted(c)
  ['plan', 'search', 'study']
  """
  # --job=search: metaparameters of this config; --job=study: anew for each
  # batch size and optimizer, with a constant batch size.
  c.search = ConfigDict()
  # Rows (key of this config, scale, low, high), the scale being 'linear',
  # 'log', 'reverse_log' (logarithmic in 1 - value) or 'integer'; or rows
  # (key, 'discrete', value, value, ...). optimizer.momentum is left out for
  # optimizers without one.
  c.search.space = (
    ('learning_rate.base', 'log', 1e-3, 10.0),
    ('optimizer.momentum', 'reverse_log', 0.5, 0.999),
  )
  c.search.sampler = 'halton'  # 'halton', 'sobol' (quasi-random), 'tpe'
  c.search.trials = 20  # that do not diverge, at each batch size
  c.search.max_trials = placeholder(int)  # diverged ones too; None: 5 x trials
  # Once a trial reached the target in s updates, later ones end after s.
  c.search.early_stopping = True
  # How often the space is widened, by as many trials, if its edge is best.
  c.search.widen = 0
  # Of Optuna; None: SQLite in the workdir. 'journal:PATH', or a database's URL
  # for workers on many machines.
  c.search.storage = placeholder(str)
  c.search.grace = 120.0  # seconds without a sign of life: a worker is dead
  # Small networks: trials at once on a device; None: what is measured fastest.
  c.search.members = placeholder(int)
  c.search.updates_per_call = placeholder(int)  # most; None: likewise
  c.search.most_members = 16  # that are tried in measuring
  c.plan = ConfigDict()
  # --job=plan: the losses that a rule is shown that reads them: the directory
  # of another run, or a power law 'FIRST LAST EXPONENT' of the examples.
  c.plan.loss = placeholder(str)
  # A machine that need not be there, for which every program is compiled:
  # 'v5e:16x16', 'v5p-128', '2*v5e:16x16'. None: what is here, nothing compiled.
  c.plan.topology = placeholder(str)
  # Directory for all compiled programs of the run, of here or of that machine.
  c.plan.save = placeholder(str)
  # Whether at most two smaller microbatches are compiled as well, so that the
  # times of more chips than these are known, not only bounded.
  c.plan.scaling = False
  c.study = ConfigDict()
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512)  # each tuned on its own
  c.study.optimizers = ('sgd', 'nesterov')  # likewise; see optimizer.name
