#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOT'
Checks and races this project on one NVIDIA GPU, in one command of at most 9 minutes 30 seconds and
without network. Nothing of the GPU's settings is changed.

  bash launch/gpu_run.sh --out=runs/gpu
  UDP_JAX_COMMIT=COMMIT bash launch/gpu_run.sh --out="$OUT" --wheels=.whl --part=checks
  bash launch/gpu_run.sh --out=runs/try --smoke     on any machine: shows that every part works

checks: cuDNN's attention, known values in float32, TF32 and bfloat16, repeatability
(launch.gpu_checks), then the tests that matter. race: the benchmark against PyTorch on the same
card (experiments.benchmark --config=gpu). Each part ends at its own limit, so that the next one
still runs, and writes its results row by row. Results name the commit: where there is no git, as on
a machine that got the files alone, give it as in the second line; `git rev-parse HEAD` prints it.

  --out=DIR            at most 8 files come to lie here: environment.txt, checks.json, bench.json,
                       bench.md, logs.tar.gz, summary.txt
  --work=DIR           everything else, compiled programs included; a second call goes on with the
                       race there (default: DIR of --out with .work behind it)
  --part=PART          checks, race or all (default)
  --only=ROWS          of the race only these rows, as experiments.benchmark takes them
  --wheels=DIR         wheels of the packages that this machine lacks (launch/gpu_wheels.txt)
  --python=PROGRAM     default: .venv/bin/python of this checkout if it is there, else python3
  --peer_python=PROGRAM  the one with torch and diffusers; default: .venv-peers/bin/python of this
                       checkout if it is there, else python3
  --checks_s=S --tests_s=S   limits in seconds (120, 50)
  --race_s=S           limit of the race; default: all that the other parts leave of 570 s when it
                       begins, so at least 340 s after checks and tests of the default limits
  --smoke              the smallest sizes, on the CPU
  --dry_run            print the time of each part and the commands, run nothing

Exit code: 0 if all checks and tests pass and the race has rows; 1 if not; 2 for bad options or no
GPU; 143 or 130 after a signal, with what there was until then in --out.
EOT
}

out=
work=
part=all
only=
wheels=
python=
peer_python=
checks_s=120
# shellcheck disable=SC2034  # limits are read by name
tests_s=50
race_s=
smoke=
# shellcheck disable=SC2034  # read by parse_options
options=(out work part only wheels python peer_python checks_s tests_s race_s)
# shellcheck disable=SC2034
switches=(smoke)
parse_options "$@"
((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]} (see --help)"
((${#command[@]} == 0)) || fail "takes no command (see --help)"
require_option out "the folder for the results"
contains "$part" checks race all || fail "--part=$part: known are checks, race, all"
for limit in checks_s tests_s ${race_s:+race_s}; do require_count "$limit" 10; done
# What prepares may take most of its time once: nvidia-smi on a fresh machine, or pip.
readonly prepare_s=45 pack_s=15 most_s=570

# Tests whose arithmetic another backend may do otherwise. By name, as a run has no time for more:
# of convolutions and attention the forms that GPUs take.
form=tests/ops/test_attention.py::test_every_form_and_its_gradient_against_a_softmax_in_float32
tests=(
  "tests/ops/test_conv.py::test_single_precision_alone_and_inside_a_scan[downsample_odd]"
  "tests/ops/test_conv.py::test_single_precision_alone_and_inside_a_scan[5x5]"
  "tests/ops/test_conv.py::test_bfloat16_stays_bfloat16[downsample]"
  "tests/ops/test_conv.py::test_bfloat16_stays_bfloat16[small_map]"
  "tests/ops/test_conv.py::test_convolving_a_doubled_image[xla-9-8]"
  "tests/ops/test_conv.py::test_convolving_a_doubled_image[xla-2-3]"
  tests/ops/test_norm.py::test_output_and_gradients
  tests/ops/test_norm.py::test_bfloat16_has_its_statistics_in_single_precision
  "tests/ops/test_attention.py::test_every_function_against_the_definition[dot_product]"
  "tests/ops/test_attention.py::test_every_function_against_the_definition[library]"
  "${form}[dot_product-float32-1e-05]"
  "${form}[dot_product-bfloat16-0.03]"
  "${form}[library-float32-1e-05]"
  "${form}[library-bfloat16-0.03]"
  "${form}[library-float16-0.004]"
  tests/ops/test_attention.py::test_gradients_in_bfloat16
  tests/ops/test_linear.py::test_values_and_gradients
  tests/stages/test_compiled_round.py::test_two_rounds_take_the_steps_of_the_method
  tests/protections/test_udp.py::test_pictures_move_within_the_budget_by_whole_steps
)
workers=8
if [[ -n $smoke ]]; then
  tests=(tests/ops/test_linear.py::test_values_and_gradients)
  workers=2
fi

parts=(prepare)
[[ $part == race ]] || parts+=(checks tests)
[[ $part == checks ]] || parts+=(race)
parts+=(pack)

# left_for_race: the seconds that are left for the race if it begins after so many.
left_for_race() {
  local left=$((most_s - pack_s - $1))
  printf '%d' $((left < 10 ? 10 : left))
}
rest=
if [[ -z $race_s ]]; then
  rest=yes
  before=$prepare_s
  [[ $part == race ]] || before=$((before + checks_s + tests_s))
  race_s=$(left_for_race "$before")
fi

# Prints the parts with their limits, and from when to when each runs at the latest.
budget() {
  local name limit from=0
  printf '%-8s %7s  %s\n' part limit 'at the latest'
  for name in "${parts[@]}"; do
    limit=${name}_s
    printf '%-8s %5d s  %d:%02d to %d:%02d\n' "$name" "${!limit}" $((from / 60)) $((from % 60)) \
      $(((from + ${!limit}) / 60)) $(((from + ${!limit}) % 60))
    from=$((from + ${!limit}))
  done
  printf '%-8s %5d s  of %d\n' together "$from" "$most_s"
  ((from <= most_s)) || fail "the parts may take $from s together: at most $most_s"
}

out=${out%/}
work=${work%/}
[[ -n $work ]] || work=$out.work
# From here on in the repository, where the modules are.
for place in out work wheels; do
  [[ -z ${!place} || ${!place} == /* ]] || printf -v "$place" %s "$PWD/${!place}"
done
cd "$repository"
if [[ -n $dry_run ]]; then
  budget
else
  budget >&2
fi
[[ -n $python ]] || python=$(first_of "$repository/.venv/bin/python" python3)
[[ -n $peer_python ]] || peer_python=$(first_of "$repository/.venv-peers/bin/python" python3)

card='no GPU: a smoke run'
[[ -n $dry_run || -n $smoke ]] || card=$(ask_gpu)
commit=
[[ -n $dry_run ]] || commit=$(known_commit)

# Shared by all parts. The machine that the results come from may have no git.
settings=(PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false)
settings+=("PYTHONPATH=$repository:$work/site${PYTHONPATH:+:$PYTHONPATH}")
[[ -z $smoke ]] || settings+=(JAX_PLATFORMS=cpu)

child=
stopped=
interrupt() {
  stopped=$1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

# within PART WORDS...: runs the command for at most PART's limit, with its output in a log too.
# `timeout` signals the whole process group, so also what the command started.
within() {
  local name=$1 limit=${1}_s code=0 began=$SECONDS
  limit=${!limit}
  shift
  local words=(timeout --kill-after=2 "$((limit - 3))" env "${settings[@]}" "$@")
  if [[ -n $dry_run ]]; then
    run "${words[@]}"
    return
  fi
  [[ -z $stopped ]] || return 0
  say "+ $(quote "$@")"
  : >"$work/logs/$name.log"
  "${words[@]}" >>"$work/logs/$name.log" 2>&1 </dev/null &
  child=$!
  # Not a pipe: what outlives the command would hold it open.
  tail --pid="$child" --sleep-interval=0.2 -n +1 -f "$work/logs/$name.log" &
  local shown=$!
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  child=
  wait "$shown" || true
  local how="exit code $code"
  ((code != 124 && code != 137)) || how="stopped at its limit"
  printf '%-8s %4d of %3d s  %s\n' "$name" $((SECONDS - began)) "$limit" "$how" >>"$work/summary.txt"
  return "$code"
}

# Not pip, which reads every package's files first.
versions='
import importlib.metadata, re
known = r"(jax|flax|optax|orbax|numpy|torch|diffusers|transformers|nvidia|triton)"
found = {d.name: d.version for d in [*importlib.metadata.distributions()][::-1] if d.name}
print(*(f"{n} {v}" for n, v in sorted(found.items()) if re.match(known, n, re.I)), sep="\n")
'
prepare() {
  rm -rf -- "$work/site" "$work/logs" "$work/checks"
  mkdir -p -- "$out" "$work/logs" "$work/site" || fail "cannot make the folders $out and $work"
  : >"$work/summary.txt"
  rm -f -- "$out"/{environment.txt,checks.json,bench.json,bench.md,logs.tar.gz,summary.txt}
  {
    date --utc +'%Y-%m-%d %H:%M:%S UTC'
    printf 'commit %s\n%s\n%s\n' "$commit" "$(uname -srm)" "$card"
  } >"$out/environment.txt"
  # 4 s for the versions, 3 s for folders and rounding.
  [[ -z $wheels ]] || install_wheels "$python" "$wheels" "$work/site" $((prepare_s - 7 - SECONDS))
  env "${settings[@]}" timeout 4 "$python" -c "$versions" 2>/dev/null >>"$out/environment.txt" ||
    echo 'versions unknown' >>"$out/environment.txt"
}

# Copies what there is; a part that was stopped leaves the rows until then.
pack() {
  local file
  cat -- "$work/summary.txt" >"$out/summary.txt"
  for file in "$work"/checks/checks.json "$work"/bench/bench.{json,md}; do
    [[ ! -f $file ]] || cp -- "$file" "$out/"
  done
  if [[ -d $work/bench/logs ]]; then
    rm -rf -- "$work/logs/bench"
    cp -r -- "$work/bench/logs" "$work/logs/bench"
  fi
  for file in "$work"/checks/repeat/*.log; do
    [[ ! -f $file ]] || cp -- "$file" "$work/logs/repeat-${file##*/}"
  done
  timeout "$((pack_s - 5))" tar -czf "$out/logs.tar.gz" -C "$work" logs
}

checks_words=("$python" -m launch.gpu_checks --out="$work/checks" --seconds="$((checks_s - 8))")
# Tests have tolerances for float32, which a GPU computes as TF32 unless asked. Without XLA_FLAGS they
# would compile in a hurry (tests/upkeep.py); timing no algorithms is quick too, and two compilations
# of a program then round alike. Each test is named as it starts and ends, and none is left out for
# its mark.
tests_words=(JAX_DEFAULT_MATMUL_PRECISION=highest)
tests_words+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_gpu_autotune_level=0" "$python" -m pytest)
tests_words+=(-n "$workers" -vv -m '' -W default -p no:cacheprovider "--junitxml=$work/logs/tests.xml")
tests_words+=("${tests[@]}")
race_words=("$python" -m experiments.benchmark --config=gpu)
[[ -z $smoke ]] || race_words=("${race_words[@]/%--config=gpu/--config=gpu:smoke}")
[[ -z $smoke ]] || checks_words+=(--smoke)
race_words+=(--workdir="$work/bench" --peer_python="$peer_python" --noprogress)
[[ -z $only ]] || race_words+=(--only="$only")

if [[ -n $dry_run ]]; then
  [[ -z $wheels ]] || run "$python" -m pip install --no-index --no-deps --target "$work/site" \
    "$wheels/*.whl"
else
  trap 'interrupt 143' TERM
  trap 'interrupt 130' INT
  prepare
fi
failed=
if contains checks "${parts[@]}"; then
  within checks "${checks_words[@]}" || failed+=' checks'
  within tests "${tests_words[@]}" || failed+=' tests'
fi
if contains race "${parts[@]}"; then
  [[ -z $rest || -n $dry_run ]] || race_s=$(left_for_race "$SECONDS")
  within race "${race_words[@]}" --seconds="$((race_s - 5))" || failed+=' race'
  has_rows='import json, sys; sys.exit(not json.load(open(sys.argv[1]))["rows"])'
  [[ -n $dry_run ]] || "$python" -c "$has_rows" "$work/bench/bench.json" 2>/dev/null ||
    failed+=' race without rows'
fi
[[ -z $dry_run ]] || exit 0
pack
cat -- "$out/summary.txt"
[[ -z $stopped ]] || exit "$stopped"
[[ -z $failed ]] || { say "failed:$failed" && exit 1; }
