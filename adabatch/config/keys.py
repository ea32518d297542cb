"""Every key of a config, its default and what it means.

A config holds base values and the names of rules; no value is computed from
another, so that a command-line override never leaves a stale one behind. Where
a name chooses among rules (`model.name`, `controller.name`, ...), the rule's
own parameters stand in the sub-table of that name; the others are ignored.
None means: not set. Counts of the keys in COUNTED may be texts with a suffix.
The tables that only another `--job` reads are in `job_keys`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from adabatch.config.errors import Config
from adabatch.config.job_keys import add_jobs

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
  c.seed = 0  # below 2^64; of initialisation, data order and augmentation
  # Stop once this many epochs' examples were trained on; the last batch is cut
  # there ...
  c.epochs = 10.0
  c.max_updates = placeholder(int)  # ... or after this many updates ...
  c.max_examples = placeholder(object)  # ... or examples, such as '250K' ...
  # ... or tokens of text, '2.5B'; of an example that has only a part of them
  # left nothing is trained on.
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
  c.nonfinite = ConfigDict()
  c.nonfinite.skips = 10  # skip: more in a row end the run
  c.nonfinite.rollbacks = 3  # rollback: at most so often
  c.nonfinite.rate_factor = 0.5  # rollback: on the learning rate, each time
  c.compilation_cache = True  # keep compiled programs on disk between runs
  c.compilation = ConfigDict()
  # Directory of plan.save: what fits is taken from there, the rest compiled.
  # Nothing guards against a program that means harm: trust it like code.
  c.compilation.programs = placeholder(str)
  # A short try of everything: a few updates of a narrow network in two batch
  # sizes, on made-up data if the set is not there.
  c.smoke = False

  c.data = ConfigDict()
  # Or a TFDS image or text set, folder:PATH, npz:PATH, csv:PATH, parquet:PATH.
  c.data.name = 'digits'
  # Columns of a file, several separated by commas; None: found by their names.
  c.data.input_key = placeholder(str)
  c.data.label_key = placeholder(str)  # likewise
  # Where TFDS sets lie; None: TFDS's own. May be another when a run is resumed.
  c.data.data_dir = placeholder(str)
  c.data.train_split = 'train'  # TFDS split syntax: 'train[:45000]' and so on
  c.data.eval_split = 'validation'  # never trained on
  # 'resident' (on every device), 'streaming' (read while training), 'auto':
  # resident if the examples have one size and fit in max_resident_bytes. Both
  # may be others when a run is resumed.
  c.data.placement = 'auto'
  c.data.max_resident_bytes = 2_000_000_000  # of both splits, for 'auto'
  c.data.workers = placeholder(int)  # reading processes; 0: a thread; None: all
  # More unreadable records an epoch, or an evaluation, stop the run.
  c.data.max_skipped = 100
  c.data.max_skipped_fraction = 0.01  # likewise, of the split
  c.data.mean = placeholder(tuple)  # of each channel, in [0, 1]; None: measured
  c.data.std = placeholder(tuple)  # likewise; None: measured
  c.data.crop_padding = 0  # pixels of padding of the random crop; 0: no crop
  c.data.flip = False  # random horizontal flips
  # Operations on each image, and their strength from 0 to 10: (2, 9). None: no.
  # Also of images whose randomness is a crop; as all of it by position alone.
  c.data.randaugment = placeholder(tuple)
  c.data.random_erasing = 0.0  # share of the images that lose a rectangle
  # alpha of mixup, 0: none. Partners are drawn from the whole training split,
  # which has to lie on the devices; rules that read the training loss then read
  # that of mixed examples.
  c.data.mixup = 0.0
  # Images that differ in size are cropped to squares: in training at random, in
  # evaluation from the centre.
  c.data.image_size = 224  # pixels of a square's side
  # Evaluation: the shorter side, before the crop; None: 8/7 of image_size.
  c.data.eval_resize = placeholder(int)
  c.data.min_area = 0.08  # training: least share of the image in a crop
  c.data.tokenizer = 'bytes'  # of text: 'bytes', 'sentencepiece'
  c.data.vocab_size = 32_000  # of sentencepiece, trained on the training split
  c.data.sequence_length = 128  # of text: tokens predicted in one example

  c.model = ConfigDict()
  # 'mlp', 'lenet', 'strided_cnn', 'pooled_cnn', 'simple_cnn', 'cifar_resnet',
  # 'resnet', 'wide_resnet', 'densenet', 'vgg', 'transformer', 'lstm'
  c.model.name = 'mlp'
  c.model.dtype = 'float32'  # of the computation: 'float32', 'bfloat16'
  c.model.precision = 'default'  # of float32 products: 'high', 'highest'
  c.model.mlp = ConfigDict()
  c.model.mlp.hidden_sizes = (128,)  # units of each hidden layer
  c.model.lenet = ConfigDict()
  c.model.strided_cnn = ConfigDict()
  c.model.strided_cnn.channels = (16, 32)  # of each 3x3 convolution, stride 2
  c.model.strided_cnn.hidden_size = 128  # units of the dense layer
  c.model.strided_cnn.batch_norm_group = 0  # examples in a group; 0: none
  c.model.pooled_cnn = ConfigDict()
  c.model.pooled_cnn.channels = (30, 60, 100)  # of the 5x5, 5x5, 3x3 layers
  c.model.pooled_cnn.hidden_size = 100  # units of the dense layer
  c.model.simple_cnn = ConfigDict()
  c.model.simple_cnn.channels = (32, 64)  # of the two 5x5 layers
  c.model.simple_cnn.hidden_size = 1024  # units of the dense layer
  c.model.cifar_resnet = ConfigDict()
  c.model.cifar_resnet.depth = 20  # 6n + 2: 8, 20, 32, 44, 56
  c.model.cifar_resnet.width = 16  # channels of the first stage
  c.model.cifar_resnet.batch_norm_group = 32  # examples in a group; 0: none
  c.model.resnet = ConfigDict()
  c.model.resnet.depth = 50  # 10, 18, 34, 50, 101
  c.model.resnet.width = 64  # channels of the stem
  c.model.resnet.stem = 'imagenet'  # 7x7 and pooling, or 'cifar': 3x3
  c.model.resnet.zero_scale = True  # of each block's last BatchNorm, at first
  c.model.resnet.batch_norm_group = 32  # examples in a group; 0: none
  c.model.wide_resnet = ConfigDict()
  c.model.wide_resnet.depth = 16  # 6n + 4
  c.model.wide_resnet.widen_factor = 4  # channels in units of `width`
  c.model.wide_resnet.width = 16  # channels of the stem
  c.model.wide_resnet.dropout_rate = 0.0  # between a block's convolutions
  c.model.wide_resnet.batch_norm_group = 32  # examples in a group; 0: none
  c.model.densenet = ConfigDict()
  c.model.densenet.depth = 40  # 3n + 4
  c.model.densenet.growth_rate = 12  # channels that each layer adds
  c.model.densenet.width = 16  # channels of the stem
  c.model.densenet.dropout_rate = 0.0  # after each convolution
  c.model.densenet.batch_norm_group = 32  # examples in a group; 0: none
  c.model.vgg = ConfigDict()
  c.model.vgg.depth = 11  # 11, 16
  c.model.vgg.width = 64  # channels of the first stage
  c.model.vgg.dense_size = 4096  # units of the two hidden dense layers
  c.model.vgg.dropout_rate = 0.5  # after them
  c.model.vgg.batch_norm_group = 0  # examples in a group; 0: none
  c.model.transformer = ConfigDict()
  c.model.transformer.num_layers = 6  # of attention and feed-forward
  c.model.transformer.model_dim = 512  # of embeddings and residual stream
  c.model.transformer.num_heads = 8  # of attention
  c.model.transformer.hidden_dim = 2048  # of the feed-forward layers
  c.model.transformer.dropout_rate = 0.1  # of embeddings, layers' results
  c.model.transformer.tied_embeddings = True  # the output layer's too
  c.model.lstm = ConfigDict()
  c.model.lstm.num_layers = 2  # of LSTM
  c.model.lstm.hidden_size = 1024  # entries of the cells
  c.model.lstm.embedding_size = 512  # entries of a token's vector
  c.model.lstm.projection_size = 0  # entries of the states; 0: as many as cells
  c.model.lstm.dropout_rate = 0.1  # of embeddings, layers' results
  c.model.lstm.tied_embeddings = False  # the output layer's too

  c.task = ConfigDict()
  # 'classification', 'regression', 'multi_label', 'language_modelling'
  c.task.name = 'classification'
  # Of classes and tokens, in the training loss only.
  c.task.label_smoothing = 0.0
  c.task.regression = ConfigDict()
  c.task.regression.loss = 'squared'  # or 'absolute'

  c.optimizer = ConfigDict()
  # 'sgd', 'momentum', 'nesterov', 'adam', 'adamw', 'lars', 'lamb', 'muon'
  # (matrices; adamw for the rest), or one of optax: 'optax.lion',
  # 'optax.contrib.sophia', ...
  c.optimizer.name = 'momentum'
  # Of optax's: any of its arguments, but for learning_rate, weight_decay and
  # its mask, which are the keys of this config.
  c.optimizer.args = ConfigDict()
  c.optimizer.momentum = 0.9  # momentum, nesterov, lars, muon
  c.optimizer.beta1 = 0.9  # adam, adamw, lamb, muon's adamw
  c.optimizer.beta2 = 0.999  # adam, adamw, lamb, muon's adamw
  c.optimizer.epsilon = 1e-8  # adam, adamw, lamb, muon's adamw
  c.optimizer.beta2_in_examples = False  # keep beta2's half-life in examples
  c.optimizer.beta2_min = 0.95  # beta2 falls no lower then, nor below beta1^2
  # L2; decoupled for adamw, lamb, muon, and optax's that take a weight_decay
  c.optimizer.weight_decay = 0.0
  # With the batch size, from reference_batch_size on: 'none', 'linear', 'sqrt'
  c.optimizer.weight_decay_scaling = 'none'
  c.optimizer.decay_norms_and_biases = False  # weight decay on those as well
  c.optimizer.trust_coefficient = 0.001  # lars
  # Largest norm of a batch's mean gradient, of all parameters together; longer
  # ones are scaled down to it. Each replica clips its own; rules read what was
  # not clipped. None: any.
  c.optimizer.clip_norm = placeholder(float)

  c.ema = ConfigDict()
  # Examples after which a weight counts half in the moving average of the
  # weights, which then is what is evaluated. None: no average.
  c.ema.half_life = placeholder(float)

  c.learning_rate = ConfigDict()
  c.learning_rate.base = 0.1  # at the reference batch size
  c.learning_rate.reference_batch_size = 32  # B_ref of scaling and of beta2
  c.learning_rate.scaling = 'none'  # 'none', 'linear', 'sqrt', 'adascale'
  # The rate is damped by (B_max / B)^this where the rule asks for B > B_max.
  # None: r - p, where noise allows a rate of B^r (r = 1; adam, adamw, lamb,
  # lars, muon 1/2) and `scaling` makes it B^p (0, sqrt 1/2, linear and adascale
  # 1). To be given for optax's, unless the batch size is constant.
  c.learning_rate.damping_exponent = placeholder(float)
  c.learning_rate.warmup = ConfigDict()
  c.learning_rate.warmup.kind = 'none'  # 'none', 'constant', 'gradual'
  # Where it starts, as a fraction of its target. None: from the rate of the
  # reference batch size, or from the target where that is lower.
  c.learning_rate.warmup.start = placeholder(float)
  c.learning_rate.warmup.epochs = 0.0  # length a of a + b B epochs ...
  c.learning_rate.warmup.epochs_per_example = 0.0  # ... and b, by batch size B
  c.learning_rate.warmup.length = placeholder(object)  # instead, in `unit`
  c.learning_rate.warmup.unit = 'epochs'  # like that of the decay
  c.learning_rate.decay = ConfigDict()
  # 'constant', 'piecewise', 'cosine', 'linear', 'polynomial', 'wsd' (warmup,
  # stable, decay: constant, then a cooldown)
  c.learning_rate.decay.name = 'constant'
  # 'epochs', 'examples', 'tokens' of text, 'updates' of the reference batch
  # size, or 'run': the whole of it. Where max_updates ends a run whose batch
  # size is chosen by what is measured, that is max_updates of the largest size
  c.learning_rate.decay.unit = 'epochs'
  c.learning_rate.decay.length = placeholder(object)  # None: the whole run
  c.learning_rate.decay.boundaries = (30.0, 60.0, 80.0)  # piecewise, in `unit`
  c.learning_rate.decay.factor = 0.1  # piecewise, at each boundary
  c.learning_rate.decay.final = 0.0  # last multiplier of the others
  c.learning_rate.decay.power = 2.0  # polynomial
  c.learning_rate.decay.cooldown = 0.2  # wsd: share of the length, at its end
  c.learning_rate.decay.shape = '1-sqrt'  # of the cooldown, or 'linear'

  c.controller = ConfigDict()
  # 'constant', 'adadamp', 'padadamp', 'geodamp', 'radadamp', 'adadamp_grad',
  # 'step_table', 'ramp_up', 'from_lr_schedule', 'noise_scale', 'norm_test',
  # 'cabs', 'probe', 'goodput'
  c.controller.name = 'adadamp'
  c.controller.initial_batch_size = 32  # B_0
  # B_max, at most the size of the training split; beyond it the rate is damped
  c.controller.max_batch_size = 1024
  c.controller.min_batch_size = placeholder(int)  # None: B_0 is the floor
  c.controller.every = 20  # updates between two decisions
  c.controller.wait = 0  # updates before the first change
  c.controller.monotone = False  # never let the batch size fall
  c.controller.smooth = 0.0  # weight of the old size's logarithm in a new one
  c.controller.growth_limit = placeholder(float)  # largest ratio per decision
  c.controller.hysteresis = placeholder(float)  # ignore smaller ratios
  c.controller.subset_size = 1024  # examples of loss_source 'subset'
  # In which rules (and 'adascale') are given the noise of the gradient: 'l2';
  # 'normalisation', of scales and biases of normalisation layers alone; 'adam',
  # of g / (sqrt(nu_hat) + epsilon), for adam, adamw, lamb; 'l1', for sign
  # descent, which takes memory and exchange of one more gradient.
  c.controller.noise_norm = 'l2'
  c.controller.adadamp = ConfigDict()
  c.controller.adadamp.loss_source = 'ema'  # 'full', 'subset', 'ema'
  c.controller.adadamp.minimum_loss = 0.0  # F*
  c.controller.adadamp.exponent = 1.0  # e: B grows as (1 / (F - F*))^e
  c.controller.adadamp.decay = 0.95  # of the moving average of 'ema'
  c.controller.padadamp = ConfigDict()
  c.controller.padadamp.rate = placeholder(float)  # None: the authors'
  c.controller.geodamp = ConfigDict()
  c.controller.geodamp.factor = 2.0  # growth at each step
  c.controller.geodamp.delay_epochs = 5.0  # between two steps
  c.controller.geodamp.lr_factor = 1.0  # AdaBatch: lr too, at the same epochs
  c.controller.radadamp = ConfigDict()
  c.controller.radadamp.rho = 0.2  # weight of the past in its averages
  # Updates in a window; the first one lasts to the first decision, if longer.
  c.controller.radadamp.window = 20
  c.controller.radadamp.reduction = 'min'  # 'min', 'mean', 'median', 'max'
  c.controller.radadamp.minimum_loss = 0.0  # F*
  c.controller.adadamp_grad = ConfigDict()
  c.controller.adadamp_grad.gradient_source = 'ema'  # 'full', 'subset', 'ema'
  c.controller.adadamp_grad.decay = 0.95  # of the moving average of 'ema'
  c.controller.step_table = ConfigDict()
  # 'count:size ...', the counts with suffixes K, M, B, T. With unit 'tokens'
  # also what Megatron is given as --step-batch-size-schedule, whose sizes are
  # in examples; and OLMo-core's BatchSizeSchedulerCallback, all in tokens:
  # 'batch_sizes=[1024 * 4096, ...], schedule=[Duration.tokens(0), ...]'. Its
  # rates are those of learning_rate.scaling 'sqrt'.
  c.controller.step_table.table = '0:32'
  c.controller.step_table.unit = 'examples'  # of counts, or 'epochs', 'tokens'
  c.controller.ramp_up = ConfigDict()
  c.controller.ramp_up.final_batch_size = 1024  # reached after `examples`
  c.controller.ramp_up.increment = 32  # in examples, of each step
  # Over which the size grows.
  c.controller.ramp_up.examples = FieldReference(10_000, field_type=object)
  c.controller.ramp_up.unit = 'examples'  # of that, or 'tokens'
  # Instead of increment and examples, with the start: 'start increment samples'
  # as Megatron has them in --rampup-batch-size.
  c.controller.ramp_up.megatron = placeholder(str)
  c.controller.from_lr_schedule = ConfigDict()  # reads learning_rate.decay
  c.controller.from_lr_schedule.exponent = 0.0  # q: 0 Smith, 0.5 Seesaw
  c.controller.noise_scale = ConfigDict()
  c.controller.noise_scale.c = 1.0  # batch size in units of the noise scale
  c.controller.noise_scale.decay = 0.99  # of both moving averages
  c.controller.norm_test = ConfigDict()
  c.controller.norm_test.eta = 0.5  # tolerated noise-to-signal ratio
  c.controller.norm_test.decay = 0.99  # of both moving averages
  c.controller.cabs = ConfigDict()
  c.controller.cabs.c = 1.0  # factor in front; 1 in the paper
  c.controller.cabs.minimum_loss = 0.0  # F*
  c.controller.cabs.decay = 0.95  # of both moving averages
  c.controller.probe = ConfigDict()  # branches of the run decide
  c.controller.probe.updates = 8  # of a branch with twice the batch, at least
  c.controller.probe.repeats = 3  # stretches of the data order
  c.controller.probe.epsilon = 0.01  # of the held-out loss: what is no cost
  c.controller.probe.confidence = 0.8  # of the interval that has to lie below
  c.controller.probe.growth = 2.0  # examples of a probe over those of the last
  c.controller.probe.cost = 0.15  # of the examples so far, that probes take
  # Follows the clock: two runs of one config differ.
  c.controller.goodput = ConfigDict()
  # 'second', or 'device_second' where devices may idle (buckets.min_per_device)
  c.controller.goodput.per = 'second'
  c.controller.goodput.gain = 1.05  # least ratio of progress for a change
  c.controller.goodput.decay = 0.99  # of both moving averages
  # From a decision to the next, in which an update is timed; their median
  # counts, and a new size is held for so many.
  c.controller.goodput.windows = 3

  c.buckets = ConfigDict()
  # Examples a device processes at once; may be others when a run is resumed.
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
  c.buckets.rounding = 'up'  # 'up', 'exact', 'nearest'
  c.buckets.growth = 2.0  # ratio of neighbouring buckets

  # Of several processes. All of these may be others when a run is resumed.
  c.processes = ConfigDict()
  c.processes.start_seconds = 300.0  # to wait for all of them to start
  # Without a sign of life before one counts as lost, which ends the others with
  # exit status 75: started again all go on from the last checkpoint.
  c.processes.lost_seconds = 30.0
  # How often those that are left start again by themselves instead.
  c.processes.restarts = 0
  # They then wait so long for the lost ones; with sync.min_replicas they go on
  # without, until these are started again and join at a checkpoint.
  c.processes.rejoin_seconds = 30.0
  c.watchdog = ConfigDict()
  # Without an update before the stacks of all threads are written to log.txt;
  # to compile, evaluate or save may take four times that. 0: never.
  c.watchdog.seconds = 1800.0
  c.watchdog.abort = False  # end the run then, with exit status 75
  c.parallel = ConfigDict()
  c.parallel.backend = 'shard_map'  # 'shard_map', 'pmap'
  c.parallel.gradient_dtype = 'float32'  # of their exchange; 'bfloat16'

  c.sync = ConfigDict()
  # 'synchronous' (one model), or models that are trained side by side and agree
  # now and then: 'local_sgd', 'post_local_sgd', 'qsr', 'slowmo', 'diloco',
  # 'easgd', 'sma'
  c.sync.name = 'synchronous'
  c.sync.replicas = 1  # of the model, not 'synchronous'; they share each batch
  # Of several processes, some of which are lost: those that are left go on, if
  # they train at least so many replicas (processes.restarts), with batch sizes
  # rounded up to equal shares. None: never.
  c.sync.min_replicas = placeholder(int)
  c.sync.local_steps = 16  # H: updates of one replica between two syncs
  c.sync.average_momentum = False  # average optimizer states at a sync as well
  c.sync.post_local_sgd = ConfigDict()
  # H is 1 before; None: the first boundary of a piecewise learning rate
  c.sync.post_local_sgd.epoch = placeholder(float)
  c.sync.qsr = ConfigDict()
  # H = (alpha / learning rate)^2, where that is above local_steps
  c.sync.qsr.alpha = 0.1
  c.sync.slowmo = ConfigDict()
  c.sync.slowmo.momentum = 0.7  # beta
  c.sync.slowmo.learning_rate = 1.0  # in units of the replicas' learning rate
  c.sync.diloco = ConfigDict()
  c.sync.diloco.momentum = 0.9  # Nesterov's, of the outer optimizer
  c.sync.diloco.learning_rate = 0.7  # of the outer optimizer
  c.sync.easgd = ConfigDict()
  c.sync.easgd.rho = 0.9  # replicas x elastic coefficient
  c.sync.sma = ConfigDict()
  c.sync.sma.rho = 1.0  # replicas x alpha
  c.sync.sma.momentum = 0.9  # mu, of the anchor
  c.sync.sma.restarts = True  # from the anchor where the learning rate drops
  c.sync.tune = ConfigDict()
  # Finds how many replicas a device should train: more while that raises the
  # throughput. Each keeps its share, so the batch grows with their number.
  c.sync.tune.enabled = False
  c.sync.tune.most = 8  # replicas on a device
  c.sync.tune.threshold = 0.1  # relative gain that one more must bring
  c.sync.tune.window = 20  # updates over which throughput is measured
  c.sync.tune.windows = 5  # of which the median counts

  c.target = ConfigDict()
  c.target.metric = 'accuracy'  # of the evaluation split
  c.target.value = placeholder(float)  # stop once better than this

  add_jobs(c)

  c.checkpoint = ConfigDict()
  c.checkpoint.every_updates = 1000  # updates between two checkpoints
  c.checkpoint.keep = 3  # the newest that are kept; may change at a resume
  # Whether the best by target.metric (by loss, where a task has none such) is
  # kept beside them, unless it is the newest. Not of the trials of a search.
  c.checkpoint.best = True
  c.log = ConfigDict()
  c.log.every_updates = 50  # and at every decision
  # (first, last) update of a trace in WORKDIR/profile; free at a resume.
  c.log.profile = placeholder(tuple)
  c.eval = ConfigDict()
  c.eval.every_epochs = 1.0  # epochs between two evaluations
  # 1.05: 5 % more examples at each, at least: equally fine for long and short.
  c.eval.growth = 1.0
  c.eval.max_per_device = 1024  # examples a device evaluates at once
  return c
