"""jobset.sh: the manifest for Kubernetes, as Kubernetes reads it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from tests.launch.conftest import ROOT, StandIn
from tests.launch.words import JOBSET, NASTY, shown


def expanded(text: str) -> str:
  """A word of a container's command as Kubernetes hands it on, without any variable defined."""
  return re.sub(r"\$(\$|\(\w+\))", lambda m: "$" if m[1] == "$" else m[0], text)


def test_the_jobset(stand_in: StandIn):
  done = stand_in.launch("jobset.sh", *JOBSET, "--spot", "--replicas=2", "--", "python", *NASTY)
  assert done.returncode == 0, done.stderr
  manifest = yaml.safe_load(done.stdout)
  assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  (slices,) = manifest["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  assert slices["replicas"] == 2
  # 16 chips, 4 a host.
  assert job["parallelism"] == job["completions"] == 4
  assert job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  words = ["bash", "launch/supervise.sh", "--", "python", *NASTY]
  assert [expanded(word) for word in container["command"]] == words


@pytest.mark.parametrize("replicas, hosts", [(1, 4), (2, 4), (1, 1)])
def test_the_hosts_of_a_jobset_find_each_other(stand_in: StandIn, replicas: int, hosts: int):
  # What each container would see, and what the entry points make of it.
  words = (f"--replicas={replicas}", "--topology=4x4" if hosts == 4 else "--topology=2x4")
  detect = (
    "from udp_jax.runtime import processes; s = processes.detect(); "
    "print('GOT' + __import__('json').dumps(s and s[:3]))"
  )
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", sys.executable, "-c", detect)
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  given = {item["name"]: item.get("value") for item in container["env"]}
  found = []
  # The first and the last are enough.
  for slice_number, host in {(0, 0), (replicas - 1, hosts - 1)}:
    env = {**stand_in.env, **given, "JOBSET_SLICE": str(slice_number)}
    env["JOB_COMPLETION_INDEX"] = str(host)
    command = [expanded(word) for word in container["command"]]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    found.append(shown(done.stdout))
  count = replicas * hosts
  if count == 1:
    assert found == [None]
  else:
    assert sorted(found) == [["x-slice-0-0.x:8482", count, i] for i in (0, count - 1)]


@pytest.mark.parametrize("text", ["$(HOME)", "$$(x)", "$", "$$", "\x01\x1f\x7f", '\\u0041"'])
def test_any_word_survives_yaml_and_kubernetes(stand_in: StandIn, text: str):
  done = stand_in.launch("jobset.sh", *JOBSET, "--", text)
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  word = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
  assert expanded(word) == text


@pytest.mark.parametrize(
  "accelerator, topology, hosts, chips",
  [("v5e", "2x4", 1, 8), ("v6e", "16x16", 64, 4), ("v4", "2x2x1", 1, 4), ("v5p", "4x4x4", 16, 4)],
)
def test_hosts_of_a_topology(
  stand_in: StandIn, accelerator: str, topology: str, hosts: int, chips: int
):
  words = (f"--accelerator={accelerator}", f"--topology={topology}")
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
  assert (spec["parallelism"], limits["google.com/tpu"]) == (hosts, chips)


def test_every_option_of_the_jobset_is_valid_yaml(stand_in: StandIn):
  words = ("--namespace=n", "--queue=q", "--service_account=s", "--volume_claim=c", "--mount=/m")
  printed = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  manifest = yaml.safe_load(printed.stdout)
  assert manifest["metadata"]["namespace"] == "n"
  assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
  pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  assert pod["serviceAccountName"] == "s"
  assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/m"
  # --apply hands over what is printed, and so does the dry run of --apply when pasted.
  assert stand_in.launch("jobset.sh", *JOBSET, *words, "--apply", "--", "true").returncode == 0
  assert (stand_in.folder / "manifest.yaml").read_text() == printed.stdout
  (stand_in.folder / "manifest.yaml").unlink()
  dry = stand_in.launch("jobset.sh", *JOBSET, *words, "--apply", "--dry_run", "--", "true")
  assert stand_in.bash("-c", dry.stdout).returncode == 0
  assert (stand_in.folder / "manifest.yaml").read_text() == printed.stdout


@pytest.mark.parametrize(
  "words, message",
  [
    (("--topology=4by4",), "--topology=4by4"),
    (("--topology=3x3", "--accelerator=v4"), "no multiple"),
    (("--replicas=0",), "--replicas=0"),
    (("--volume_claim=c",), "--mount is missing"),
    (("--image=",), "--image is missing"),
  ],
)
def test_bad_input_of_the_jobset(stand_in: StandIn, words: tuple[str, ...], message: str):
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stdout == ""
