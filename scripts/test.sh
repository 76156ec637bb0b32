#!/usr/bin/env bash
# Sets up a fresh virtual environment and runs every check.
#
#     bash scripts/test.sh          lint, types, layers and the fast tests
#     bash scripts/test.sh slow     the second stage: full-size shapes and long runs
#
# PYTHON names the interpreter (3.11 or newer) and VENV the environment, which is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:-fast}
venv=$(realpath -m "${VENV:-.venv-test}")

# The explorer's page is clicked in a browser; where there is none and none can be had, those tests are skipped.
browser() {
  [[ $EUID == 0 ]] && ! command -v chromium && command -v apt-get || return 0
  { timeout 60 apt-get update -q && timeout 120 apt-get install -y -q chromium chromium-driver; } || true
}
browser >/dev/null 2>&1 & # while packages are installed

"${PYTHON:-python3}" -m venv --clear "$venv"
export PATH="$venv/bin:$PATH"
# First, so that a CPU build that pip is configured to find wins over one that brings CUDA along.
python -m pip install --quiet torch==2.13.0
python -m pip install --quiet ".[test]"
wait

if [[ $stage == slow ]]; then
  exec python -m pytest -m slow -n 2 --dist loadgroup --durations 10
fi
ruff check
ruff format --check
pyright
lint-imports
exec python -m pytest -n 2 --dist loadgroup --durations 10
