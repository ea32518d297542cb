"""The keys of batch-size rules; see `config.keys`, which these belong to."""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def add_rules(c: ConfigDict) -> None:
  """Adds the table of batch-size rules to the defaults."""
  # How large the next batch is, and the table of each rule.
  c.controller = ConfigDict()
  # 'constant', 'adadamp', 'padadamp', 'geodamp', 'radadamp', 'adadamp_grad',
  # 'step_table', 'ramp_up', 'from_lr_schedule', 'noise_scale', 'norm_test',
  # 'cabs', 'probe', 'goodput', or one that the config registers.
  c.controller.name = 'adadamp'
  c.controller.initial_batch_size = 32  # B_0, examples of the first batch
  # B_max, at most the size of the training split; where a rule asks for more,
  # the learning rate is damped.
  c.controller.max_batch_size = 1024
  # Examples that a batch has at least; None: B_0.
  c.controller.min_batch_size = placeholder(int)
  c.controller.every = 20  # updates between two decisions
  c.controller.wait = 0  # updates before the first change
  c.controller.monotone = False  # whether the batch never becomes smaller
  # Weight of the old size's logarithm in a new one, from 0 to below 1.
  c.controller.smooth = 0.0
  # Largest ratio of two sizes in a row; None: any.
  c.controller.growth_limit = placeholder(float)
  # Smaller ratios of two sizes are ignored; None: none are.
  c.controller.hysteresis = placeholder(float)
  # Examples of the training split that are measured, where adadamp's
  # loss_source or adadamp_grad's gradient_source is 'subset'.
  c.controller.subset_size = 1024
  # In which norm rules (and 'adascale') are given the noise of the gradient:
  # 'l2'; 'normalisation', of scales and biases of normalisation layers alone;
  # 'adam', of g / (sqrt(nu_hat) + epsilon), for adam, adamw, lamb; 'l1', for
  # sign descent, which takes memory and exchange of one more gradient.
  c.controller.noise_norm = 'l2'
  c.controller.adadamp = ConfigDict()
  # Which training loss is read: 'full' (of the whole split), 'subset' (of
  # controller.subset_size), 'ema' (a moving average over batches).
  c.controller.adadamp.loss_source = 'ema'
  c.controller.adadamp.minimum_loss = 0.0  # F*, below every training loss
  c.controller.adadamp.exponent = 1.0  # e: B grows as (1 / (F - F*))^e
  c.controller.adadamp.decay = 0.95  # of the moving average of 'ema'
  c.controller.padadamp = ConfigDict()
  # Examples that a batch grows by at each update; None: the authors' choice.
  c.controller.padadamp.rate = placeholder(float)
  c.controller.geodamp = ConfigDict()
  c.controller.geodamp.factor = 2.0  # ratio of the sizes at each step
  c.controller.geodamp.delay_epochs = 5.0  # epochs between two steps
  # AdaBatch: factor on the learning rate at each step as well.
  c.controller.geodamp.lr_factor = 1.0
  c.controller.radadamp = ConfigDict()
  c.controller.radadamp.rho = 0.2  # weight of the past in its averages
  # Updates in a window; the first one lasts to the first decision, if longer.
  c.controller.radadamp.window = 20
  # What a window is reduced to: 'min', 'mean', 'median', 'max'.
  c.controller.radadamp.reduction = 'min'
  c.controller.radadamp.minimum_loss = 0.0  # F*, below every training loss
  c.controller.adadamp_grad = ConfigDict()
  # Which gradient is read: 'full' (of the whole split), 'subset' (of
  # controller.subset_size), 'ema' (a moving average over batches).
  c.controller.adadamp_grad.gradient_source = 'ema'
  c.controller.adadamp_grad.decay = 0.95  # of the moving average of 'ema'
  c.controller.step_table = ConfigDict()
  # 'count:size ...', the counts with suffixes K, M, B, T. With unit 'tokens'
  # also what Megatron is given as --step-batch-size-schedule, whose sizes are
  # in examples; and OLMo-core's BatchSizeSchedulerCallback, all in tokens:
  # 'batch_sizes=[1024 * 4096, ...], schedule=[Duration.tokens(0), ...]'. Its
  # rates are those of learning_rate.scaling 'sqrt'.
  c.controller.step_table.table = '0:32'
  # What the table counts: 'examples', 'epochs', 'tokens'.
  c.controller.step_table.unit = 'examples'
  c.controller.ramp_up = ConfigDict()
  # Examples of a batch at the end of the ramp.
  c.controller.ramp_up.final_batch_size = 1024
  c.controller.ramp_up.increment = 32  # examples, that a batch grows by at once
  # Over which the size grows, in controller.ramp_up.unit.
  c.controller.ramp_up.examples = FieldReference(10_000, field_type=object)
  # What controller.ramp_up.examples counts: 'examples', 'tokens'.
  c.controller.ramp_up.unit = 'examples'
  # Instead of increment, examples and the start: 'start increment samples', as
  # Megatron has them in --rampup-batch-size.
  c.controller.ramp_up.megatron = placeholder(str)
  # The schedule that it turns into sizes is that of learning_rate.decay.
  c.controller.from_lr_schedule = ConfigDict()
  # q, the part of the decay that stays with the rate: where that would be
  # multiplied by a, the batch is by 1 / a and the rate by a^q. 0: Smith et al.;
  # 0.5: Seesaw.
  c.controller.from_lr_schedule.exponent = 0.0
  c.controller.noise_scale = ConfigDict()
  c.controller.noise_scale.c = 1.0  # batch size in units of the noise scale
  c.controller.noise_scale.decay = 0.99  # of both moving averages
  c.controller.norm_test = ConfigDict()
  c.controller.norm_test.eta = 0.5  # tolerated noise-to-signal ratio
  c.controller.norm_test.decay = 0.99  # of both moving averages
  c.controller.cabs = ConfigDict()
  c.controller.cabs.c = 1.0  # factor on the size; 1 in the paper
  c.controller.cabs.minimum_loss = 0.0  # F*, below every training loss
  c.controller.cabs.decay = 0.95  # of both moving averages
  # Branches of the run decide.
  c.controller.probe = ConfigDict()
  # Updates of a branch with twice the batch, at least.
  c.controller.probe.updates = 8
  # Stretches of the data order that each size is branched over.
  c.controller.probe.repeats = 3
  # How much more held-out loss counts as no cost.
  c.controller.probe.epsilon = 0.01
  # Of the interval that has to lie below epsilon for a larger batch.
  c.controller.probe.confidence = 0.8
  # Examples of a probe over those of the one before.
  c.controller.probe.growth = 2.0
  # Share of the examples so far that all probes may have taken.
  c.controller.probe.cost = 0.15
  # Follows the clock: two runs of one config differ.
  c.controller.goodput = ConfigDict()
  # Of what progress is counted: 'second', or 'device_second' where devices may
  # idle (buckets.min_per_device).
  c.controller.goodput.per = 'second'
  c.controller.goodput.gain = 1.05  # least ratio of progress for a change
  c.controller.goodput.decay = 0.99  # of both moving averages
  # Times of an update whose median counts, each from one decision to the next;
  # a new size is held for so many decisions.
  c.controller.goodput.windows = 3
