# shellcheck shell=bash
# Shared code of the launch scripts: errors, options, quoting, printing instead of running. Sourced.
#
# A script declares its options (`options`: with a value; `switches`: without; `lists`: with a
# value, repeatable), their variables with defaults, and `usage`; `parse_options` then sets the
# variables, and sets `command` to the words after `--`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

options=()
switches=()
lists=()
positional=()
command=()
dry_run=
name=

# The folder that holds launch/.
# shellcheck disable=SC2034  # used by the scripts that source this
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Prints one clear line. The exit code for the user's mistakes is 2, as in the entry points.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() {
  printf '%s\n' "$*" >&2
}

# quote WORDS...: prints one line (or more, if a word has newlines) that any POSIX shell reads as
# exactly these words.
quote() {
  local word text='' escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      text+=" $word"
    else
      text+=" '${word//\'/$escaped}'"
    fi
  done
  printf '%s' "${text# }"
}

# run WORDS...: runs the command, or prints it with --dry_run.
run() {
  if [[ -n $dry_run ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    say "+ $(quote "$@")"
    "$@"
  fi
}

contains() {
  local wanted=$1 word
  shift
  for word in "$@"; do
    [[ $word != "$wanted" ]] || return 0
  done
  return 1
}

parse_options() {
  local word key value given
  while (($#)); do
    word=$1
    shift
    case $word in
      --)
        command=("$@")
        return
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      -*)
        key=${word%%=*}
        given=
        value=
        if [[ $word == *=* ]]; then
          given=yes
          value=${word#*=}
        fi
        ;;
      *)
        positional+=("$word")
        continue
        ;;
    esac
    [[ $key == --* ]] || fail "unknown option $key (see --help)"
    key=${key#--}
    if contains "$key" dry_run "${switches[@]}"; then
      [[ -z $given ]] || fail "--$key takes no value (see --help)"
      printf -v "$key" yes
      continue
    fi
    contains "$key" "${options[@]}" "${lists[@]}" || fail "unknown option --$key (see --help)"
    if [[ -z $given ]]; then
      [[ $# -gt 0 && $1 != --* ]] || fail "--$key needs a value (see --help)"
      value=$1
      shift
    fi
    if contains "$key" "${lists[@]}"; then
      local -n list=$key
      list+=("$value")
      unset -n list
    else
      printf -v "$key" %s "$value"
    fi
  done
}

require_option() {
  [[ -n ${!1} ]] || fail "--$1 is missing: $2"
}

require_count() {
  if ! [[ ${!1} =~ ^(0|[1-9][0-9]{0,6})$ ]] || ((${!1} < $2)); then
    fail "--$1=${!1} is no whole number of at least $2"
  fi
}

# Checks --name, which becomes the name of cloud resources and Kubernetes objects.
require_name() {
  require_option name "how the run is called"
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$name: lower-case letters, digits and '-', at most 40, starting with a letter"
}

require_command() {
  ((${#command[@]})) || fail "no command: it follows --, as in: -- python -m experiments.eudp ..."
}

require_program() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || fail "$1 is not on PATH: $2"
}

# supervise WORDS...: runs the command and passes SIGTERM on to it. Returns 143 if SIGTERM came,
# else the command's exit code. The entry points exit with 0 when SIGTERM stopped them with
# everything saved; a scheduler would take that for the end of the work.
supervise() {
  local child='' status=0 stopped=''
  trap 'stopped=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  "$@" <&0 &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null || true
  # A signal ends `wait` early, while the command is still saving.
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  trap - TERM
  [[ -z $stopped ]] || return 143
  return "$status"
}

# here_document TEXT WORDS...: prints the command with TEXT as its input, ready to paste.
here_document() {
  local mark=END
  while [[ $'\n'$1$'\n' == *$'\n'$mark$'\n'* ]]; do mark+=_; done
  printf "%s <<'%s'\n%s\n%s\n" "$(quote "${@:2}")" "$mark" "$1" "$mark"
}

# first_of PROGRAMS...: prints the first that is a file which runs, or the last.
first_of() {
  local candidate
  for candidate in "$@"; do
    [[ ! -x $candidate ]] || break
  done
  printf '%s' "$candidate"
}

# ask_gpu: prints the GPUs' name, driver and memory as nvidia-smi says; changes nothing there. The
# first call on a fresh machine loads the driver, which takes seconds; if it takes too long, the
# programs themselves find out what is there.
ask_gpu() {
  local report code=0
  command -v nvidia-smi >/dev/null ||
    fail "no nvidia-smi, so no NVIDIA GPU here; --smoke shows every part on a CPU"
  report=$(timeout 15 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>&1) ||
    code=$?
  if ((code == 124)); then
    report='unknown card: nvidia-smi gave no answer within 15 s'
  elif ((code != 0)); then
    fail "nvidia-smi finds no GPU (${report%%$'\n'*}); --smoke shows every part on a CPU"
  fi
  printf '%s' "$report"
}

# install_wheels PYTHON DIR TARGET SECONDS: installs the wheels of a folder into another, without
# network, within so many seconds.
install_wheels() {
  local files=("$2"/*.whl)
  [[ -e ${files[0]} ]] || fail "--wheels=$2: no wheels in it (see launch/README.md)"
  timeout "$4" "$1" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --upgrade --target "$3" "${files[@]}" ||
    fail "the wheels of $2 cannot be installed within $4 s"
}

# known_commit: prints the commit of this checkout, without git what UDP_JAX_COMMIT says.
known_commit() {
  local commit
  commit=$(git -C "$repository" rev-parse HEAD 2>/dev/null) || commit=${UDP_JAX_COMMIT-}
  [[ -n $commit ]] || say "warning: THE COMMIT IS UNKNOWN, and so it will say in every result:" \
    "without git, set UDP_JAX_COMMIT (see --help)"
  printf '%s' "${commit:-unknown}"
}
