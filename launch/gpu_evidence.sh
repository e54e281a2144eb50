#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOT'
Makes the evidence on CIFAR-10 at full size (--config=cifar10_evidence) in pieces of nine minutes,
which may run on different machines with one NVIDIA GPU and no network. What travels are files: the
pictures there, at most two files of 16 MiB back.

  bash launch/gpu_evidence.sh pack --source=cifar10:PATH --pictures=pieces/pictures.zip     a CPU
  UDP_JAX_COMMIT=COMMIT bash launch/gpu_evidence.sh protect --row=udp \
    --pictures=pieces/pictures.zip --out=pieces                                             a GPU
  bash launch/gpu_evidence.sh protect --row=udp_matched_noise --pictures=pieces/pictures.zip \
    --protected=pieces/protect-udp.zip --out=pieces              controls: also a CPU, --any_device
  bash launch/gpu_evidence.sh victim --row=udp --seed=0 --pictures=pieces/pictures.zip \
    --protected=pieces/protect-udp.zip --out=pieces                                         a GPU
  bash launch/gpu_evidence.sh collect --pieces=pieces --pictures=pieces/pictures.zip \
    --work=runs/evidence                                                                    a CPU
  bash launch/gpu_evidence.sh judge --pictures=pieces/pictures.zip --work=runs/evidence     a CPU

Rows: clean (no protect), random_noise, sign_noise, udp, eudp, udp_matched_noise and
eudp_matched_noise; seeds 0, 1 and 2: 6 pieces of protect and 21 of victim. All need the same
pictures and settings, which collect checks, and should have the same commit, which it prints: where
there is no git, as on a machine that got the files alone, give every piece UDP_JAX_COMMIT, which
`git rev-parse --short=12 HEAD` prints. A victim ends where it starts: if --minutes will not do, the
piece stops early with exit code 75, says how many steps would fit, and leaves nothing that looks
finished. Then give all victims fewer:

  ... victim ... -- --config.threat.options.train_steps=12000

  --source=SPEC        of pack: the pictures (see udp_jax/data/sources.py)
  --pictures=FILE      the zip of pack, at most 25 MiB
  --row=ROW --seed=N   which piece
  --protected=FILE     zip of a protect piece that this one needs; repeatable
  --out=DIR            where the two files of the piece come to lie
  --pieces=DIR         of collect: where pieces lie; repeatable
  --work=DIR           everything else; for protect and victim by default --out with .work behind it
  --minutes=N          for one piece, its start included (9)
  --any_device         protect without a GPU, for controls
  --wheels=DIR --python=PROGRAM   as in gpu_run.sh
  --smoke              the smallest sizes, on any machine
  --dry_run            print the command, run nothing

Words after -- go to launch.pieces. Exit code: its own; 75 if the time would not do; 2 for bad
options or no GPU.
EOT
}

source=
pictures=
# shellcheck disable=SC2034  # read by name
row=
seed=
protected=()
out=
pieces=()
work=
minutes=9
any_device=
wheels=
python=
smoke=
# shellcheck disable=SC2034  # read by parse_options
options=(source pictures row seed out work minutes wheels python)
# shellcheck disable=SC2034
lists=(protected pieces)
# shellcheck disable=SC2034
switches=(any_device smoke)
parse_options "$@"
((${#positional[@]} == 1)) || fail "one of pack, protect, victim, collect, judge (see --help)"
action=${positional[0]}
contains "$action" pack protect victim collect judge ||
  fail "$action: known are pack, protect, victim, collect, judge"
require_option pictures "the zip of packed pictures"
require_count minutes 1
case $action in
  protect | victim)
    require_option row "which row of the study"
    require_option out "the folder for the piece"
    [[ $action == protect || -n $seed ]] || fail "--seed is missing: which victim of the row"
    [[ -n $work ]] || work=${out%/}.work
    ;;
  collect | judge)
    require_option work "the folder of the study"
    [[ $action == judge || ${#pieces[@]} -gt 0 ]] || fail "--pieces is missing: folders of pieces"
    ;;
esac
[[ -n $python ]] || python=$(first_of "$repository/.venv/bin/python" python3)
absolute() {
  if [[ $1 == /* ]]; then printf '%s' "$1"; else printf '%s' "$PWD/$1"; fi
}

config=cifar10_evidence
[[ -z $smoke ]] || config+=:smoke
words=("$python" -m launch.pieces --do="$action" --config="$config")
words+=(--pictures="$(absolute "$pictures")")
[[ -z $source ]] || words+=(--config.data.source="$source")
for option in row seed; do [[ -z ${!option} ]] || words+=("--$option=${!option}"); done
for option in out work; do
  [[ -z ${!option} ]] || printf -v "$option" %s "$(absolute "${!option}")"
done
[[ -z $out ]] || words+=(--out="$out")
[[ -z $work ]] || words+=(--workdir="$work")
for file in "${protected[@]}"; do words+=(--protected="$(absolute "$file")"); done
for folder in "${pieces[@]}"; do words+=(--pieces="$(absolute "$folder")"); done

# Programs of one piece serve the next one on the same machine.
settings=(PYTHONUNBUFFERED=1)
settings+=("PYTHONPATH=$repository${work:+:$work/site}${PYTHONPATH:+:$PYTHONPATH}")
spent=0
if [[ -z $dry_run ]]; then
  if [[ $action == protect || $action == victim ]]; then
    if [[ -z $any_device && -z $smoke ]]; then
      card=$(ask_gpu)
      say "$card"
    fi
    known_commit >/dev/null
  fi
  [[ -z $wheels ]] || install_wheels "$python" "$(absolute "$wheels")" "${work:-.}/site" 40
  spent=$SECONDS
fi
if [[ $action == protect || $action == victim ]]; then
  # 20 s for the start and the end; `timeout` is for what does not end by itself.
  words+=(--seconds="$((minutes * 60 - 20 - spent))")
  words=(timeout --kill-after=2 "$((minutes * 60 - 5 - spent))" env "${settings[@]}" "${words[@]}")
else
  words=(env "${settings[@]}" "${words[@]}")
fi
words+=("${command[@]}")

cd "$repository"
run "${words[@]}"
