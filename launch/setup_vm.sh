#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'EOF'
Prepares a fresh TPU VM, or any Linux host, for the entry points: sources, a virtual environment
with requirements.txt, and jax for the accelerator at the version that requirements.txt pins.
A second call does only what changed.

  bash launch/setup_vm.sh                                         # this checkout, TPU
  bash launch/setup_vm.sh --accelerator=cuda13
  bash setup_vm.sh --repo=https://.../udp_jax.git --ref=main --dir=udp_jax    # with common.sh beside

  --repo=URL         Clone, or fetch in an earlier clone. Without it: the sources are in --dir.
  --ref=REF          Branch, tag or commit of --repo (default: its default branch).
  --dir=PATH         The repository (default: the one this script is in; with --repo: udp_jax).
  --accelerator=A    tpu (default), cuda12, cuda13 or cpu.
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
accelerator=tpu
python=
options=(repo ref dir accelerator python)
parse_options "$@"
((${#positional[@]} == 0)) || fail "unexpected argument ${positional[0]} (see --help)"
((${#command[@]} == 0)) || fail "takes no command (see --help)"
contains "$accelerator" tpu cuda12 cuda13 cpu ||
  fail "--accelerator=$accelerator: known are tpu, cuda12, cuda13, cpu"
[[ -z $ref || -n $repo ]] || fail "--ref=$ref needs --repo=URL"

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

# Which files and choices made the environment: the same again needs nothing.
fingerprint() {
  { cat "$dir/requirements.txt" "$dir/pyproject.toml" && echo "$accelerator $python"; } |
    sha256sum | cut -d ' ' -f 1
}

# A dry run need not have the clone yet.
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

# Without a version: requirements.txt has it, for each Python its own, and pip obeys both.
jax="jax[$accelerator]"
[[ $accelerator != cpu ]] || jax=jax
run "$venv/bin/python" -m pip install --quiet --upgrade pip
run "$venv/bin/python" -m pip install --quiet --requirement "$dir/requirements.txt" "$jax"
run "$venv/bin/python" -m pip install --quiet --no-deps --editable "$dir"
# Devices are left alone: on one host of a slice, asking for them waits for the other hosts.
run "$venv/bin/python" -c 'import jax, udp_jax; print("jax", jax.__version__)'
if [[ -z $dry_run ]]; then
  fingerprint >"$venv/set_up.tmp"
  mv "$venv/set_up.tmp" "$venv/set_up"
fi
