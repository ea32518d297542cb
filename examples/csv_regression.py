"""A table of numbers in a CSV file, and numbers to be predicted from it.

    python examples/csv_regression.py DIRECTORY

makes diabetes.csv and does what this command does:

    python launch.py --config.data.name=csv:PATH/diabetes.csv \\
        --config.data.label_key=progression --config.task.name=regression \\
        --config.data.train_split='train[:90%]' \\
        --config.data.eval_split='train[90%:]'

Columns are standardised. `data.input_key='age,bmi'` takes some of them; several
labels are predicted at once by `data.label_key='a,b'`.
"""

import pathlib
import sys

import pyarrow as pa
import sklearn.datasets
from pyarrow import csv

from adabatch import config
from adabatch.train import train

directory = pathlib.Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
diabetes = sklearn.datasets.load_diabetes()
columns = dict(zip(diabetes.feature_names, diabetes.data.T, strict=True))
columns['progression'] = diabetes.target / 100
csv.write_csv(pa.table(columns), directory / 'diabetes.csv')

c = config.default()
c.epochs = 20.0
c.data.name = f'csv:{directory}/diabetes.csv'
c.data.label_key = 'progression'
c.data.train_split = 'train[:90%]'
c.data.eval_split = 'train[90%:]'
c.task.name = 'regression'
c.learning_rate.base = 0.01
c.controller.initial_batch_size = 16
c.controller.max_batch_size = 128
summary = train(c, directory / 'run')
print(summary['final'])
