"""Every key of a config: default, kind, range, smoke value, flag."""

from adabatch.config.errors import Config, ConfigError, choose, refusing
from adabatch.config.flat import flatten
from adabatch.config.keys import AUTOMATIC, COUNTED, default
from adabatch.config.kinds import check_kinds
from adabatch.config.known import (
  ARGUMENTS,
  FREE,
  check_keys,
  differences,
  is_of_another,
  nearest,
  of_json,
)

__all__ = [
  'ARGUMENTS',
  'AUTOMATIC',
  'COUNTED',
  'FREE',
  'Config',
  'ConfigError',
  'check_keys',
  'check_kinds',
  'choose',
  'default',
  'differences',
  'flatten',
  'is_of_another',
  'nearest',
  'of_json',
  'refusing',
]
