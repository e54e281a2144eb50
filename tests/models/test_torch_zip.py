import base64
import builtins
import hashlib
import importlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import torch_zip

# Written by PyTorch 2.13 itself: torch.save({"epoch": 3, "state": {"transposed": base.t(),
# "column": base[1:, 2], "half": half, "bfloat": bfloat, "scalar": torch.tensor(7),
# "parameter": torch.nn.Parameter(torch.ones(2))}}) with base = torch.arange(12.0).reshape(3, 4),
# half = torch.tensor([1.5, -2.0]).half() and bfloat the same in bfloat16; then zlib.compress.
WRITTEN_BY_TORCH_ZIP = """
eNqllV1v21QYx09e6qTu6Nu6diujDAYshS31S966lmWzJgvkSaRBSFFvItc5ra25cR77pAOkSZVQB7tDaBdcAV8CwR39Crso
V1wg7QJxxSdA2jl26tkuaUR71FPHyfn/nv/xeZ7HDS2TRSifRyfGNJpFumuY1h5e6ehEL/Ye2qoyiTZjYz/9GFChNUYFuOcY
JqS0jH/nEZ1goL9mCi2e3hNX73o9x8MdyBrEoeBiu08s2+PbLt7qW3anTXDXc9z2nsTDWKHQyvkUx9V3MHCBhFdtRyefBl/y
kGul6BoB8q0MvRq9PoxrFwjwGxrSslrmCUxoKS37BC48NQzHtrFBLKfr8Z+4Hezizn3LIDy8ttyESQJTTZhucYzi2P3dLsyY
1ILJmTkzb/rQ2Q2N09IHcFHLHsDcU5PpLhGYb8JCiz5BZOr2NlwOVAOzH9GvQq9XfK8iLFJcmsDrzCPFXdVSB/BGgFsi8GYT
rvk2trbZTuGtGFDxty9WQujbPlSC6wH0nQH0XQZ9L4DeIFBowrIP9Qzd1l14PwZ94HR3QuAHPlCGmxSYInCLApeXA1CRwEoT
hNY4XdDTXX0XE+yCOOQswxU8SMeP0meXQA7MlgZmy8xsJYhRJVBrwuo3/s3tr2GtCev9frGh5fI//nt1HKdpltHZGJq0C2g+
TNrituPu6qS9h12PnruqzCZylw2RsX/554+vmDc2h7MXUfUVe5CYbd22drq7uEtURf4P/MhRKTED9UfwN90XSp9qYAbVQwNb
XxDssDxWlbWzxD0etkWIjZmHgw9fXGFJwp3qYRLdiXWFFUFVbp/DQEDdr9N/d+kfnft0/kTnIZ1/0onu0V5E5zU6hXvM6eeP
t+8IrPBHOJ2LOxVVZfqEU7qdQ8asHB09Y2WcHcG8G2dKqrJ+nse/eVgP4uc2Nl+cIb583vi5AZl56P3+l8OC5kd4WI97KKlK
DZ39/NnZ79dZ/G83uKPR8afQWhg/LO3qWQ3IPIv8/Iedz0bX3xKSXjUAf+sedi3aAb7U2YulbXVUpfg/jQhCuSyuCmKtLEuC
XF4VqrWqWJJrJVmqVMUq/SCWJbEiMZe1j1caBeqj4LtMMbOhz2h7nD7hPPkeT6qjDXAhpvw5jYY11CQk2sQW440rg07pnElO
tBHNxDjfRThhA0zKo91hMiafz6JE70pqo10grj1MasWkNlrBce3cWEIrJbXRyotrnyW1clIbrZq49jKX0JaS2mjeT8W030e0
Q847mo5LMfFsDo0olIbGcTePyypzK1ROJK6/pYPrr7njNsX5nx7xwX3wxh7jAs2Evz5Y+xIdY2U3
"""
WRITTEN_BY_TORCH_STREAM = """
eNp1kllv00AQx30loaYt5aac5U45QuzmMlcpQhXSctW8+AVZrrOtjVxvxt5UAqlSXlpaPgMPPPIx8lF45SMg8cCs7UYUguVZ
e2dnf/+d2Rkon/Xo15fln3Pvv72ZrQ2Ulz9UHLdAqjozkiT1EsaZzyJ3kyZpyGKQMcCZwpUo5DyiLo27oReDsuvo6OQfetRN
w480BXULtKpTQmcasIRDiSiOirMw5lAmmqMJBovXoUK0fn9fU8TTHvMDkIma7+Yep4CrajWXSLw47bGUdkHzOUv8oOb2eRil
upvQ1X4YdV1O45Ql7qapQ6ladSoZhSXeOoVyvkVfjpjH3+ZOHSrONMZYjY5h1Otto9mwLBMOZcf1e32YIJOvOOgrRCIaUXfg
MJGJtgOTez5WJqI+x8Kk+uukSxPafRb6XIepeRumORyxYcYpCwyL+hsxHA3wQEE5GCt4LMiFjq+QMlG24QTRtuHkXiBYpzic
tuFMVrXAi9ZgNicV6TxH1yibsyN4vWOZZsNsGiacQ7iC8PMiC4RfIPI2XMzhlzjM2XA5O+jqmqgMXDmAf5qVy2iNJK7+LdFq
tuBaIXG9kLghJG7mElUOON7KJFLfi7wEbh+QeIGtMMLfOYA3FgzTasFdxMuIryF+fj7H3uNQt8FwJkSreom3QTlNwPxPX4wi
dFj45yKEUt1qtZsmNIpEmkUiLZFIO1fscLBsuL+bTR58goc2PMra951o3zEweVwuyrgrUscVVRvXKSVaU6T9Z7AoTC5mleI7
Wn8sDff/h4vScFL68xF7pSf4og3QvqIN0b6jSUuSNIM2h1Zf+g1tdAt6
"""


class _Storage:
  def __init__(self, kind, key, values):
    self.kind, self.key, self.values = kind, key, values


class _Tensor:
  """Pickles as PyTorch's tensors do, under whatever modules `fake_torch` has put in place."""

  def __init__(self, storage, offset, shape, strides):
    self.arguments = (storage, offset, shape, strides, False, OrderedDict())

  def __reduce__(self):
    return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
  def __init__(self, file, legacy):
    super().__init__(file, protocol=2)
    self.legacy = legacy
    self.storages = {}

  def persistent_id(self, obj):
    if not isinstance(obj, _Storage):
      return None
    self.storages[obj.key] = obj.values
    pid = ("storage", getattr(sys.modules["torch"], obj.kind), obj.key, "cpu", obj.values.size)
    return (*pid, None) if self.legacy else pid


@pytest.fixture
def fake_torch(monkeypatch):
  """Modules with PyTorch's names, so that the pickler can refer to what is not installed."""
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  for kind in ("FloatStorage", "LongStorage", "HalfStorage"):
    setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
  rebuild = lambda *_: None
  rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
  utils._rebuild_tensor_v2 = rebuild
  monkeypatch.setitem(sys.modules, "torch", torch)
  monkeypatch.setitem(sys.modules, "torch._utils", utils)


def _encode(tree, layout):
  stream = io.BytesIO()
  if layout == "zip":
    pickler = _Pickler(stream, legacy=False)
    pickler.dump(tree)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("any/data.pkl", stream.getvalue())
      for key, values in pickler.storages.items():
        archive.writestr(f"any/data/{key}", values.tobytes())
    return file.getvalue()
  for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
    pickle.dump(header, stream, protocol=2)
  pickler = _Pickler(stream, legacy=True)
  pickler.dump(tree)
  # PyTorch sorts the keys, so the order of the storages is not that of the tensors.
  keys = sorted(pickler.storages)
  pickle.dump(keys, stream, protocol=2)
  for key in keys:
    values = pickler.storages[key]
    stream.write(struct.pack("<q", values.size) + values.tobytes())
  return stream.getvalue()


def _read(tmp_path, content, sha256=None):
  path = tmp_path / "checkpoint.pth"
  path.write_bytes(content)
  return torch_zip.read_tensors(path, sha256=sha256 or hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_views_of_one_storage_are_read_with_their_offsets_and_strides(tmp_path, fake_torch, layout):
  base = np.arange(24, dtype=np.float32).reshape(4, 6)
  shared = _Storage("FloatStorage", "9", base)
  halves = np.array([1.5, -0.25], np.float16)
  tree = OrderedDict(
    whole=_Tensor(shared, 0, (4, 6), (6, 1)),
    transposed=_Tensor(shared, 0, (6, 4), (1, 6)),
    column=_Tensor(shared, 8, (3,), (6,)),
    every_other=_Tensor(shared, 7, (3, 2), (6, 2)),
    repeated=_Tensor(shared, 3, (2, 2), (0, 1)),
    scalar=_Tensor(_Storage("LongStorage", "10", np.array([2**40])), 0, (), ()),
    nested={"half": _Tensor(_Storage("HalfStorage", "1", halves), 0, (2,), (1,)), "epoch": 3},
  )
  tensors = _read(tmp_path, _encode(tree, layout))
  expected = {
    "whole": base,
    "transposed": base.T,
    "column": base[1:, 2],
    "every_other": base[1:, 1:4:2],
    "repeated": base[[0, 0], 3:5],
    "scalar": np.array(2**40),
    "nested.half": halves,
  }
  assert list(tensors) == list(expected)
  for name, values in expected.items():
    assert tensors[name].dtype == values.dtype, name
    np.testing.assert_array_equal(tensors[name], values, err_msg=name)
  tensors["whole"][:] = -1
  np.testing.assert_array_equal(tensors["transposed"], base.T)


def test_tensors_of_before_pytorch_0_4(tmp_path, fake_torch):
  """Their pickles call a function of another name, with less."""
  utils = sys.modules["torch._utils"]
  utils._rebuild_tensor = utils._rebuild_tensor_v2
  utils._rebuild_tensor.__qualname__ = "_rebuild_tensor"
  tensor = _Tensor(_Storage("FloatStorage", "1", np.arange(6, dtype=np.float32)), 0, (2, 3), (3, 1))
  tensor.arguments = tensor.arguments[:4]
  tensors = _read(tmp_path, _encode(OrderedDict(old=tensor), "stream"))
  np.testing.assert_array_equal(tensors["old"], np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("encoded", [WRITTEN_BY_TORCH_ZIP, WRITTEN_BY_TORCH_STREAM])
def test_a_file_of_pytorch_itself(tmp_path, encoded):
  tensors = _read(tmp_path, zlib.decompress(base64.b64decode(encoded)))
  base = np.arange(12, dtype=np.float32).reshape(3, 4)
  np.testing.assert_array_equal(tensors["state.transposed"], base.T)
  np.testing.assert_array_equal(tensors["state.column"], base[1:, 2])
  assert tensors["state.half"].dtype == np.float16
  assert tensors["state.half"].tolist() == [1.5, -2.0]
  assert tensors["state.bfloat"].dtype.name == "bfloat16"
  assert tensors["state.bfloat"].astype(np.float32).tolist() == [1.5, -2.0]
  assert tensors["state.scalar"].shape == () and tensors["state.scalar"] == 7
  np.testing.assert_array_equal(tensors["state.parameter"], np.ones(2, np.float32))


class _Call:
  """Pickles as a call: what `pickle.load` would run on opening the file."""

  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("layout", ["zip", "stream"])
@pytest.mark.parametrize("matching", [True, False])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, layout, matching):
  marker = tmp_path / "marker"
  content = _encode({"weight": _Call(os.system, f"touch {marker}")}, layout)
  sha256 = None if matching else "0" * 64
  with pytest.raises(BadDataError, match="not allowed" if matching else "expected 0000"):
    _read(tmp_path, content, sha256)
  assert not marker.exists()


@pytest.mark.parametrize(
  "function", [builtins.eval, builtins.getattr, np.frombuffer, importlib.import_module, bytearray]
)
def test_only_names_of_tensors_are_known(tmp_path, function):
  with pytest.raises(BadDataError, match="not allowed"):
    _read(tmp_path, _encode({"weight": _Call(function, "1")}, "zip"))


def test_nothing_is_unpickled_before_the_digest_is_checked(tmp_path, monkeypatch):
  def fail(*_):
    raise AssertionError("unpickled")

  monkeypatch.setattr(torch_zip, "_Unpickler", fail)
  content = zlib.decompress(base64.b64decode(WRITTEN_BY_TORCH_ZIP))
  with pytest.raises(BadDataError, match="sha256 is .* fetch it again"):
    _read(tmp_path, content, hashlib.sha256(content + b"x").hexdigest())
  with pytest.raises(BadDataError, match="unpickled"):
    _read(tmp_path, content)


@pytest.mark.parametrize("layout", ["zip", "stream"])
@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [(0, (3, 4), (5, 1)), (1, (12,), (1,)), (0, (12,), (-1,)), (-1, (2,), (1,)), (0, (2, 2), (1,))],
)
def test_a_tensor_outside_its_storage_is_refused(
  tmp_path, fake_torch, layout, offset, shape, strides
):
  storage = _Storage("FloatStorage", "0", np.zeros(12, np.float32))
  with pytest.raises(BadDataError, match="tensor weight"):
    _read(tmp_path, _encode({"weight": _Tensor(storage, offset, shape, strides)}, layout))


@pytest.mark.parametrize("encoded", [WRITTEN_BY_TORCH_ZIP, WRITTEN_BY_TORCH_STREAM])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_refused(tmp_path, encoded, kept):
  content = zlib.decompress(base64.b64decode(encoded))
  with pytest.raises(BadDataError, match="checkpoint.pth"):
    _read(tmp_path, content[: int(kept * len(content))])


def test_what_is_no_checkpoint_is_refused(tmp_path):
  with pytest.raises(BadDataError, match="no tensors"):
    _read(tmp_path, _encode({"epoch": 3}, "zip"))
  with pytest.raises(BadDataError, match="neither a zip archive nor"):
    _read(tmp_path, pickle.dumps(1) + pickle.dumps(2))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(MissingDataError, match="absent.pth"):
    torch_zip.read_tensors(tmp_path / "absent.pth", sha256="0" * 64)
