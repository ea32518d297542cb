"""The training loop, and what it is made of."""

from adabatch.train.job import train

__all__ = ['train']
