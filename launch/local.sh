#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Runs a command as N processes of one run on this machine: to try on one machine what a pod does.

  bash launch/local.sh 2 -- python -m experiments.eudp --config=demo_pixels:smoke --workdir=runs/two

Process 0 writes to the terminal, the others to files. If one of them fails, it is named, the
others end, and so does this script. Ctrl-C and SIGTERM are passed on to all of them: they save at
the same position, and the same command, with any N, goes on there.

  --log_dir=DIR   for process-<i>.log of processes 1, 2, ...; default: a temporary folder, removed
                  when all goes well
  --port=PORT     of the coordinator; default: a free one
  --grace_s=S     how long the others may take to end when one has failed (default 90)
  --dry_run       print the commands, run nothing

Exit code: 2 for bad options; of the first process that failed (128 + n if signal n killed it);
otherwise 0.
EOF
}

log_dir=
port=
grace_s=90
# shellcheck disable=SC2034  # read by parse_options
options=(log_dir port grace_s)
parse_options "$@"
((${#positional[@]})) || fail "how many processes? bash launch/local.sh N -- COMMAND (see --help)"
((${#positional[@]} == 1)) ||
  fail "unexpected argument ${positional[1]} (the command follows --; see --help)"
# shellcheck disable=SC2034  # read by require_count
N=${positional[0]}
[[ $N =~ ^[1-9][0-9]{0,3}$ ]] || fail "$N is no number of processes (see --help)"
require_count grace_s 0
require_command

is_free() {
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

if [[ -z $port ]]; then
  # Below the range from which systems take ports for outgoing connections.
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000))
    ! is_free "$port" || break
  done
else
  require_count port 1
  is_free "$port" || fail "port $port is in use; choose another --port, or none"
fi

if [[ -z $log_dir ]]; then
  if [[ -n $dry_run ]]; then
    log_dir=LOG_DIR
  else
    log_dir=$(mktemp -d "${TMPDIR:-/tmp}/udp-local.XXXXXX")
  fi
  temporary=yes
else
  [[ -n $dry_run ]] || mkdir -p -- "$log_dir" 2>/dev/null || fail "cannot make the folder $log_dir"
  temporary=
fi

process=(env UDP_COORDINATOR="127.0.0.1:$port" UDP_NUM_PROCESSES="$N")
if [[ -n $dry_run ]]; then
  for ((i = 0; i < N; i++)); do
    line=$(quote "${process[@]}" UDP_PROCESS_ID="$i" "${command[@]}")
    ((i == 0)) || line+=" >$(quote "$log_dir/process-$i.log") 2>&1"
    printf '%s &\n' "$line"
  done
  echo wait
  exit 0
fi

# Every process leads a process group of its own, so that a signal also reaches its children, and
# Ctrl-C reaches only this script.
set -m
pids=()
for ((i = 0; i < N; i++)); do
  if ((i == 0)); then
    "${process[@]}" UDP_PROCESS_ID="$i" "${command[@]}" </dev/null &
  else
    "${process[@]}" UDP_PROCESS_ID="$i" "${command[@]}" </dev/null \
      >"$log_dir/process-$i.log" 2>&1 &
  fi
  pids+=("$!")
done

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    [[ -z $pid ]] || kill "-$1" -- "-$pid" 2>/dev/null || true
  done
}
trap 'signal_all INT' INT
trap 'signal_all TERM' TERM
trap 'signal_all HUP' HUP

status=0
deadline=
running=$N
while ((running)); do
  for ((i = 0; i < N; i++)); do
    [[ -n ${pids[i]} ]] || continue
    ! kill -0 "${pids[i]}" 2>/dev/null || continue
    code=0
    wait "${pids[i]}" 2>/dev/null || code=$?
    pids[i]=
    running=$((running - 1))
    if ((code && !status)); then
      status=$code
      deadline=$((SECONDS + grace_s))
      how="exit code $code"
      ((code <= 128)) || how="signal $(kill -l $((code - 128)) 2>/dev/null || echo "$code")"
      say "error: process $i of $N ended with $how"
      if ((i)) && [[ -s $log_dir/process-$i.log ]]; then
        say "the end of $log_dir/process-$i.log:"
        tail -n 5 -- "$log_dir/process-$i.log" >&2
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline && running)); then
    say "error: $running of $N processes did not end within $grace_s s: killed"
    signal_all KILL
    deadline=$((SECONDS + 10))
  fi
  ((!running)) || sleep 0.1 || true
done

if [[ -n $temporary ]]; then
  if ((status)); then
    say "logs: $log_dir"
  else
    rm -r -- "$log_dir"
  fi
fi
exit "$status"
