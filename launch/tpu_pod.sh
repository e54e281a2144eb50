#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Runs a command on every worker of a Cloud TPU slice, obtained as a queued resource; with `up`, from
the request to the end, again and again where the slice is taken away (spot) or fails. The command
goes on where it was: give it a --workdir that outlives the slice (see launch/README.md).

  bash launch/tpu_pod.sh --name=x --zone=us-west4-a --type=v5litepod-16 --spot -- \
    python -m experiments.eudp --config=cifar10 --workdir=/mnt/shared/cifar10

  up (default)  create, wait, setup, run; after a preemption delete, create ... run; delete
  create        request the slice             wait    until it is ready
  setup         sources and environment       run     the command on all workers; follows it where
                onto all workers                      it runs already
  status        state of request and node     logs    of --worker (0), as it grows: --follow
  stop          SIGTERM to the command; returns when it has saved
  delete        slice and request

  --name=NAME            of the queued resource and its node
  --zone=ZONE            default: $CLOUDSDK_COMPUTE_ZONE or gcloud's own compute/zone
  --project=PROJECT      default: $CLOUDSDK_CORE_PROJECT or gcloud's own core/project
  --type=TYPE            accelerator type: v4-32, v5litepod-16, v5p-32, v6e-16
  --runtime_version=V    default: what Cloud TPU recommends for JAX on that type
  --spot                 preemptible capacity
  --valid_until_duration=6h   give up waiting in the queue after that
  --create_flag=FLAG     one more word for `queued-resources create`, e.g. --create_flag=--reserved
                         (repeatable)
  --ssh_flag=FLAG        one more word for `tpu-vm ssh` and `scp`, e.g. --ssh_flag=--internal-ip
                         (repeatable)
  --repo=URL --ref=REF   take the sources from there; default: this checkout's files, with changes
                         that are not committed, without what git ignores
  --dir=PATH             of the sources on the workers (default: udp_jax, in the home folder)
  --prepare=LINE         shell line that `setup` runs on every worker at its end, e.g. to mount the
                         workdir; it runs again on every new slice
  --worker=N             for logs; number or `all`
  --max_restarts=N       of `up` (default 20)
  --poll_seconds=N       between two looks at the state (default 30)
  --settle_polls=N       looks at the state after a command failed, before the failure counts as
                         the command's own (default 4: states lag behind)
  --delete=WHEN          what `up` does at its end: `success` (default) deletes the slice unless
                         the command failed; `always`; `never`
  --dry_run              print the commands, run nothing

Exit code: the command's; 2 for bad options; 75 when --max_restarts did not suffice; 1 when the
state could not be read for 10 polls; otherwise gcloud's.
EOF
}

name=
zone=${CLOUDSDK_COMPUTE_ZONE:-}
project=${CLOUDSDK_CORE_PROJECT:-}
type=
runtime_version=
spot=
valid_until_duration=
create_flag=()
ssh_flag=()
repo=
ref=
dir=udp_jax
prepare=
worker=0
follow=
max_restarts=20
poll_seconds=30
settle_polls=4
delete=success
options=(name zone project type runtime_version valid_until_duration repo ref dir prepare
  worker max_restarts poll_seconds settle_polls delete)
switches=(spot follow)
lists=(create_flag ssh_flag)
parse_options "$@"

action=${positional[0]:-up}
contains "$action" up create wait setup run status logs stop delete ||
  fail "unknown action $action (see --help)"
((${#positional[@]} <= 1)) ||
  fail "unexpected argument ${positional[1]} (the command follows --; see --help)"
case $action in
  up | run) require_command ;;
  *) ((${#command[@]} == 0)) || fail "$action takes no command (see --help)" ;;
esac
require_name
for option in max_restarts settle_polls; do require_count "$option" 0; done
[[ $poll_seconds =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--poll_seconds=$poll_seconds is no number"
contains "$delete" success always never || fail "--delete=$delete: success, always or never"
[[ $worker =~ ^([0-9]+|all)$ ]] || fail "--worker=$worker: a number or all"
[[ -z $ref || -n $repo ]] || fail "--ref=$ref needs --repo=URL"
if contains "$action" up create; then
  require_option type "the accelerator type, e.g. --type=v5litepod-16"
  if [[ -z $runtime_version ]]; then
    case $type in
      v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime_version=v2-alpha-tpuv5 ;;
      v6e-*) runtime_version=v2-alpha-tpuv6e ;;
      *) fail "no known runtime for --type=$type: give --runtime_version" ;;
    esac
  fi
fi
require_program gcloud "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"

# Missing options come from gcloud's own settings; a dry run does not ask for them.
setting() {
  local value
  value=$(gcloud config get-value "$1" --quiet 2>/dev/null) || true
  [[ $value != "(unset)" ]] || value=
  printf '%s' "$value"
}
if [[ -z $dry_run ]]; then
  [[ -n $project ]] || project=$(setting core/project)
  [[ -n $zone ]] || zone=$(setting compute/zone)
  require_option project "give it, or run: gcloud config set project PROJECT"
fi
require_option zone "the zone with the TPUs, e.g. --zone=us-west4-a"

# Words at the end of every call.
place=("--zone=$zone" --quiet)
[[ -z $project ]] || place=("--zone=$zone" "--project=$project" --quiet)
tpus=(gcloud compute tpus)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# ssh_run WORKER WORDS...: runs the words there in the login shell. A dead host shows in 2 minutes.
ssh_run() {
  run "${tpus[@]}" tpu-vm ssh "$name" "--worker=$1" "--command=$(quote "${@:2}")" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 \
    "${ssh_flag[@]}" "${place[@]}"
}

copy_to_workers() {
  run "${tpus[@]}" tpu-vm scp "${@:1:$#-1}" "$name:${!#}" --worker=all "${ssh_flag[@]}" \
    "${place[@]}"
}

create_slice() {
  local words=("$name" "--node-id=$name" "--accelerator-type=$type"
    "--runtime-version=$runtime_version")
  [[ -z $spot ]] || words+=(--spot)
  [[ -z $valid_until_duration ]] || words+=("--valid-until-duration=$valid_until_duration")
  run "${tpus[@]}" queued-resources create "${words[@]}" "${create_flag[@]}" "${place[@]}"
}

delete_slice() {
  run "${tpus[@]}" queued-resources delete "$name" --force "${place[@]}"
}

# describe KIND FORMAT: prints the state in capitals, NONE if it does not exist, else UNKNOWN.
describe() {
  local state
  if state=$("${tpus[@]}" "$1" describe "$name" "--format=value($2)" "${place[@]}" \
    2>"$scratch/stderr"); then
    printf '%s' "${state:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found' "$scratch/stderr"; then
    printf NONE
  else
    say "$(tail -n 1 "$scratch/stderr")"
    printf UNKNOWN
  fi
}

# Sets `state` to none, pending, ready, lost or unknown.
look() {
  local queued node=''
  queued=$(describe queued-resources state.state)
  case $queued in
    ACTIVE)
      node=$(describe tpu-vm state)
      case $node in
        READY) state=ready ;;
        PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | HIDING | HIDDEN | NONE) state=lost ;;
        UNKNOWN) state=unknown ;;
        *) state=pending ;;
      esac
      ;;
    NONE) state=none ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) state=lost ;;
    UNKNOWN) state=unknown ;;
    *) state=pending ;;
  esac
  local seen="queued resource $queued${node:+, node $node}"
  [[ $seen == "$last_seen" ]] || say "$name: $seen"
  last_seen=$seen
}
last_seen=
state=

show_look() {
  run "${tpus[@]}" queued-resources describe "$name" "--format=value(state.state)" "${place[@]}"
  run "${tpus[@]}" tpu-vm describe "$name" "--format=value(state)" "${place[@]}"
}

# Waits until `state` is ready, lost or none.
wait_for_slice() {
  if [[ -n $dry_run ]]; then
    echo "# every $poll_seconds seconds until they say ACTIVE and READY:"
    show_look
    return
  fi
  local failures=0
  while :; do
    look
    case $state in
      ready | lost | none) return ;;
      pending) failures=0 ;;
      unknown)
        if ((++failures >= 10)); then
          say "error: the state of $name cannot be read; check: gcloud auth list"
          exit 1
        fi
        ;;
    esac
    sleep "$poll_seconds"
  done
}

send_sources() {
  local archive=$scratch/udp_jax.tar.gz pack unpack
  [[ -z $dry_run ]] || archive=/tmp/udp_jax.tar.gz
  # The $1 and $2 are for the inner shells.
  # shellcheck disable=SC2016
  {
    pack='set -o pipefail; cd "$1" && git ls-files -z --cached --others --exclude-standard'
    pack+=' | tar --create --gzip --file="$2" --null --files-from=-'
    unpack='mkdir -p "$1" && tar --extract --gzip --file=udp_jax.tar.gz --directory="$1"'
    unpack+=' && bash "$1/launch/setup_vm.sh"'
  }
  run bash -c "$pack" bash "$repository" "$archive" || return
  copy_to_workers "$archive" udp_jax.tar.gz || return
  ssh_run all bash -c "$unpack" bash "$dir"
}

set_up_workers() {
  if [[ -n $repo ]]; then
    copy_to_workers "$repository/launch/setup_vm.sh" "$repository/launch/common.sh" '' || return
    ssh_run all bash setup_vm.sh "--repo=$repo" "--ref=$ref" "--dir=$dir" || return
  else
    send_sources || return
  fi
  [[ -z $prepare ]] || ssh_run all bash -c "$prepare"
}

# run_command ATTEMPT: runs the command. An attempt that is running or has ended is not started
# again when the connection breaks and gcloud reconnects.
run_command() {
  ssh_run all bash "$dir/launch/supervise.sh" "--name=$name" "--attempt=$1" -- "${command[@]}"
}

new_attempt() {
  if [[ -n $dry_run ]]; then echo 1; else echo "$(date +%s).$$"; fi
}

# find_cause STATUS: after a command that failed with this status, sets `cause` to lost (the slice
# is gone), again (stopped, or the connection broke, while the slice exists) or failed.
find_cause() {
  local looks
  for ((looks = 0; looks <= settle_polls; looks++)); do
    ((looks == 0)) || sleep "$poll_seconds"
    look
    case $state in
      lost | none | pending)
        cause=lost
        return
        ;;
    esac
    # These exit codes are the user's mistakes or --stop, and have nothing to do with the slice.
    if contains "$1" 2 3 4 5 130; then break; fi
  done
  case $1 in
    143 | 255) cause=again ;;
    *) cause=failed ;;
  esac
}

# Runs one slice, from the request to the end of the command. Sets `cause` if it returns an error.
try_once() {
  local status=0
  look
  if [[ $state == lost ]]; then
    cause=lost
    delete_slice || return
    state=none
  fi
  if [[ $state == none ]]; then
    # Right after a deletion the name may still be in use, so try again.
    cause=failed
    ((restarts == 0)) || cause=lost
    create_slice || return
    prepared=
  fi
  wait_for_slice
  if [[ $state != ready ]]; then
    cause=lost
    return 1
  fi
  if [[ -z $prepared ]]; then
    set_up_workers || status=$?
  fi
  if ((status == 0)); then
    prepared=yes
    run_command "$attempt" || status=$?
  fi
  ((status == 0)) || find_cause "$status"
  return "$status"
}

up() {
  local restarts=0 status cause=failed prepared='' attempt confirmed=''
  if [[ -n $dry_run ]]; then
    create_slice
    wait_for_slice
    set_up_workers
    run_command 1
    echo "# after a preemption, and at most $max_restarts times: delete, then all of the above"
    if [[ $delete != never ]]; then
      echo "# at the end:"
      delete_slice
    fi
    return
  fi
  trap 'say "$name is left as it is and costs money (actions: run, to follow it; stop; delete)"
    exit 130' INT
  attempt=$(new_attempt)
  while :; do
    status=0
    try_once || status=$?
    ((status != 0)) || break
    if [[ $cause == failed ]]; then
      # gcloud also returns 1 for a broken connection. Asked again, a run that has ended reports the
      # same code without starting anew.
      [[ $status == 1 && -z $confirmed ]] || break
      confirmed=yes
    else
      confirmed=
    fi
    if ((++restarts > max_restarts)); then
      say "error: gave up after $max_restarts restarts"
      status=75
      break
    fi
    say "restart $restarts of at most $max_restarts (exit code $status, cause: $cause)"
    if [[ $cause == lost || $status == 143 ]]; then
      attempt=$(new_attempt).$restarts
    fi
    if [[ $cause == lost ]]; then prepared=; fi
    sleep "$poll_seconds"
  done
  if [[ $delete == always || ($delete == success && $status == 0) ]]; then
    delete_slice || say "error: $name could not be deleted and costs money"
  else
    say "$name is kept and costs money; delete it with: $(
      quote bash launch/tpu_pod.sh delete "--name=$name" "${place[@]:0:${#place[@]}-1}"
    )"
  fi
  return "$status"
}

case $action in
  up) up ;;
  create) create_slice ;;
  wait)
    wait_for_slice
    [[ -n $dry_run || $state == ready ]] || {
      say "error: $name will not become ready (${last_seen}); delete it and create it again"
      exit 1
    }
    ;;
  setup) set_up_workers ;;
  run) run_command "$(new_attempt)" ;;
  status) show_look ;;
  logs)
    words=(tail --lines=200)
    [[ -z $follow ]] || words+=(-F)
    ssh_run "$worker" "${words[@]}" ".udp_jax/$name/log"
    ;;
  stop) ssh_run all bash "$dir/launch/supervise.sh" "--name=$name" --stop ;;
  delete) delete_slice ;;
esac
