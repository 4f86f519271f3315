#!/usr/bin/env bash
# Makes the virtual environment: scripts/bootstrap.sh build|test|demo|dev
#
# PYTHON (default python3) and VENV (default .venv) choose the interpreter and the place. Needs Python >= 3.10 with venv,
# and g++. Does nothing when the environment already has what the requirements file pins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:?usage: scripts/bootstrap.sh build|test|demo|dev}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
requirements=requirements/$kind.txt

fail() { printf '\nbootstrap: %s\n' "$1" >&2; exit 1; }

command -v "$python" >/dev/null || fail "$python was not found. Install Python >= 3.10 or pass PYTHON=/path/to/python."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is $("$python" --version 2>&1); cvkernels needs Python >= 3.10. Pass PYTHON=/path/to/a/newer/python."
command -v "${CXX:-g++}" >/dev/null || fail "${CXX:-g++} was not found. Install g++ (Debian: apt-get install g++)."

if [ ! -x "$venv/bin/python" ]; then
  echo "bootstrap: creating $venv with $("$python" --version)"
  "$python" -m venv "$venv" ||
    fail "\`$python -m venv\` failed. Debian and Ubuntu keep it in a package of its own: apt-get install python3-venv."
fi

# pip's words go to a log: beside facenet-pytorch's old pins it reports conflicts that are none.
install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >"$venv/pip.log" 2>&1 || {
    tail -n 30 "$venv/pip.log" >&2
    fail "pip could not install $*. The messages above, and $venv/pip.log, say why."
  }
}

# The stamp holds the requirements that were installed; the same text means that there is nothing to do.
stamp=$venv/.installed-$kind
wanted=$(cat requirements/*.txt)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "bootstrap: installing $requirements into $venv (torch is large; the first time takes minutes)"
  install -r "$requirements"
  if [ "$kind" != build ]; then
    install --no-deps -r requirements/demo-no-deps.txt
  fi
  printf '%s' "$wanted" >"$stamp"
fi

# GoogleTest comes from the system. Where it is missing and cannot be installed, scripts/test.sh says so loudly.
if { [ "$kind" = test ] || [ "$kind" = dev ]; } && [ ! -d "${GTEST_ROOT:-/usr}/include/gtest" ] &&
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "bootstrap: installing GoogleTest with apt-get"
  { apt-get install -y -qq libgtest-dev || { apt-get update -qq && apt-get install -y -qq libgtest-dev; }; } \
    >/dev/null 2>&1 || echo "bootstrap: apt-get could not install libgtest-dev" >&2
fi
