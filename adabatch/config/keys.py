"""Every key of a config, its default and what it means.

A config holds base values and the names of rules; no value is computed from
another, so that a command-line override never leaves a stale one behind. Where
a name chooses among rules (`model.name`, `controller.name`, ...), the rule's
own parameters stand in the sub-table of that name; the others are ignored.
None means: not set. Counts of the keys in COUNTED may be texts with a suffix.
The comments are what `adabatch explain KEY` says, so each stands alone. Beside
this file stand the keys of the data, of networks, of batch-size rules and of
other jobs than training.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from adabatch.config.data_keys import add_data
from adabatch.config.errors import Config
from adabatch.config.job_keys import add_jobs
from adabatch.config.model_keys import add_models
from adabatch.config.rule_keys import add_rules

# Keys that hold a number or a text such as '2.5B': K, M, B, T are 10^3, 10^6,
# 10^9, 10^12. Of boundaries, each entry.
COUNTED = frozenset(
  [
    'controller.ramp_up.examples',
    'learning_rate.decay.boundaries',
    'learning_rate.decay.length',
    'learning_rate.warmup.length',
    'max_examples',
    'max_tokens',
    'probe.examples',
  ]
)

# Keys that hold a number, or 'auto'.
AUTOMATIC = frozenset(['buckets.max_per_device', 'updates_per_call'])


def default() -> Config:
  """The config that the files in `configs/` start from.

  >>> default().controller.name
  'adadamp'
  """
  c = ConfigDict()
  c.seed = 0  # of initialisation, data order and augmentation
  # The run ends once so many epochs' examples were trained on; the last batch
  # is cut there. Whichever of epochs and the three max_... comes first ends it.
  c.epochs = 10.0
  c.max_updates = placeholder(int)  # updates that end the run; None: any
  # Examples that end the run, such as 250_000 or '250K'; None: any.
  c.max_examples = placeholder(object)
  # Tokens of text that end the run, such as '2.5B'; an example that has only a
  # part of them left is not trained on. None: any.
  c.max_tokens = placeholder(object)
  # Most updates in one call of a program; losses with 1 differ by rounding.
  # 'auto': as many as take a short while, 1 of convolutions on a CPU, 1 of long
  # updates. May be another when a run is resumed.
  c.updates_per_call = FieldReference('auto', field_type=object)
  # Directory of a run whose newest parameters are started from, as far as their
  # names and shapes are the same; the others, such as a head for other classes,
  # start anew. Read at the first start alone.
  c.init_from = placeholder(str)
  # What is done where a loss or a gradient is not finite: 'stop' ends the run;
  # 'skip' leaves that update out, its examples count as seen; 'rollback' goes
  # back to the newest checkpoint, or to the start, and on with a lower learning
  # rate, over other examples.
  c.on_nonfinite = 'stop'
  # How often on_nonfinite does what it does.
  c.nonfinite = ConfigDict()
  # Updates in a row that on_nonfinite='skip' leaves out; more end the run.
  c.nonfinite.skips = 10
  # Times that on_nonfinite='rollback' goes back; more end the run.
  c.nonfinite.rollbacks = 3
  # Factor on the learning rate each time that on_nonfinite='rollback' goes
  # back.
  c.nonfinite.rate_factor = 0.5
  # Whether compiled programs are kept on disk between runs.
  c.compilation_cache = True
  # Programs that were compiled before.
  c.compilation = ConfigDict()
  # Directory that plan.save filled: what fits is taken from there, the rest is
  # compiled. Nothing guards against a program that means harm: trust it like
  # code.
  c.compilation.programs = placeholder(str)
  # A short try of everything: a few updates of a narrow network in two batch
  # sizes, on made-up data if the set is not there.
  c.smoke = False

  add_data(c)
  add_models(c)
  add_rules(c)
  add_jobs(c)

  # What is done with the mean gradient of a batch.
  c.optimizer = ConfigDict()
  # 'sgd', 'momentum', 'nesterov', 'adam', 'adamw', 'lars', 'lamb', 'muon'
  # (matrices; adamw for the rest), or one of optax: 'optax.lion',
  # 'optax.contrib.sophia', ...
  c.optimizer.name = 'momentum'
  # Of an optimizer of optax any of its arguments, but for learning_rate,
  # weight_decay and its mask, which are keys of this config.
  c.optimizer.args = ConfigDict()
  # Of momentum, nesterov, lars, muon.
  c.optimizer.momentum = 0.9
  # Decay of the first moment of adam, adamw, lamb, and of muon's adamw.
  c.optimizer.beta1 = 0.9
  # Decay of the second moment of adam, adamw, lamb, and of muon's adamw.
  c.optimizer.beta2 = 0.999
  # Added to the root of the second moment by adam, adamw, lamb, and muon's
  # adamw.
  c.optimizer.epsilon = 1e-8
  # Whether beta2's half-life stays the same number of examples as the batch
  # size changes; beta2 holds at learning_rate.reference_batch_size.
  c.optimizer.beta2_in_examples = False
  # beta2 falls no lower than this by optimizer.beta2_in_examples, nor below
  # beta1^2.
  c.optimizer.beta2_min = 0.95
  # L2; decoupled for adamw, lamb, muon, and optax's that take a weight_decay.
  c.optimizer.weight_decay = 0.0
  # How weight decay grows with the batch size, from
  # learning_rate.reference_batch_size on: 'none', 'linear', 'sqrt'.
  c.optimizer.weight_decay_scaling = 'none'
  # Whether biases and the scales of normalisation have weight decay as well.
  c.optimizer.decay_norms_and_biases = False
  # Of lars: length of a step over that of the weights.
  c.optimizer.trust_coefficient = 0.001
  # Largest norm of a batch's mean gradient, of all parameters together; longer
  # ones are scaled down to it. Each replica clips its own; rules read what was
  # not clipped. None: any.
  c.optimizer.clip_norm = placeholder(float)

  # Averages of the weights.
  c.ema = ConfigDict()
  # Examples after which a weight counts half in the moving average of the
  # weights, which then is what is evaluated. None: no average.
  c.ema.half_life = placeholder(float)

  # What a step is multiplied by.
  c.learning_rate = ConfigDict()
  # At learning_rate.reference_batch_size, before warmup and decay.
  c.learning_rate.base = 0.1
  # B_ref, examples: at which learning_rate.base, optimizer.beta2 and
  # optimizer.weight_decay hold.
  c.learning_rate.reference_batch_size = 32
  # How the rate grows with the batch size: 'none', 'linear', 'sqrt',
  # 'adascale'.
  c.learning_rate.scaling = 'none'
  # The rate is damped by (B_max / B)^this where the rule asks for B > B_max.
  # None: r - p, where noise allows a rate of B^r (r = 1; adam, adamw, lamb,
  # lars, muon 1/2) and `scaling` makes it B^p (0, sqrt 1/2, linear and adascale
  # 1). To be given for optax's, unless the batch size is constant.
  c.learning_rate.damping_exponent = placeholder(float)
  # How the rate begins.
  c.learning_rate.warmup = ConfigDict()
  c.learning_rate.warmup.kind = 'none'  # 'none', 'constant', 'gradual'
  # Where the warmup starts, as a fraction of its target. None: from the rate of
  # the reference batch size, or from the target where that is lower.
  c.learning_rate.warmup.start = placeholder(float)
  # a: the warmup of a batch size B takes a + b B epochs.
  c.learning_rate.warmup.epochs = 0.0
  # b: the warmup of a batch size B takes a + b B epochs.
  c.learning_rate.warmup.epochs_per_example = 0.0
  # Length of the warmup in learning_rate.warmup.unit, instead of a + b B.
  c.learning_rate.warmup.length = placeholder(object)
  # 'epochs', 'examples', 'tokens' of text, 'updates' of the reference batch
  # size, or 'run': the whole of it.
  c.learning_rate.warmup.unit = 'epochs'
  # How the rate goes on.
  c.learning_rate.decay = ConfigDict()
  # 'constant', 'piecewise', 'cosine', 'linear', 'polynomial', 'wsd' (warmup,
  # stable, decay: constant, then a cooldown)
  c.learning_rate.decay.name = 'constant'
  # 'epochs', 'examples', 'tokens' of text, 'updates' of the reference batch
  # size, or 'run': the whole of it. Where max_updates ends a run whose batch
  # size is chosen by what is measured, that is max_updates of the largest size.
  c.learning_rate.decay.unit = 'epochs'
  # Length of the decay in learning_rate.decay.unit; None: the whole run.
  c.learning_rate.decay.length = placeholder(object)
  # Where a 'piecewise' rate drops, in learning_rate.decay.unit.
  c.learning_rate.decay.boundaries = (30.0, 60.0, 80.0)
  # Factor on a 'piecewise' rate at each boundary.
  c.learning_rate.decay.factor = 0.1
  # Multiplier at the end of a decay that is not 'piecewise'.
  c.learning_rate.decay.final = 0.0
  c.learning_rate.decay.power = 2.0  # exponent of 'polynomial'
  # Share of the length of 'wsd' that the cooldown at its end takes.
  c.learning_rate.decay.cooldown = 0.2
  # Of the cooldown of 'wsd': '1-sqrt', 'linear'.
  c.learning_rate.decay.shape = '1-sqrt'

  # How the hardware runs a batch.
  c.buckets = ConfigDict()
  # Examples a device processes at once. May be others when a run is resumed.
  # 'auto': as many as fit in its memory; on CPUs, the fastest of a few.
  c.buckets.max_per_device = FieldReference(4096, field_type=object)
  # Devices in use have at least so many examples each, the others idle: few run
  # a small batch. None: all devices always. Batch sizes stay the same, but for
  # rules that read the gradient noise, as on another number of devices.
  c.buckets.min_per_device = placeholder(int)
  # Devices that the job may be given: where a batch wants more than there are,
  # the run ends with exit status 76 to be started again with `wanted_devices`
  # of summary.json. None: it goes on with those that there are.
  c.buckets.grow_to = placeholder(int)
  # What is run for a size between two buckets: 'up' (the larger bucket, all of
  # it), 'exact' (as many examples as were asked for, in the larger bucket),
  # 'nearest'.
  c.buckets.rounding = 'up'
  c.buckets.growth = 2.0  # ratio of neighbouring buckets

  # Of several processes. All of these may be others when a run is resumed.
  c.processes = ConfigDict()
  # Seconds that a process waits for all of them to start.
  c.processes.start_seconds = 300.0
  # Seconds without a sign of life before a process counts as lost, which ends
  # the others with exit status 75: started again all go on from the last
  # checkpoint.
  c.processes.lost_seconds = 30.0
  # How often the processes that are left start again by themselves, instead of
  # ending with exit status 75.
  c.processes.restarts = 0
  # Seconds that processes which started again wait for the lost ones; with
  # sync.min_replicas they go on without, until these are started again and join
  # at a checkpoint.
  c.processes.rejoin_seconds = 30.0
  # Runs that stand still.
  c.watchdog = ConfigDict()
  # Seconds without an update before the stacks of all threads are written to
  # log.txt; to compile, evaluate or save may take four times that. 0: never.
  c.watchdog.seconds = 1800.0
  # Whether a run that stands still for watchdog.seconds ends, with exit status
  # 75.
  c.watchdog.abort = False
  # How devices work together.
  c.parallel = ConfigDict()
  c.parallel.backend = 'shard_map'  # 'shard_map', 'pmap'
  # In which gradients are exchanged: 'float32', 'bfloat16'.
  c.parallel.gradient_dtype = 'float32'

  # Replicas of the model, and how they agree.
  c.sync = ConfigDict()
  # 'synchronous' (one model), or models that are trained side by side and agree
  # now and then: 'local_sgd', 'post_local_sgd', 'qsr', 'slowmo', 'diloco',
  # 'easgd', 'sma', or one that the config registers.
  c.sync.name = 'synchronous'
  # Replicas of the model, where sync.name is not 'synchronous'; they share each
  # batch.
  c.sync.replicas = 1
  # Of several processes, some of which are lost: those that are left go on, if
  # they train at least so many replicas (processes.restarts), with batch sizes
  # rounded up to equal shares. None: never.
  c.sync.min_replicas = placeholder(int)
  c.sync.local_steps = 16  # H: updates of one replica between two syncs
  # Whether optimizer states are averaged at a sync as well.
  c.sync.average_momentum = False
  c.sync.post_local_sgd = ConfigDict()
  # Epoch before which H is 1; None: the first boundary of a piecewise rate.
  c.sync.post_local_sgd.epoch = placeholder(float)
  c.sync.qsr = ConfigDict()
  # H = (alpha / learning rate)^2, where that is above sync.local_steps.
  c.sync.qsr.alpha = 0.1
  c.sync.slowmo = ConfigDict()
  c.sync.slowmo.momentum = 0.7  # beta, of the outer optimizer
  # Of the outer optimizer, in units of the replicas' learning rate.
  c.sync.slowmo.learning_rate = 1.0
  c.sync.diloco = ConfigDict()
  c.sync.diloco.momentum = 0.9  # Nesterov's, of the outer optimizer
  c.sync.diloco.learning_rate = 0.7  # of the outer optimizer
  c.sync.easgd = ConfigDict()
  c.sync.easgd.rho = 0.9  # replicas times the elastic coefficient
  c.sync.sma = ConfigDict()
  c.sync.sma.rho = 1.0  # replicas times alpha, the pull to the anchor
  c.sync.sma.momentum = 0.9  # mu, of the anchor
  # Whether replicas start from the anchor, and it from rest, where a piecewise
  # learning rate drops.
  c.sync.sma.restarts = True
  # The search for the number of replicas.
  c.sync.tune = ConfigDict()
  # Whether the run finds how many replicas a device should train: more while
  # that raises the throughput. Each keeps its share, so the batch grows with
  # their number.
  c.sync.tune.enabled = False
  c.sync.tune.most = 8  # replicas that are tried on a device, at most
  # Relative gain of throughput that one more replica must bring.
  c.sync.tune.threshold = 0.1
  c.sync.tune.window = 20  # updates over which throughput is measured
  # Measurements of throughput whose median counts.
  c.sync.tune.windows = 5

  # What is to be reached.
  c.target = ConfigDict()
  c.target.metric = 'accuracy'  # or another metric of the evaluation split
  # The run ends once target.metric is better than this; None: it does not.
  c.target.value = placeholder(float)

  # What a run is continued from.
  c.checkpoint = ConfigDict()
  c.checkpoint.every_updates = 1000  # updates between two checkpoints
  # How many of the newest are kept. May be another when a run is resumed.
  c.checkpoint.keep = 3
  # Whether the one of the best evaluation by target.metric (by loss, where a
  # task has none such) is kept beside the newest. Not of the trials of a
  # search.
  c.checkpoint.best = True
  # What is told of a run.
  c.log = ConfigDict()
  # Updates between two lines; there is one at every decision as well.
  c.log.every_updates = 50
  # Who is given the numbers of a run: 'jsonl' (metrics.jsonl, always),
  # 'tensorboard', 'wandb', 'mlflow'. May be others when a run is resumed.
  c.log.writers = ('jsonl', 'tensorboard')
  # START:COUNT, the first update of a trace in WORKDIR/profile and how many it
  # has, such as '100:20'. May be another when a run is resumed.
  c.log.profile = placeholder(str)
  # Evaluation while it trains.
  c.eval = ConfigDict()
  c.eval.every_epochs = 1.0  # epochs between two evaluations
  # Least ratio of the examples at two evaluations in a row: with 1.05 they are
  # as dense in short runs as in long ones. 1: no such bound.
  c.eval.growth = 1.0
  # Examples a device evaluates at once. May be others when a run is resumed.
  c.eval.max_per_device = 1024
  return c
