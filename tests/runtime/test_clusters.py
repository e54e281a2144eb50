"""What schedulers say, read as jax reads it."""

from __future__ import annotations

import http.server
import os
import socket
import sys
import threading
import types

import pytest
from jax._src import clusters as theirs
from jax._src.clusters import cloud_tpu_cluster, cluster, k8s_cluster

from udp_jax.runtime import clusters

SLURM = {
  "SLURM_JOB_ID": "5000",
  "SLURM_NTASKS": "8",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NODELIST": "node1",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,localhost", "TPU_WORKER_ID": "1"}
# GKE sets the first; without the others both ask the metadata server for them.
ONE_SLICE = {
  "TPU_SKIP_MDS_QUERY": "true",
  "MEGASCALE_COORDINATOR_ADDRESS": "",
  "MEGASCALE_NUM_SLICES": "",
  "MEGASCALE_SLICE_ID": "",
}
THREE_SLICES = {
  "TPU_SKIP_MDS_QUERY": "true",
  "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8080",
  "MEGASCALE_NUM_SLICES": "3",
  "MEGASCALE_SLICE_ID": "2",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
  """No scheduler's variables, no TPU."""
  for name in [*os.environ]:
    if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "GCE_")):
      monkeypatch.delenv(name)
  monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)


@pytest.fixture
def tpu(monkeypatch: pytest.MonkeyPatch) -> None:
  """A machine with TPU chips."""
  for module in (cluster, cloud_tpu_cluster):
    monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr(clusters, "_on_tpu", lambda env: True)
  monkeypatch.setattr(clusters, "_has_chips", lambda: True)


def both(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
  """What we find, after a check that jax finds the same."""
  with monkeypatch.context() as patch:
    for name, value in env.items():
      patch.setenv(name, value)
    expected = theirs.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, 300
    )
  found = clusters.detect(env)
  got = (None,) * 4 if found is None else tuple(found)
  assert got == expected
  return got


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-0015],host2", "node001"),
    ("node[001,007-015],host2", "node001"),
    ("a-b-[7-9]", "a-b-7"),
    ("rack-1,rack-2", "rack-1"),
  ],
)
def test_slurm(nodes, first, monkeypatch):
  found = both(SLURM | {"SLURM_STEP_NODELIST": nodes}, monkeypatch)
  assert found == (f"{first}:62344", 8, 5, [1])


def test_a_port_of_ones_own(monkeypatch):
  assert both(SLURM | {"JAX_COORDINATOR_PORT": "77"}, monkeypatch)[0] == "node1:77"


@pytest.mark.parametrize("missing", sorted(SLURM))
def test_half_a_description_is_none(missing, monkeypatch):
  env = {name: value for name, value in SLURM.items() if name != missing}
  assert both(env, monkeypatch) == (None,) * 4


@pytest.mark.parametrize(
  ("uri", "host"),
  [
    (OPEN_MPI["OMPI_MCA_orte_hnp_uri"], "10.96.0.1"),
    ("1314521088.0;tcp6://[fe80::b9b:ac5d:9cf0:b858,2620:10d:c083:150e::3000:2]:43370", "fe80:"),
  ],
)
def test_open_mpi_goes_before_slurm(uri, host, monkeypatch):
  found = both(SLURM | OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": uri}, monkeypatch)
  assert str(found[0]).startswith(host) and found[1:] == (4, 3, [1])


@pytest.mark.parametrize(
  ("slices", "expected"), [(ONE_SLICE, (2, 1, None)), (THREE_SLICES, (6, 5, None))]
)
@pytest.mark.parametrize("name", ["TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"])
def test_tpus_in_kubernetes(name, slices, expected, tpu, monkeypatch):
  env = {name: GKE["TPU_WORKER_HOSTNAMES"], "TPU_WORKER_ID": "1", **slices}
  assert both(env, monkeypatch) == ("127.0.0.1:8482", *expected)


def test_without_a_tpu_its_variables_mean_nothing(monkeypatch):
  monkeypatch.setattr(clusters, "_on_tpu", lambda env: False)
  assert both(GKE | ONE_SLICE, monkeypatch) == (None,) * 4


def test_a_process_of_slurm_on_a_tpu_has_all_its_chips(tpu, monkeypatch):
  assert both(SLURM, monkeypatch)[3] is None


@pytest.mark.parametrize("endpoints", ["127.0.0.1,localhost", "a:1:127.0.0.1,b:2:10.0.0.2"])
@pytest.mark.parametrize("slices", [None, "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'"])
def test_tpu_vms_are_known_to_the_metadata_server(endpoints, slices, tpu, monkeypatch):
  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": endpoints,
    "tpu-env": f"ACCELERATOR_TYPE: 'v5'\n{slices or ''}",
  }

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      assert self.headers["Metadata-Flavor"] == "Google"
      body = attributes[self.path.rpartition("/")[2]].encode()
      self.send_response(200)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *args):
      pass

  monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (attributes[key], 200))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    found = both(env, monkeypatch)
    assert found == ("127.0.0.1:8482", *((6, 5) if slices else (2, 1)), None)
    # What jax sets where it finds no chips.
    assert clusters.detect(env | {"TPU_SKIP_MDS_QUERY": "1"}) is None
    server.shutdown()


def test_chips_are_googles_pci_devices(tmp_path):
  (tmp_path / "0").mkdir()
  (tmp_path / "0" / "vendor").write_text("0x8086\n")
  assert not clusters._has_chips(tmp_path)
  (tmp_path / "1").mkdir()
  (tmp_path / "1" / "vendor").write_text("0x1ae0\n")
  assert clusters._has_chips(tmp_path)


def test_endpoints_of_an_unknown_form_are_refused():
  with pytest.raises(ValueError, match="unsupported worker-network-endpoints format: a:b"):
    clusters._tpu_endpoints("c,a:b")


def _of(**fields: object) -> types.SimpleNamespace:
  return types.SimpleNamespace(**fields)


@pytest.mark.parametrize(
  ("labels", "subdomain", "host"),
  [
    ({}, "pods", "train-0.pods"),
    ({"jobset.sigs.k8s.io/jobset-name": "set"}, "pods", "train-0.set"),
  ],
)
def test_kubernetes(labels, subdomain, host, tmp_path, monkeypatch):
  pod = _of(
    metadata=_of(
      name="train-2-x",
      labels={"job-name": "train"},
      owner_references=[_of(controller=None, kind="?"), _of(controller=True, kind="Job")],
    ),
    spec=_of(subdomain=subdomain),
  )
  job = _of(metadata=_of(name="train", labels=labels), spec=_of(parallelism=4))
  core = _of(list_namespaced_pod=lambda namespace, field_selector: _of(items=[pod]))
  batch = _of(read_namespaced_job=lambda name, namespace: job)
  package = types.ModuleType("kubernetes")
  package.__spec__ = _of()
  package.config = _of(load_incluster_config=lambda: None)
  package.client = _of(
    CoreV1Api=lambda: core,
    BatchV1Api=lambda: batch,
    exceptions=_of(ApiException=type("ApiException", (Exception,), {})),
  )
  monkeypatch.setitem(sys.modules, "kubernetes", package)
  monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
  (tmp_path / "namespace").write_text("default\n")
  monkeypatch.setattr(clusters, "_SERVICE_ACCOUNT", tmp_path / "namespace")
  monkeypatch.setattr(k8s_cluster.K8sCluster, "_namespace", lambda: "default")
  for name in ("_pod", "_job", "_controller"):
    getattr(k8s_cluster.K8sCluster, name).__func__.cache_clear()
  env = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.2",
    "JOB_COMPLETION_INDEX": "2",
    "HOSTNAME": "train-2",
  }
  assert both(env, monkeypatch) == (f"{host}:55527", 4, 2, None)
  pod.spec.subdomain = None
  if not labels:
    with pytest.raises(RuntimeError, match="needs a headless service"):
      clusters.detect(env)
