#!/usr/bin/env bash
# Everything that wants a GPU, in one run: scripts/gpu_check.sh OUTDIR
#
# Steps, most valuable first, each bounded in time:
#   build          only where cvkernels/_cuda.so is not there yet; a prebuilt one is taken as it is
#   environment    driver, GPU, toolkit, torch, libraries
#   ptxas          registers and spills, where the build's reports are at hand
#   small cases    one small case of every kernel, CUDA against CPU
#   bench          detector workloads against the peers, JSON; interrupted at its limit, it keeps what it has
#   pytest cuda    the suite's CUDA half, with pytest-xdist where it is installed
#   memcheck, racecheck, synccheck, initcheck    compute-sanitizer over the small cases
#   pytest bench   the bench through pytest-benchmark, JSON
#   nsys, ncu      profiles of detector-sized cases, where the tools are installed
# The logs and the summary table (summary.txt) land in OUTDIR. Needs no network. Exit status 1 when a step failed.
#
# PYTHON chooses the interpreter (default .venv/bin/python, else python3). CVKERNELS_GPU_SCALE scales every time limit
# (2 doubles them), CVKERNELS_GPU_STEPS limits the steps to those whose name matches the pattern, CVKERNELS_GPU_BENCH
# holds further arguments of the bench (operators, --quick, --peers), CVKERNELS_GPU_LIMIT is the longest a step may take.
set -uo pipefail
out=${1:?usage: scripts/gpu_check.sh OUTDIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=$PWD/.venv/bin/python
fi
steps=${CVKERNELS_GPU_STEPS:-.}
scale=${CVKERNELS_GPU_SCALE:-1}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PATH="$PATH:/usr/local/cuda/bin"

summary=()
failed=0
step() {  # [signal=INT] step NAME LIMIT_SECONDS COMMAND...    the signal that ends it at its limit
  local name=$1 limit=$(($2 * scale)) start=$SECONDS status=0 word=passed log
  [ "$limit" -gt "${CVKERNELS_GPU_LIMIT:-$limit}" ] && limit=$CVKERNELS_GPU_LIMIT
  shift 2
  [[ $name =~ $steps ]] || return 0
  log=$out/${name// /_}.log
  printf '\n==== %s (at most %d s)\n' "$name" "$limit"
  timeout --signal="${signal:-TERM}" --kill-after=20 "$limit" "$@" >"$log" 2>&1 || status=$?
  tail -n 25 "$log"
  case $status in
    0) ;;
    77) word=SKIPPED ;;
    124 | 137) word="TIME OUT" failed=1 ;;
    *) word="FAILED ($status)" failed=1 ;;
  esac
  summary+=("$(printf '%-14s %-13s %5d s  %s' "$name" "$word" "$((SECONDS - start))" "$(tail -n 1 "$log" | cut -c1-90)")")
}
skip() {  # skip NAME REASON
  [[ $1 =~ $steps ]] && summary+=("$(printf '%-14s %-13s %5d s  %s' "$1" SKIPPED 0 "$2")")
}

environment() {
  nvidia-smi || true
  nvcc --version || true
  "$PYTHON" -m cvkernels info || return 1
  "$PYTHON" -c '
import sys, torch
from cvkernels import _load
if not torch.cuda.is_available(): sys.exit("gpu_check: torch sees no GPU")
if "_cuda" not in _load.info()["loaded"]: sys.exit("gpu_check: cvkernels._cuda is not loaded; build it with nvcc on PATH")
print(torch.cuda.get_device_name(0), "torch", torch.__version__)  # nvidia-smi has named the driver
'
}
# sharded COMMAND...: the small cases dealt to processes that run side by side.
sharded() {
  local shard shards=$((($(nproc) + 3) / 4)) pids=() pid status=0
  for ((shard = 0; shard < shards; shard++)); do
    OMP_NUM_THREADS=4 "$@" "$PYTHON" scripts/gpu_small_cases.py --shard "$shard/$shards" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}
export PYTHON
export -f environment sharded

if [ -f cvkernels/_cuda.so ] && [ -f cvkernels/_C.so ]; then
  skip build "prebuilt libraries are used"
else
  step build 900 env CVKERNELS_BUILD_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace
fi
step environment 120 bash -c environment
if [ "$failed" != 0 ]; then
  printf '\n==== summary (nothing else can run)\n'
  printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
  exit 1
fi
if [ -n "$(find build -name '*.ptxas.txt' -print -quit 2>/dev/null)" ]; then
  step ptxas 60 "$PYTHON" scripts/check_ptxas.py build
else
  skip ptxas "no ptxas reports here"
fi
step "small cases" 180 bash -c 'sharded env'
# shellcheck disable=SC2086  # arguments, separated by spaces
signal=INT step bench 600 "$PYTHON" -m cvkernels bench ${CVKERNELS_GPU_BENCH:-} --device cuda --json "$out/bench.json"
if "$PYTHON" -c 'import pytest' 2>/dev/null; then
  workers=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$(nproc)")
  signal=INT step "pytest cuda" 600 env OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 "$PYTHON" -m pytest -v tests -k "cuda or gpu" \
    ${workers[@]+"${workers[@]}"} --tb=short -p no:cacheprovider --junitxml="$out/pytest.xml"
else
  skip "pytest cuda" "pytest is not installed"
fi
sanitizer=$(command -v compute-sanitizer || true)
for tool in memcheck racecheck synccheck initcheck; do
  # initcheck must see every kernel write, torch's too; the others watch ours only.
  only=(--kernel-name kns=cvk)
  [ "$tool" = initcheck ] && only=()
  if [ -n "$sanitizer" ]; then
    # torch's caching allocator would hide an access past a tensor's end.
    step "$tool" 240 bash -c 'sharded "$@"' "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool "$tool" --error-exitcode 3 ${only[@]+"${only[@]}"}
  else
    skip "$tool" "compute-sanitizer is not installed"
  fi
done
if "$PYTHON" -c 'import pytest_benchmark' 2>/dev/null; then
  step "pytest bench" 300 "$PYTHON" -m pytest -q bench --bench-device cuda -p no:cacheprovider --benchmark-json="$out/pytest-benchmark.json"
else
  skip "pytest bench" "pytest-benchmark is not installed"
fi
if command -v nsys >/dev/null; then
  step nsys 180 nsys profile --force-overwrite true --trace cuda,nvtx --stats true --output "$out/profile" \
    "$PYTHON" scripts/gpu_small_cases.py --large --repeat 5
else
  skip nsys "nsys is not installed"
fi
if command -v ncu >/dev/null; then
  step ncu 240 ncu --clock-control none --section SpeedOfLight --section Occupancy --section MemoryWorkloadAnalysis \
    --kernel-name 'regex:(roi_align|nms)' --launch-count 40 "$PYTHON" scripts/gpu_small_cases.py --large
else
  skip ncu "ncu is not installed"
fi

printf '\n==== summary\n'
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
exit "$failed"
