"""Errors and the exit codes that README.md documents."""

from __future__ import annotations

import inspect
import re
import signal
from pathlib import Path

from udp_jax import errors

README = Path(__file__).resolve().parents[1] / "README.md"
CODES = {
  "UserError": 2,
  "ConfigError": 2,
  "MissingDataError": 2,
  "BadDataError": 3,
  "OutputError": 4,
  "DivergedError": 5,
  "PeerLostError": 6,
}


def test_every_error_has_its_documented_code() -> None:
  found = {
    name: kind.exit_code
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.UserError)
  }
  assert found == CODES
  (said,) = re.findall(r"Exit codes: (.+?)\n\n", README.read_text(), re.DOTALL)
  assert set(CODES.values()) <= {int(code) for code in re.findall(r"(?<![\w.])(\d)(?= )", said)}


def test_to_be_stopped_is_no_mistake_of_the_user() -> None:
  stopped = errors.Preempted("stopped", signal.SIGINT)
  assert not isinstance(stopped, errors.UserError)
  assert (str(stopped), stopped.signal) == ("stopped", signal.SIGINT)
  assert errors.Preempted("stopped").signal == signal.SIGTERM
