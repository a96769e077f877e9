# Sourced by the other scripts: `environment EXTRA[,EXTRA]` installs the project and the extras into .venv, in the
# versions of constraints.txt, and activates it. Skips the installation if it is up to date.
source launch/run.sh

suits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

environment() {
  local extras=${1:-}
  local python=${PYTHON:-python3}
  if [ -z "${dry_run:-}" ] && ! suits "$python"; then
    echo "Python 3.11, 3.12 or 3.13 is needed: set PYTHON=/path/to/python3.11 and run this again." >&2
    return 2
  fi
  if needed [ ! -x .venv/bin/python ]; then run "$python" -m venv .venv || return; fi
  run source .venv/bin/activate
  # Huge pages for XLA's buffers on the CPU: without them page faults take a third of a step.
  run export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  # The stamp names the extras and a hash of the requirements; a change of either reinstalls.
  local stamp
  stamp="$extras $(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)"
  needed [ "$(cat ".venv/installed-${extras:-base}" 2>/dev/null)" != "$stamp" ] || return 0
  [ -n "${dry_run:-}" ] || echo "Installing into .venv (a few minutes the first time) ..."
  # Compiled as it is imported: half of the time went into what is never used.
  run python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".${extras:+[$extras]}" || return
  [ -n "${dry_run:-}" ] || echo "$stamp" > ".venv/installed-${extras:-base}"
}
