"""The keys of the jobs beside training: searches, probes, plans, studies.

See `config.keys`, of which these are a part.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def add_jobs(c: ConfigDict) -> None:
  """Adds the tables of the jobs to the defaults."""
  # --job=search tunes metaparameters of this config; --job=study does so anew
  # for each batch size and optimizer, with a constant batch size.
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
  # Trials that do not diverge, at each batch size.
  c.search.trials = 20
  # Most trials, with those that diverge; None: 5 times search.trials.
  c.search.max_trials = placeholder(int)
  # Whether, once a trial reached the target in s updates, later ones end after
  # s.
  c.search.early_stopping = True
  # How often the space is widened, by as many trials, if its edge is best.
  c.search.widen = 0
  # Where Optuna keeps trials; None: SQLite in the workdir. 'journal:PATH', or a
  # database's URL for workers on many machines.
  c.search.storage = placeholder(str)
  # Seconds without a sign of life before a worker counts as dead.
  c.search.grace = 120.0
  # Of small networks: trials at once on a device; None: what is measured
  # fastest.
  c.search.members = placeholder(int)
  # Of small networks: most updates in a call of a program; None: what is
  # measured fastest.
  c.search.updates_per_call = placeholder(int)
  # Most trials at once on a device that are measured.
  c.search.most_members = 16
  # --job=probe: how the loss after the same examples depends on the batch size,
  # by branches from the checkpoints of a run. All of these may change.
  c.probe = ConfigDict()
  # Which checkpoints: 'last', 'all', or examples such as '40K 80K', of each the
  # one there.
  c.probe.at = 'last'
  # Batch sizes of the branches, in units of the size at the checkpoint.
  c.probe.factors = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
  # Delta, examples of each branch; None: 32 batches of the largest size, or as
  # many as there are examples for.
  c.probe.examples = placeholder(object)
  # Of the branches: 'rule': as much noise from each example at all sizes, by
  # factor^1 for sgd and factor^(1/2) for adam, with Adam's beta2 and decoupled
  # weight decay remembering as many examples; 'none': as it is; 'tune': the
  # best of probe.multipliers on that of the rule, for each size.
  c.probe.learning_rate = 'rule'
  # Factors on the learning rate that probe.learning_rate='tune' tries.
  c.probe.multipliers = (0.5, 0.7071, 1.0, 1.4142, 2.0)
  # How much more held-out loss counts as no cost.
  c.probe.epsilon = 0.01
  # Evaluations of a branch in its last quarter, whose mean counts, because with
  # a high rate the loss goes up and down.
  c.probe.evaluations = 4
  # Stretches of the data order, one after the other, that each size is branched
  # over.
  c.probe.repeats = 2
  c.probe.warmup = 0  # updates over which a higher rate is come to
  # Examples from which the noise of the gradient is estimated.
  c.probe.noise_examples = 1024
  # Processes that share the branches, of one machine with CPUs.
  c.probe.workers = 1
  # Directory of what comes out; None: WORKDIR-probe.
  c.probe.directory = placeholder(str)
  # --job=plan: what a run will be. All of these may change.
  c.plan = ConfigDict()
  # The losses that a rule is shown that reads them: the directory
  # of another run, or a power law 'FIRST LAST EXPONENT' of the examples.
  c.plan.loss = placeholder(str)
  # A machine that need not be there, for which every program is compiled:
  # 'v5e:16x16', 'v5p-128', '2*v5e:16x16'. None: what is here, nothing compiled.
  c.plan.topology = placeholder(str)
  # Directory for all compiled programs of the run, for the devices that are
  # here or for plan.topology. None: they are not kept.
  c.plan.save = placeholder(str)
  # Whether at most two smaller microbatches are compiled as well, so that the
  # times of more chips than these are known, not only bounded.
  c.plan.scaling = False
  # --job=study: what is compared, by the keys of `search`.
  c.study = ConfigDict()
  # Each is tuned on its own.
  c.study.batch_sizes = (16, 32, 64, 128, 256, 512)
  # Each is tuned on its own; names of optimizer.name.
  c.study.optimizers = ('sgd', 'nesterov')
