#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Prepares a fresh TPU VM, or any Linux host, for the entry points: sources, a virtual environment
with requirements.txt, and jax for the accelerator at the version that requirements.txt pins.
A second call does only what changed.

  bash launch/setup_vm.sh                        # this checkout, the accelerator of this host
  bash launch/setup_vm.sh --accelerator=cuda12
  bash setup_vm.sh --repo=https://.../udp_jax.git --ref=main --dir=udp_jax    # with common.sh beside

  --repo=URL         Clone, or fetch in an earlier clone. Without it: the sources are in --dir.
  --ref=REF          Branch, tag or commit of --repo (default: its default branch).
  --dir=PATH         The repository (default: the one this script is in; with --repo: udp_jax).
  --accelerator=A    tpu, cuda, cuda12, cuda13 or cpu. Default: cuda where there is nvidia-smi, else
                     tpu. cuda asks nvidia-smi: CUDA 13 from driver 580 on if every GPU has compute
                     capability 7.5 or more, else CUDA 12, from driver 525 on. cuda12 and cuda13 do
                     not ask.
  --python=PROGRAM   Python 3.11 or newer with venv (tested: 3.11 to 3.14). Default: python3.14,
                     python3.13, python3.12, python3.11 or python3, whichever is found first;
                     where there is none (Ubuntu 22.04 has 3.10), Python 3.13 by uv, which is
                     installed into PATH/.uv.
  --dry_run          Print the commands, run nothing.
EOF
}

repo=
ref=
dir=
accelerator=
python=
options=(repo ref dir accelerator python)
parse_options "$@"
((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]} (see --help)"
((${#command[@]} == 0)) || fail "takes no command (see --help)"
contains "$accelerator" '' tpu cuda cuda12 cuda13 cpu ||
  fail "--accelerator=$accelerator: known are tpu, cuda, cuda12, cuda13, cpu"
[[ -z $ref || -n $repo ]] || fail "--ref=$ref needs --repo=URL"

# Sets `accelerator` to the CUDA that this host's driver and GPUs support. CUDA 13 needs driver 580
# and has no code for GPUs before compute capability 7.5 (V100, P100, GTX 10); CUDA 12 needs 525.
choose_cuda() {
  local force='give --accelerator=cuda12 or cuda13' report driver capability major minor
  command -v nvidia-smi >/dev/null || fail "--accelerator=cuda asks nvidia-smi, not on PATH: $force"
  report=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>&1) ||
    fail "nvidia-smi finds no driver (${report%%$'\n'*}): install one, or $force"
  accelerator=cuda13
  while IFS=', ' read -r driver capability; do
    major=${capability%%.*} minor=${capability#*.}
    [[ ${driver%%.*} =~ ^[0-9]{1,6}$ && $major =~ ^[0-9]{1,3}$ && $minor =~ ^[0-9]{1,3}$ ]] ||
      fail "nvidia-smi's answer '$driver, $capability' is no driver and compute capability: $force"
    ((${driver%%.*} >= 525)) || fail "NVIDIA driver $driver is too old: CUDA 12 needs 525, 13 580"
    ((${driver%%.*} >= 580 && major * 1000 + minor >= 7005)) || accelerator=cuda12
  done <<<"$report"
  say "$accelerator: driver and compute capability of this host's GPUs: ${report//$'\n'/; }"
}

if [[ -z $accelerator ]]; then
  accelerator=tpu
  ! command -v nvidia-smi >/dev/null || accelerator=cuda
fi
[[ $accelerator != cuda ]] || choose_cuda

if [[ -z $dir ]]; then
  dir=$repository
  [[ -z $repo ]] || dir=udp_jax
fi

if [[ -n $repo ]]; then
  require_program git "install it, or copy the sources here and leave --repo out"
  [[ -d $dir/.git ]] || run git clone "$repo" "$dir"
  run git -C "$dir" fetch --tags "$repo" "${ref:-HEAD}"
  run git -C "$dir" checkout --quiet --detach FETCH_HEAD
fi

usable_python() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# The files and choices that made the environment: if they are the same, there is nothing to do.
fingerprint() {
  { cat "$dir/requirements.txt" "$dir/pyproject.toml" && echo "$accelerator $python"; } |
    sha256sum | cut -d ' ' -f 1
}

# A dry run works without the clone.
if [[ -f $dir/requirements.txt ]]; then
  grep -q '^jax==' "$dir/requirements.txt" || fail "$dir/requirements.txt pins no jax==VERSION"
elif [[ -z $dry_run || -z $repo ]]; then
  fail "no requirements.txt in $dir: it is not the repository (see --dir, --repo)"
fi

venv=$dir/.venv
if [[ -z $dry_run && -x $venv/bin/python && -f $venv/set_up &&
  $(<"$venv/set_up") == "$(fingerprint)" ]]; then
  say "$venv is up to date"
  exit 0
fi

made_by=$python
if [[ -z $made_by ]]; then
  for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
    if usable_python "$candidate"; then
      made_by=$candidate
      break
    fi
  done
elif [[ -z $dry_run ]]; then
  usable_python "$made_by" || fail "--python=$made_by is not Python 3.11 or newer with venv"
fi

if [[ -n $made_by ]]; then
  run "$made_by" -m venv "$venv"
else
  uv=$(command -v uv) || uv=$dir/.uv/uv
  if [[ ! -x $uv ]]; then
    require_program curl "it fetches uv, which brings Python 3.13; or give --python=PROGRAM"
    # shellcheck disable=SC2016  # $1 is for the inner shell
    run bash -c 'set -o pipefail; curl -LsSf https://astral.sh/uv/install.sh |
      env UV_INSTALL_DIR="$1" UV_NO_MODIFY_PATH=1 sh' bash "$dir/.uv"
  fi
  run "$uv" venv --allow-existing --seed --python=3.13 "$venv"
fi

# No version here: requirements.txt pins one for each Python, and pip obeys both.
jax="jax[$accelerator]"
[[ $accelerator != cpu ]] || jax=jax
run "$venv/bin/python" -m pip install --quiet --upgrade pip
run "$venv/bin/python" -m pip install --quiet --requirement "$dir/requirements.txt" "$jax"
run "$venv/bin/python" -m pip install --quiet --no-deps --editable "$dir"
# Does not ask for devices: on one host of a slice, that would wait for the other hosts.
run "$venv/bin/python" -c 'import jax, udp_jax; print("jax", jax.__version__)'
if [[ -z $dry_run ]]; then
  fingerprint >"$venv/set_up.tmp"
  mv "$venv/set_up.tmp" "$venv/set_up"
fi
