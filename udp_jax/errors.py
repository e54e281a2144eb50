"""Errors that a user can cause and fix, each with its documented exit code.

Entry points print `error: MESSAGE` on one line and exit with `exit_code`; any other exception is a
bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import signal


class UserError(Exception):
  """A problem in the user's input or surroundings. The message says what, where and what to do."""

  exit_code = 2


class ConfigError(UserError):
  """An unknown config, method or field, or a value that cannot be used. Exit code 2."""


class MissingDataError(UserError):
  """Data or weights are missing: the message says which, where they should be, how to get them."""


class BadDataError(UserError):
  """A file exists but cannot be used (truncated, wrong checksum, no images). Exit code 3."""

  exit_code = 3


class OutputError(UserError):
  """An output cannot be written (it exists, is read-only, or the disk is full). Exit code 4."""

  exit_code = 4


class DivergedError(UserError):
  """A loss or parameter became NaN or infinite. Exit code 5."""

  exit_code = 5


class PeerLostError(UserError):
  """Another process of the run died, failed, or never appeared. Exit code 6."""

  exit_code = 6


class Preempted(Exception):
  """The process was asked to stop, and everything is saved. This is not an error.

  Attributes:
    signal: number of the signal that asked for it: SIGTERM, or SIGINT for Ctrl-C.
  """

  def __init__(self, message: str, number: int = signal.SIGTERM):
    super().__init__(message)
    self.signal = number
