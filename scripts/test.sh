#!/usr/bin/env bash
# All tests that need no GPU; `make test` and .ci/run call it. The environment and the build are there already.
#
#   invariants        source invariants, and instruction sets kept apart in the CPU libraries
#   lint              ruff and mypy
#   ptxas             no register spills, where nvcc built the CUDA kernels; tests/test_sass.py reads their machine code
#   cpu               pytest on the CPU kernels
#   emulated seed S   the same suite on the CUDA kernels, executed on the CPU, in several thread orders
#   c++               GoogleTest programs under ASan and UBSan
#
# Every step runs even when an earlier one failed; the table at the end says which. CVKERNELS_EMULATION_SEEDS chooses the
# thread orders, CVKERNELS_TEST_STEPS the steps (a pattern on the names above, default all).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${VENV:-.venv}/bin/python
jobs=${MAX_JOBS:-$(nproc)}
steps=${CVKERNELS_TEST_STEPS:-.}
seeds=${CVKERNELS_EMULATION_SEEDS:-0 1 2}
build=${CVKERNELS_BUILD_DIR:-build/kernels}
export PATH="$PWD/${VENV:-.venv}/bin:$PATH"

summary=()
failed=0
step() {  # step NAME COMMAND...
  local name=$1 start=$SECONDS status=0 word=passed
  shift
  [[ $name =~ $steps ]] || return 0
  printf '\n==== %s\n' "$name"
  "$@" || status=$?
  if [ "$status" = 77 ]; then word=SKIPPED; elif [ "$status" != 0 ]; then word="FAILED ($status)" failed=1; fi
  summary+=("$(printf '%-18s %-12s %5d s' "$name" "$word" "$((SECONDS - start))")")
}

invariants() { "$python" scripts/check_invariants.py && "$python" scripts/check_invariants.py --odr "$build"; }
lint() { "$python" -m ruff check . && "$python" -m ruff format --check . && "$python" -m mypy; }
ptxas() {
  if [ ! -f cvkernels/_cuda.so ]; then
    echo "ptxas: SKIPPED, there is no CUDA build here (nvcc was not found)"
    return 77
  fi
  "$python" scripts/check_ptxas.py "$build"
}
cpp() {
  local output
  if ! output=$(cmake --preset asan 2>&1); then
    printf '%s\n' "$output"
    if grep -q GTest <<<"$output"; then
      echo "c++: SKIPPED, GoogleTest was not found. Install it (Debian: apt-get install libgtest-dev) to run these tests."
      return 77
    fi
    return 1
  fi
  cmake --build --preset asan --parallel "$jobs" && ctest --preset asan --parallel "$jobs"
}

step invariants invariants
step lint lint
step ptxas ptxas
# Two processes on two cores: threads that wait must not spin (Perf: 1540 -> 650 s of a Xeon).
step cpu env OMP_WAIT_POLICY=passive "$python" -m pytest -q -n "$jobs"
for seed in $seeds; do
  # The emulation runs on one thread; so does everything around it here, one process per core. Odd seeds take an older GPU.
  step "emulated seed $seed" env CVKERNELS_BACKEND=emulated CVKERNELS_EMULATION_SEED="$seed" \
    CVKERNELS_EMULATION_SM="$((seed % 2 ? 80 : 90))" OMP_NUM_THREADS=1 "$python" -m pytest -q -n "$jobs"
done
step c++ cpp

printf '\n%s\n' "==== summary"
printf '%s\n' "${summary[@]}"
exit "$failed"
