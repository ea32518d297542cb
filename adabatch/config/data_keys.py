"""The keys of the data; see `config.keys`, of which these are a part."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def add_data(c: ConfigDict) -> None:
  """Adds the table of the data to the defaults."""
  # What is trained on.
  c.data = ConfigDict()
  # The set: 'digits', a TFDS image or text set, or files of your own:
  # folder:PATH, npz:PATH, csv:PATH, parquet:PATH.
  c.data.name = 'digits'
  # The column of a file that is fed to the network; several are separated by
  # commas. None: found by their names.
  c.data.input_key = placeholder(str)
  # The column of a file that is predicted; several are separated by commas.
  # None: found by their names.
  c.data.label_key = placeholder(str)
  # Where TFDS sets lie; None: TFDS's own place. May be another when a run is
  # resumed.
  c.data.data_dir = placeholder(str)
  # The split that is trained on, in TFDS's syntax: 'train[:45000]' and so on.
  c.data.train_split = 'train'
  # The split that is evaluated, and never trained on, in the same syntax.
  c.data.eval_split = 'validation'
  # Where the examples lie: 'resident' (on every device), 'streaming' (read
  # while training), 'auto': resident if they have one size and fit in
  # data.max_resident_bytes. May be another when a run is resumed.
  c.data.placement = 'auto'
  # Most bytes of both splits together that data.placement 'auto' puts on every
  # device. May be another when a run is resumed.
  c.data.max_resident_bytes = 2_000_000_000
  # Processes that read a stream; 0: a thread of this one; None: as many as
  # there are cores for.
  c.data.workers = placeholder(int)
  # Records of an epoch, or of an evaluation, that may be unreadable: more stop
  # the run.
  c.data.max_skipped = 100
  # Share of the records of a split that may be unreadable: more stop the run.
  c.data.max_skipped_fraction = 0.01
  # Of each channel or column, subtracted from it; of pixels in [0, 1]. None:
  # measured on the training split.
  c.data.mean = placeholder(tuple)
  # Standard deviation of each channel or column, which it is divided by; of
  # pixels in [0, 1]. None: measured on the training split.
  c.data.std = placeholder(tuple)
  # Pixels of padding around an image, of which a random part of its own size is
  # cut out in training; 0: none.
  c.data.crop_padding = 0
  # Whether images are mirrored left to right at random in training.
  c.data.flip = False
  # RandAugment in training: operations on each image, and their strength from 0
  # to 10, such as (2, 9). None: none. Also of images that are cropped at
  # random; which operations depends on seed and position alone.
  c.data.randaugment = placeholder(tuple)
  # Share of the images that lose a rectangle in training.
  c.data.random_erasing = 0.0
  # alpha of mixup, 0: none. Partners are drawn from the whole training split,
  # which has to lie on the devices; rules that read the training loss then read
  # that of mixed examples.
  c.data.mixup = 0.0
  # Pixels of the side of the squares that images of several sizes are cropped
  # to: at random in training, from the centre in evaluation.
  c.data.image_size = 224
  # Pixels of the shorter side of such an image before it is cropped in
  # evaluation; None: 8/7 of data.image_size.
  c.data.eval_resize = placeholder(int)
  # Least share of the image in a random crop of data.image_size.
  c.data.min_area = 0.08
  # What makes tokens of a text: 'bytes', 'sentencepiece'.
  c.data.tokenizer = 'bytes'
  # Tokens of sentencepiece, which is trained on the training split.
  c.data.vocab_size = 32_000
  c.data.sequence_length = 128  # tokens of a text that an example predicts
