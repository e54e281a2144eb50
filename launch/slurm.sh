#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Submits a command to SLURM: on every node one process for all its GPUs, or one for each. SIGTERM
comes --signal_seconds before the time limit (and on preemption): the command saves, the job goes
back into the queue and continues where it was. scancel ends it for good.

  bash launch/slurm.sh --name=x --nodes=2 --gpus_per_node=4 --time=12:00:00 -- \
    python -m experiments.eudp --config=cifar10 --workdir=/shared/cifar10

  --name=NAME           of the job
  --nodes=N             default 1
  --gpus_per_node=N     default 1; 0 for none
  --process_per=WHAT    node (default) or gpu
  --cpus_per_task=N     CPU cores of a process
  --time=LIMIT          of one stay, e.g. 12:00:00
  --partition=P --account=A --qos=Q   as for sbatch
  --output=PATTERN      log; default: NAME-%j.log, continued after a requeue
  --signal_seconds=N    time to save (default 120)
  --max_requeues=N      default 100
  --dir=PATH            the repository with its .venv, on a file system that the nodes share
                        (default: the one this script is in)
  --sbatch_flag=FLAG    one more word for sbatch, e.g. --sbatch_flag=--exclusive (repeatable)
  --dry_run             print the sbatch command with its script, submit nothing

Exit code: 2 for bad options, otherwise sbatch's.
EOF
}

nodes=1
gpus_per_node=1
process_per=node
cpus_per_task=
# shellcheck disable=SC2034  # these four are read by their names
{
  time=
  partition=
  account=
  qos=
}
output=
signal_seconds=120
max_requeues=100
dir=$repository
sbatch_flag=()
options=(name nodes gpus_per_node process_per cpus_per_task time partition account qos output
  signal_seconds max_requeues dir)
lists=(sbatch_flag)
parse_options "$@"
((${#positional[@]} == 0)) ||
  fail "unexpected argument ${positional[0]} (the command follows --; see --help)"
require_command
require_name
require_count nodes 1
require_count gpus_per_node 0
require_count signal_seconds 1
require_count max_requeues 0
[[ -z $cpus_per_task ]] || require_count cpus_per_task 1
tasks=1
case $process_per in
  node) ;;
  gpu)
    ((gpus_per_node > 0)) || fail "--process_per=gpu needs --gpus_per_node of at least 1"
    tasks=$gpus_per_node
    ;;
  *) fail "--process_per=$process_per: node or gpu" ;;
esac
require_program sbatch "run this on a login node of the cluster"

submit=(sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks"
  "--output=${output:-$name-%j.log}" --open-mode=append --requeue
  "--signal=B:TERM@$signal_seconds")
((gpus_per_node == 0)) || submit+=("--gpus-per-node=$gpus_per_node")
[[ -z $cpus_per_task ]] || submit+=("--cpus-per-task=$cpus_per_task")
for option in time partition account qos; do
  [[ -z ${!option} ]] || submit+=("--$option=${!option}")
done
submit+=("${sbatch_flag[@]}")

step=(srun --kill-on-bad-exit=1)
# Since SLURM 22.05, srun does not inherit this option from sbatch.
[[ -z $cpus_per_task ]] || step+=("--cpus-per-task=$cpus_per_task")

script() {
  cat <<EOF
#!/usr/bin/env bash
set -uo pipefail
cd $(quote "$dir") || exit 2
source launch/common.sh
export PATH=$(quote "$dir")/.venv/bin:\$PATH
EOF
  if [[ $process_per == node ]] && ((gpus_per_node > 0)); then
    # Under SLURM, jax gives a process one device by default.
    echo "export JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((gpus_per_node - 1)))"
  fi
  cat <<EOF
# The signal reaches this shell alone, so that it knows of it; srun passes it on to the processes.
supervise $(quote "${step[@]}" "${command[@]}")
status=\$?
# 143: stopped, and saved. A job that is being cancelled is COMPLETING and stays away.
if [ "\$status" = 143 ] && [ "\$(squeue --noheader --format=%T --jobs="\$SLURM_JOB_ID")" = RUNNING ]; then
  if [ "\${SLURM_RESTART_COUNT:-0}" -lt $max_requeues ]; then
    echo "stopped; back into the queue"
    scontrol requeue "\$SLURM_JOB_ID"
  else
    echo "error: requeued $max_requeues times already" >&2
  fi
fi
exit "\$status"
EOF
}

if [[ -n $dry_run ]]; then
  here_document "$(script)" "${submit[@]}"
else
  say "+ $(quote "${submit[@]}")"
  script | "${submit[@]}"
fi
