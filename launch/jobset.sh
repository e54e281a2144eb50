#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Prints a Kubernetes JobSet (jobset.x-k8s.io/v1alpha2) that runs a command on every host of one or
more TPU slices of a GKE cluster; with --apply hands it to kubectl.

  bash launch/jobset.sh --name=x --image=IMAGE --accelerator=v5e --topology=4x4 -- \
    python -m experiments.eudp --config=cifar10 --workdir=/mnt/shared/cifar10 > x.yaml

  --name=NAME           of the JobSet
  --image=IMAGE         holds the repository and its .venv (launch/README.md has a Dockerfile)
  --dir=PATH            of the repository in the image (default: /udp_jax)
  --accelerator=A       v4, v5e, v5p, v6e, or a value of the label
                        cloud.google.com/gke-tpu-accelerator
  --topology=T          of a slice, e.g. 4x4 or 2x2x4
  --replicas=N          slices (default 1)
  --chips_per_host=N    default: 4; all of them for v5e and v6e slices of up to 8 chips
  --max_restarts=N      of the whole set after a failure or preemption (default 20); exit codes 2 to
                        5 of the entry points, the user's mistakes, end it at once
  --grace_seconds=N     between SIGTERM and SIGKILL, for saving (default 120)
  --spot                nodes with spot capacity
  --namespace=NAME      default: kubectl's own
  --queue=NAME          Kueue's LocalQueue
  --service_account=S   Kubernetes service account, e.g. for access to a bucket
  --volume_claim=CLAIM --mount=PATH   a PersistentVolumeClaim for the workdir, mounted at PATH
  --apply               kubectl apply instead of printing
  --dry_run             print the command that --apply runs

Exit code: 2 for bad options, otherwise kubectl's.
EOF
}

image=
dir=/udp_jax
accelerator=
topology=
replicas=1
chips_per_host=
max_restarts=20
grace_seconds=120
spot=
namespace=
queue=
service_account=
volume_claim=
mount=
apply=
options=(name image dir accelerator topology replicas chips_per_host max_restarts grace_seconds
  namespace queue service_account volume_claim mount)
switches=(spot apply)
parse_options "$@"
((${#positional[@]} == 0)) ||
  fail "unexpected argument ${positional[0]} (the command follows --; see --help)"
require_command
require_name
require_option image "the container image with the repository"
require_option accelerator "v4, v5e, v5p or v6e"
require_option topology "e.g. 4x4"
require_count replicas 1
require_count max_restarts 0
require_count grace_seconds 1
[[ -z $volume_claim ]] || require_option mount "where --volume_claim=$volume_claim appears"
[[ -z $mount || -n $volume_claim ]] || fail "--mount=$mount needs --volume_claim"
[[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
  fail "--topology=$topology: like 4x4 or 2x2x4"
if [[ -n $apply ]]; then
  require_program kubectl "install it (gcloud components install kubectl)"
fi

chips=$((${topology//x/ * }))
case $accelerator in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
esac
if [[ -z $chips_per_host ]]; then
  chips_per_host=4
  case $accelerator in
    tpu-v5-lite-podslice | tpu-v6e-slice) ((chips > 8)) || chips_per_host=$chips ;;
  esac
fi
require_count chips_per_host 1
((chips % chips_per_host == 0)) ||
  fail "--topology=$topology has $chips chips: no multiple of $chips_per_host a host"
hosts=$((chips / chips_per_host))

# Prints a double-quoted YAML scalar, which is a JSON string.
scalar() {
  local text=$1 code escaped
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  for code in {1..31} 127; do
    printf -v escaped '\\u%04x' "$code"
    # shellcheck disable=SC2059  # the format is the character
    printf -v code "\\x$(printf %x "$code")"
    text=${text//"$code"/"$escaped"}
  done
  printf '"%s"' "$text"
}

# Kubernetes replaces $(NAME) in commands; $$ stands for one $.
argument() {
  scalar "${1//\$/\$\$}"
}

manifest() {
  local word
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
EOF
  [[ -z $namespace ]] || echo "  namespace: $(scalar "$namespace")"
  [[ -z $queue ]] || printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$(scalar "$queue")"
  cat <<EOF
  annotations:
    # One slice, one node pool: its chips are wired together.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $replicas
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: main
                  operator: In
                  values: [2, 3, 4, 5]
          template:
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: $grace_seconds
EOF
  [[ -z $service_account ]] ||
    echo "              serviceAccountName: $(scalar "$service_account")"
  cat <<EOF
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(scalar "$accelerator")
                cloud.google.com/gke-tpu-topology: $topology
EOF
  [[ -z $spot ]] || cat <<EOF
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
EOF
  cat <<EOF
              containers:
                - name: main
                  image: $(scalar "$image")
                  workingDir: $(scalar "$dir")
                  securityContext:
                    privileged: true
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  env:
                    - name: UDP_COORDINATOR
                      value: $name-slice-0-0.$name:8482
                    - name: UDP_NUM_PROCESSES
                      value: "$((replicas * hosts))"
                    - name: JOBSET_HOSTS_PER_SLICE
                      value: "$hosts"
                    - name: JOBSET_SLICE
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.labels['jobset.sigs.k8s.io/job-index']
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
EOF
  [[ -z $volume_claim ]] || cat <<EOF
                  volumeMounts:
                    - name: workdir
                      mountPath: $(scalar "$mount")
EOF
  echo "                  command:"
  for word in bash launch/supervise.sh -- "${command[@]}"; do
    echo "                    - $(argument "$word")"
  done
  [[ -z $volume_claim ]] || cat <<EOF
              volumes:
                - name: workdir
                  persistentVolumeClaim:
                    claimName: $(scalar "$volume_claim")
EOF
}

if [[ -n $dry_run ]]; then
  here_document "$(manifest)" kubectl apply --filename=-
elif [[ -n $apply ]]; then
  say "+ kubectl apply --filename=-"
  manifest | kubectl apply --filename=-
else
  manifest
fi
