#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Runs a command on this machine, in the repository and with its .venv first on PATH, so that a
scheduler can tell "done" from "stopped". tpu_pod.sh and jobset.sh use it; call it by hand to see
what they do on a worker.

  bash launch/supervise.sh -- python -m experiments.eudp --config=demo --workdir=runs/demo
  bash launch/supervise.sh --name=demo -- COMMAND    outlives the connection; log in a file
  bash launch/supervise.sh --name=demo --stop        SIGTERM, then waits until all is saved

Without --name the command runs in the foreground.
  --name=NAME      Run in the background and follow the log, ~/.udp_jax/NAME/log. Called again while
                   the same command runs: follow it. While another one runs: error.
  --attempt=ID     With --name: a call with the ID of a run that has ended returns its exit code
                   instead of starting again (a connection that broke at the end).
  --stop           With --name: stop what runs. At most --stop_seconds=N (300).
  --dry_run        Print the command, run nothing.

Exit code: the command's; 143 if SIGTERM stopped it (whatever it returned); 130 after --stop;
137 if it vanished (killed); 2 for bad options.
EOF
}

name=
attempt=
stop=
stop_seconds=300
options=(name attempt stop_seconds)
switches=(stop)
parse_options "$@"
((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]} (see --help)"
require_count stop_seconds 1
[[ -z $name ]] || require_name

cd "$repository"
export PATH="$repository/.venv/bin:$PATH"

# In a JobSet of several slices, Kubernetes numbers the hosts of each slice from 0.
if [[ -n ${JOBSET_SLICE:-} ]]; then
  export UDP_PROCESS_ID=$((JOBSET_SLICE * JOBSET_HOSTS_PER_SLICE + JOB_COMPLETION_INDEX))
fi

state=
[[ -z $name ]] || state=${HOME:?}/.udp_jax/$name

# Prints the log from byte $2 on until process $1 ends, then exits with the command's exit code.
follow() {
  # -F follows the log, which exists before the process; --pid ends tail with the process.
  tail --pid="$1" --sleep-interval=0.3 --bytes="+$2" -F "$state/log" 2>/dev/null || true
  finish
}

finish() {
  if [[ ! -f $state/exit_code ]]; then
    say "the command vanished without an exit code; see $state/log"
    exit 137
  fi
  exit "$(<"$state/exit_code")"
}

if [[ -n $stop ]]; then
  require_option name "which run to stop"
  if [[ -n $dry_run ]]; then
    echo "kill -TERM \"\$(cat $(quote "$state/pid"))\""
    exit 0
  fi
  [[ -d $state ]] || fail "no run called $name was started here"
  exec 9>>"$state/lock"
  if ! flock --nonblock 9; then
    touch "$state/stop"
    kill -TERM "$(<"$state/pid")" 2>/dev/null || true
    flock --timeout "$stop_seconds" 9 ||
      fail "$name still runs after $stop_seconds seconds (process $(<"$state/pid"))"
  fi
  exit 0
fi

require_command
if [[ -n $dry_run ]]; then
  run "${command[@]}"
  exit 0
fi
if [[ -z $name ]]; then
  supervise "${command[@]}"
  exit
fi

[[ -n $attempt ]] || attempt=$(date +%s).$$
mkdir -p "$state"
touch "$state/log"
text=$(quote "${command[@]}")
# Held by the command and all its children: a lock cannot be mistaken for another process, as a
# process id can after a reboot.
exec 9>>"$state/lock"
if ! flock --nonblock 9; then
  [[ $(<"$state/command") == "$text" ]] ||
    fail "$name runs another command: $(<"$state/command") (stop it first: --name=$name --stop)"
  say "following the run that is under way"
  exec 9>&-
  size=$(stat --format=%s "$state/log")
  follow "$(<"$state/pid")" "$((size > 4096 ? size - 4096 : 1))"
fi
if [[ -f $state/attempt && $(<"$state/attempt") == "$attempt" ]]; then
  tail --lines=20 "$state/log"
  finish
fi

rm -f "$state/exit_code" "$state/stop"
printf '%s' "$text" >"$state/command"
printf '%s' "$attempt" >"$state/attempt"
start=$(($(stat --format=%s "$state/log") + 1))
(
  trap '' HUP
  status=0
  supervise "${command[@]}" || status=$?
  [[ $status != 143 || ! -e $state/stop ]] || status=130
  echo "$status" >"$state/exit_code.tmp"
  mv "$state/exit_code.tmp" "$state/exit_code"
) >>"$state/log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$state/pid"
exec 9>&-
follow "$pid" "$start"
