"""A folder of images for each class, trained by its path.

    python examples/class_folder.py DIRECTORY

makes PATH/CLASS/*.jpg of made-up pictures and does what this command does:

    python launch.py --config.data.name=folder:PATH \\
        --config.data.train_split='train[:90%]' \\
        --config.data.eval_split='train[90%:]'

With PATH/train/CLASS and PATH/val/CLASS the splits are `train` and `val`.
Images of many sizes are cropped to `data.image_size`, 224 pixels by default, at
random in training: small pictures want less, and `data.min_area` near 1.
"""

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

from adabatch import config
from adabatch.train import train

directory = pathlib.Path(sys.argv[1])
path, rng = directory / 'shapes', np.random.default_rng(0)
for i in range(300):
  name = ('disc', 'square')[i % 2]
  image = Image.new('RGB', (16, 16), tuple(rng.integers(0, 80, 3).tolist()))
  draw = ImageDraw.Draw(image)
  shape = draw.ellipse if name == 'disc' else draw.rectangle
  x, y = rng.integers(1, 5, 2).tolist()
  shape([x, y, x + 9, y + 9], fill=tuple(rng.integers(150, 255, 3).tolist()))
  (path / name).mkdir(parents=True, exist_ok=True)
  image.save(path / name / f'{i:03}.jpg')

c = config.default()
c.epochs = 8.0
c.data.name = f'folder:{path}'
c.data.train_split = 'train[:90%]'
c.data.eval_split = 'train[90%:]'
c.learning_rate.base = 0.02
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 64
c.controller.every = 10
summary = train(c, directory / 'run')
print(summary['final'])
