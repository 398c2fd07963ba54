#!/usr/bin/env bash
# Verdict on the CUDA kernels on a machine with a GPU: builds, checks and times them. See --help.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$root/build/gpu

steps=(build small speed sanitize tests table counters)
# Limits in seconds; with two more seconds a step to kill it, the sum is under ten minutes.
declare -A limit=([build]=150 [small]=40 [speed]=60 [sanitize]=60 [tests]=140 [table]=80 [counters]=40)
needs_right_numbers=" speed table counters " # these mean nothing if `small` has failed
judged=" build small sanitize tests "        # these decide the exit status

usage() {
  cat <<END
usage: [PYTHON=python3] bash benchmarks/gpu.sh [--output DIR] [--only STEP...] [--dry-run]

Needs an NVIDIA GPU, nvcc, and a torch with CUDA in \$PYTHON (default: python3) beside scikit-build-core, pybind11,
cmake, ninja, pytest, pytest-timeout, pytest-xdist, hypothesis and transformers; no network. The steps:

  build     the package with kernels for this GPU alone, into build/gpu; the other steps use it
  small     small cases against the reference in float64, with and without deterministic algorithms
  speed     4096 tokens, head dims 64 and 128: full, causal and denoising, beside the peers
  sanitize  the small cases under compute-sanitizer's memcheck and racecheck, side by side
  tests     the op's tests on the GPU, each file in a process of its own
  table     512 to 32768 tokens
  counters  ncu's counters of a forward and a backward

Each step has a time limit. Nothing runs after a failed build, and nothing is timed after a failed small case. DIR
(default: out/gpu) holds at most 8 files: logs.tar.gz, renewed after every step, steps.json, and the tables. The exit
status is 1 if build, small, sanitize or tests failed, and 2 for wrong usage.

  --only STEP...  run only these steps
  --dry-run       print the steps with their limits, and run none
END
}

refuse() {
  echo "benchmarks/gpu.sh: $1" >&2
  exit 2
}

output=$root/out/gpu
chosen=()
dry_run=
while (($#)); do
  option=$1
  shift
  case $option in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --output)
      (($#)) && [[ $1 != -* ]] || refuse "--output needs a folder"
      output=$1
      shift
      ;;
    --only)
      while (($#)) && [[ $1 != -* ]]; do
        [[ ${limit[$1]:-} ]] || refuse "$1 is no step; the steps are ${steps[*]}"
        chosen+=("$1")
        shift
      done
      ((${#chosen[@]})) || refuse "--only needs a step; the steps are ${steps[*]}"
      ;;
    *) refuse "$option is no option; --help lists them" ;;
  esac
done
((${#chosen[@]})) || chosen=("${steps[@]}")
if [[ $dry_run ]]; then
  for step in "${chosen[@]}"; do echo "$step: at most ${limit[$step]} s"; done
  exit 0
fi

[[ ${chosen[0]} == build || -d $target/bico_ext ]] || refuse "there is no build in build/gpu; run the step build first"
logs=$root/build/gpu-logs
rm -rf "$logs"
{ mkdir -p "$output" "$logs" && output=$(cd "$output" && pwd); } || refuse "cannot write to --output $output"
export PYTHONUNBUFFERED=1 # so that a killed step leaves its log
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # a toolkit is often installed without being on PATH
python=${PYTHON:-python3}
# -S ignores the .pth files of site-packages, because that of an editable installation would hide the build; the rest of
# site-packages is added. The steps run in python_tests, because in the root Python would import the sources.
packages=$("$python" -c 'import os, sys; print(os.pathsep.join(p for p in sys.path if p.endswith("-packages")))')
cd "$root/python_tests" || exit 1

built() {
  env "PYTHONPATH=$target${PYTHONPATH:+:$PYTHONPATH}:$packages" "$@"
}

build() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv
  nvcc --version | tail -n 2
  rm -rf "$target" # if this build fails, the tests must not pass with an older one
  "$python" -m pip install --progress-bar off --no-build-isolation --no-deps --no-index --target "$target" \
    -C build-dir=build/gpu-objects -C cmake.define.BICO_CUDA=ON -C cmake.define.BICO_CUDA_ARCHITECTURES=native \
    "$root" && built "$python" -S -m bico_ext.cli info
}

small() {
  built "$python" -S "$root/benchmarks/gpu_small_cases.py"
}

speed() {
  built "$python" -S "$root/benchmarks/gpu.py" --lengths 4096 --budget $((limit[speed] - 15)) --output "$output/speed"
}

# Without torch's cache each tensor is an allocation of its own, so accesses beyond its end are seen.
sanitize() {
  local tool process failed=0 processes=()
  for tool in memcheck racecheck; do
    built PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -S "$root/benchmarks/gpu_small_cases.py" >"$logs/$tool.log" 2>&1 &
    processes+=($!)
  done
  for process in "${processes[@]}"; do # by number: `wait -n` misses one that has already ended
    wait "$process" || failed=1
  done
  grep -H -m 8 -e '=====.*\(Error\|Invalid\|hazard\|SUMMARY\)' -e agree -e 'RMS error' "$logs"/{mem,race}check.log
  return "$failed"
}

# A process a file, since after an illegal access every later test of a process fails.
tests() {
  local file failed=0
  for file in csrc/test_cuda.py ops/test_attention_contract.py ops/test_attention.py; do
    built "$python" -S -m pytest -q --device cuda -p no:cacheprovider --timeout 60 --maxfail 5 --tb short -n 6 "$file" || failed=1
  done
  return "$failed"
}

table() {
  built "$python" -S "$root/benchmarks/gpu.py" --budget $((limit[table] - 20)) --output "$output/table"
}

counters() {
  built ncu --clock-control none --kernel-name 'regex:(forward|backward)_kernel' --launch-count 8 \
    --section SpeedOfLight --section Occupancy --section LaunchStats --section WarpStateStats \
    --section MemoryWorkloadAnalysis "$python" -S "$root/benchmarks/gpu.py" --once >"$output/counters.txt" 2>&1
  local status=$?
  grep -E '^ +[a-z_:<>A-Z, 0-9]+\(|Duration|Compute \(SM\) Throughput|Registers Per|Achieved Occ|Bank conf' \
    "$output/counters.txt" | cut -c 1-100
  return "$status"
}

declare -A result=() seconds=()

# Renews what a machine that goes away in the middle would otherwise take along.
save() {
  local separator='' step
  {
    printf '{"steps": ['
    for step in "${chosen[@]}"; do
      [[ ${result[$step]:-} ]] || continue
      printf '%s\n {"step": "%s", "result": "%s", "seconds": %d}' "$separator" "$step" "${result[$step]}" "${seconds[$step]}"
      separator=,
    done
    printf '\n]}\n'
  } >"$output/steps.json.partial" && mv "$output/steps.json.partial" "$output/steps.json"
  tar -czf "$output/logs.partial" -C "$logs" . && mv "$output/logs.partial" "$output/logs.tar.gz"
}

export -f "${steps[@]}" built
export root target output logs python packages
exit_status=0
for step in "${chosen[@]}"; do
  if [[ ${result[build]:-ok} != ok ]] || [[ $needs_right_numbers == *" $step "* && ${result[small]:-ok} != ok ]]; then
    result[$step]="not run" seconds[$step]=0
    continue
  fi
  echo "== $step (at most ${limit[$step]} s; $SECONDS s so far)"
  began=$SECONDS log=$logs/$step.log
  # The output goes to a file: a process that the step leaves behind would keep a pipe open, and the script waiting.
  timeout --kill-after=2 "${limit[$step]}" bash -c "$(declare -p limit); $step" >"$log" 2>&1 </dev/null
  status=$?
  seconds[$step]=$((SECONDS - began))
  case $status in
    0) result[$step]=ok ;;
    124 | 137) result[$step]="timed out" ;;
    *) result[$step]="failed ($status)" ;;
  esac
  [[ $status == 0 || $judged != *" $step "* ]] || exit_status=1
  tail -c 1500 "$log" # eight steps stay under 12,000 characters
  save
done

save
echo "== verdict after $SECONDS s; everything is in $output"
for step in "${chosen[@]}"; do
  printf '%-9s %-12s %4d s\n' "$step" "${result[$step]}" "${seconds[$step]}"
done
exit "$exit_status"
