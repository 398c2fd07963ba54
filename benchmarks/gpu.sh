#!/usr/bin/env bash
# On a machine with a GPU: builds with CUDA, runs the tests, compute-sanitizer and the benchmark. See --help.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/out/gpu
target=$root/build/gpu

steps=(device build info tests memcheck racecheck initcheck synccheck benchmark)
not_judged=" device benchmark " # these steps do not check correctness
# Limits in seconds. With one more second per step to kill it, the sum is under nine minutes.
declare -A limit=(
  [device]=15 [build]=130 [info]=15 [tests]=60
  [memcheck]=35 [racecheck]=45 [initcheck]=35 [synccheck]=35 [benchmark]=150
)
benchmark_budget=120 # the rest of the limit is for imports and the case in progress

usage() {
  cat <<END
usage: [PYTHON=python3] bash benchmarks/gpu.sh [--only STEP...] [--dry-run]

Needs an NVIDIA GPU, nvcc, and a torch with CUDA in \$PYTHON (default: python3) beside scikit-build-core, pybind11,
cmake, ninja, pytest, hypothesis and transformers; no network. A step is tried even if an earlier one failed:

  device     nvidia-smi, nvcc and torch
  build      the package with CUDA kernels for this GPU, into build/gpu
  info       bico info of that build; the later steps use it, too
  tests      the op's tests on the GPU
  memcheck, racecheck, initcheck, synccheck
             small cases under this tool of compute-sanitizer
  benchmark  benchmarks/gpu.py for $benchmark_budget seconds

Each step has a time limit, and a log in out/gpu. benchmarks/results/<gpu>-<date>.steps.json lists the results of the
steps; the benchmark's .json and .md lie beside it. The exit status is 1 if a step other than device and benchmark
failed or ran out of time, and 2 for wrong usage.

  --only STEP...  run only these steps
  --dry-run       print the steps with their limits and commands, and run none
END
}

only=' '
dry_run=
while (($#)); do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    --only)
      shift
      while (($#)) && [[ $1 != -* ]]; do
        if [[ -z ${limit[$1]:-} ]]; then
          echo "benchmarks/gpu.sh: $1 is no step; the steps are ${steps[*]}" >&2
          exit 2
        fi
        only+="$1 "
        shift
      done
      if [[ $only == ' ' ]]; then
        echo "benchmarks/gpu.sh: --only needs a step; the steps are ${steps[*]}" >&2
        exit 2
      fi
      ;;
    *)
      echo "benchmarks/gpu.sh: $1 is no option; --help lists them" >&2
      exit 2
      ;;
  esac
done
chosen=()
for step in "${steps[@]}"; do
  if [[ $only == ' ' || $only == *" $step "* ]]; then
    chosen+=("$step")
  fi
done

# -S ignores the .pth files of site-packages, because that of an editable installation would hide the build. PYTHONPATH
# adds the rest of site-packages. Steps run in python_tests, because in the root Python would import the sources.
ask='import os, sys
print(sys.executable)
print(os.pathsep.join(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))))'
{
  read -r python
  read -r packages
} < <("${PYTHON:-python3}" -c "$ask" 2>/dev/null)
python=${python:-${PYTHON:-python3}}
built=(env "PYTHONPATH=$target${PYTHONPATH:+:$PYTHONPATH}${packages:+:$packages}")
# A toolkit is often installed without being on PATH.
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
sanitizer=$(command -v compute-sanitizer || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
gpu=${gpu:-no GPU}
slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | tr -cs 'a-z0-9\n' '-' | sed 's/^-//; s/-$//')
base=$root/benchmarks/results/$slug-$(date +%F)

# Sets `command` to the command of a step.
command_of() {
  case $1 in
    device)
      # shellcheck disable=SC2016 # $status and $0 are for the inner shell
      command=(bash -c 'status=0; nvidia-smi || status=1; nvcc --version || status=1
        "$0" -c "import torch; print(torch.__version__, torch.version.cuda)" || status=1; exit $status' "$python")
      ;;
    build)
      # The old build is removed first: if this build fails, the tests must not pass with the old one.
      # shellcheck disable=SC2016
      command=(bash -c 'rm -rf "$0" && exec "$@"' "$target"
        "$python" -m pip install --progress-bar off --no-build-isolation --no-deps --no-index --target "$target"
        -C build-dir=build/gpu-objects -C cmake.define.BICO_CUDA=ON -C cmake.define.BICO_CUDA_ARCHITECTURES=native
        "$root")
      ;;
    info) command=("${built[@]}" "$python" -S -m bico_ext.cli info) ;;
    tests)
      command=("${built[@]}" "$python" -S -m pytest -q --device cuda -p no:cacheprovider
        ops/test_attention.py ops/test_attention_contract.py csrc/test_cuda.py)
      ;;
    benchmark)
      command=("${built[@]}" "$python" -S "$root/benchmarks/gpu.py" --budget "$benchmark_budget" --output "$base")
      ;;
    *) # Without torch's cache, each tensor is a separate allocation, so the tool sees accesses beyond its end.
      command=("${built[@]}" PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer:-compute-sanitizer}"
        --tool "$1" --error-exitcode 9 "$python" -S "$root/benchmarks/gpu_small_cases.py")
      ;;
  esac
}

total=0
for step in "${chosen[@]}"; do
  total=$((total + limit[$step] + 1))
done
if [[ $dry_run ]]; then
  for step in "${chosen[@]}"; do
    command_of "$step"
    printf '%s, at most %d s:\n ' "$step" "${limit[$step]}"
    printf ' %q' "${command[@]}"
    printf '\n'
  done
  echo "all: at most $total s"
  exit 0
fi

export PYTHONUNBUFFERED=1 # so that a killed step leaves its log
mkdir -p "$logs" "$(dirname "$base")"
cd "$root/python_tests" || exit 1
declare -A result=() seconds=()

# Writes BASE.steps.json atomically.
write_summary() {
  local separator='' step
  {
    printf '{\n "gpu": "%s",\n "date": "%s",\n "steps": [' "${gpu//[\"\\]/}" "$(date +%F)"
    for step in "${chosen[@]}"; do
      [[ ${result[$step]:-} ]] || continue
      printf '%s\n  {"step": "%s", "result": "%s", "seconds": %d, "limit_seconds": %d}' \
        "$separator" "$step" "${result[$step]}" "${seconds[$step]}" "${limit[$step]}"
      separator=,
    done
    printf '\n ]\n}\n'
  } >"$base.steps.json.partial"
  mv "$base.steps.json.partial" "$base.steps.json"
}

exit_status=0
for step in "${chosen[@]}"; do
  command_of "$step"
  log=$logs/$step.log
  echo "== $step (at most ${limit[$step]} s; $SECONDS s so far)"
  began=$SECONDS
  if [[ $step == *check && -z $sanitizer ]]; then
    result[$step]="skipped: compute-sanitizer not found"
    echo "${result[$step]}" >"$log"
    status=0
  else
    # The output goes to a file: a process that the step leaves behind would keep a pipe open, and the script waiting.
    timeout --kill-after=1 "${limit[$step]}" "${command[@]}" >"$log" 2>&1 </dev/null
    status=$?
    if ((status == 0)); then
      result[$step]=ok
    elif ((status == 124 || (status == 137 && SECONDS - began >= limit[$step]))); then
      result[$step]="timed out"
    else
      result[$step]="failed ($status)"
    fi
  fi
  seconds[$step]=$((SECONDS - began))
  tail -n 40 "$log"
  if ((status != 0)) && [[ $not_judged != *" $step "* ]]; then
    exit_status=1
  fi
  write_summary
done

echo "== summary, $SECONDS s; logs in out/gpu"
for step in "${chosen[@]}"; do
  printf '%-10s %-40s %4d s\n' "$step:" "${result[$step]}" "${seconds[$step]}"
done
exit "$exit_status"
