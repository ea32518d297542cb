"""The training loop, and what it is made of."""

from adabatch.train.loop import train

__all__ = ['train']
