"""metrics.jsonl: appending, what a kill leaves behind, and going back to a checkpoint."""

import json

import numpy as np
import pytest

from udp_jax.errors import OutputError
from udp_jax.runtime.metrics_log import MetricsWriter, read_metrics


def test_every_record_is_one_line_at_once(tmp_path):
  path = tmp_path / "deep" / "metrics.jsonl"
  writer = MetricsWriter(path)
  writer.write(1, loss=np.float32(0.5), note="a\nb", steps=np.int64(7))
  # Read while the writer is still open.
  assert path.read_text().count("\n") == 1
  writer.write(2, loss=float("nan"), rate=np.float32("inf"))
  writer.close()
  lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
  assert lines == [
    {"position": 1, "loss": 0.5, "note": "a\nb", "steps": 7},
    {"position": 2, "loss": None, "rate": None},
  ]
  assert read_metrics(path) == lines


def test_nothing_written_reads_as_nothing(tmp_path):
  assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_kill_in_the_middle_of_a_line_costs_that_line(tmp_path, cut):
  path = tmp_path / "metrics.jsonl"
  writer = MetricsWriter(path)
  for position in (1, 2, 3):
    writer.write(position, loss=0.25)
  writer.close()
  path.write_bytes(path.read_bytes()[: -1 - cut])
  assert [r["position"] for r in read_metrics(path)] == [1, 2]
  # The resumed run starts from the last checkpoint and must not glue its line to the torn one.
  writer = MetricsWriter(path)
  writer.rewind(2)
  writer.write(3, loss=0.125)
  writer.close()
  assert [(r["position"], r["loss"]) for r in read_metrics(path)] == [
    (1, 0.25),
    (2, 0.25),
    (3, 0.125),
  ]


def test_rewind_drops_later_records(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = MetricsWriter(path)
  for position in range(1, 6):
    writer.write(position, loss=position)
  writer.rewind(3)
  assert [r["position"] for r in read_metrics(path)] == [1, 2, 3]
  writer.write(4, loss=40)
  writer.rewind(0)
  writer.close()
  assert path.read_bytes() == b""


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "taken").write_text("")
  with pytest.raises(OutputError, match="a file stands where a folder is needed"):
    MetricsWriter(tmp_path / "taken" / "metrics.jsonl")
  with pytest.raises(OutputError, match="a folder stands where a file is needed"):
    MetricsWriter(tmp_path)
