"""benchmarks/gpu.sh goes on after a failed step and says what became of each; its small cases find wrong numbers."""

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import gpu_small_cases
import pytest
import torch
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STEPS = ["device", "build", "info", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "benchmark"]
TOOLS = (
    "bash",
    "env",
    "timeout",
    "tail",
    "head",
    "tr",
    "sed",
    "date",
    "mkdir",
    "mv",
    "rm",
    "dirname",
    "cat",
    "tee",
    "sleep",
)

# Says which step called it, with which packages, and fails or hangs as the test wants.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  *sys.executable*) echo "$0"; echo /fake/site-packages; exit ;;
  *torch.version*) step=device ;;
  *" pip install "*) step=build; mkdir -p "$FOLDER/build/gpu" ;;
  *" bico_ext.cli info") step=info ;;
  *" pytest "*) step=tests ;;
  *gpu_small_cases.py) step=$TOOL ;;
  *gpu.py*) step=benchmark ;;
esac
echo "$step: PYTHONPATH=${PYTHONPATH:-} in ${PWD##*/}: $*" | tee -a "$FOLDER/calls"
[[ " ${HANGING:-} " == *" $step "* ]] && sleep 60
[[ " ${FAILING:-} " == *" $step "* ]] && exit 3
exit 0
"""
SANITIZER = r"""#!/usr/bin/env bash
[[ "$1 $3 $4" == "--tool --error-exitcode 9" ]] || exit 64
TOOL=$2 "${@:5}" || exit 9
"""
NVIDIA_SMI = "#!/usr/bin/env bash\necho 'NVIDIA H200'\n"


class Machine:
    """A folder with the script in it, and a PATH of these executables and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        for name in ("bin", "benchmarks", "python_tests"):
            (folder / name).mkdir()
        shutil.copy(SCRIPT, folder / "benchmarks")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name, text in (
            ("python3", PYTHON), ("nvidia-smi", NVIDIA_SMI), ("nvcc", NVIDIA_SMI), ("compute-sanitizer", SANITIZER)
        ):  # fmt: skip
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", str(self.folder / "benchmarks" / "gpu.sh"), *arguments]
        variables = {"PATH": str(self.bin), "FOLDER": str(self.folder), "CUDA_HOME": "/nonexistent", **environment}
        return subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)

    def calls(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in (self.folder / "calls").read_text().splitlines())

    def summary(self) -> dict[str, str]:
        (path,) = (self.folder / "benchmarks" / "results").glob("*.steps.json")
        assert re.fullmatch(r"(nvidia-h200|no-gpu)-\d{4}-\d\d-\d\d\.steps\.json", path.name)
        return {step["step"]: step["result"] for step in json.loads(path.read_text())["steps"]}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_every_step_runs_on_the_build_and_outside_the_sources(machine):
    done = machine.run(PYTHONPATH="/more")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.summary() == dict.fromkeys(STEPS, "ok")
    calls = machine.calls()
    assert list(calls) == STEPS
    for step in ("info", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "benchmark"):
        place = f"PYTHONPATH={machine.folder}/build/gpu:/more:/fake/site-packages in python_tests: -S "
        assert calls[step].startswith(place), step
    assert calls["build"].startswith("PYTHONPATH=/more in python_tests: -m pip install ")
    assert calls["build"].endswith(f"-C cmake.define.BICO_CUDA_ARCHITECTURES=native {machine.folder}")
    assert "-m pytest -q --device cuda -p no:cacheprovider ops/test_attention.py" in calls["tests"]
    base = calls["benchmark"].split("--output ")[1]
    assert re.fullmatch(rf"{machine.folder}/benchmarks/results/nvidia-h200-\d{{4}}-\d\d-\d\d", base)
    assert {path.name for path in (machine.folder / "out" / "gpu").iterdir()} == {f"{step}.log" for step in STEPS}


def test_a_failing_step_stops_no_other_and_the_status_is_1(machine):
    done = machine.run(FAILING="build tests racecheck")
    assert done.returncode == 1
    failed = {"build": "failed (3)", "tests": "failed (3)", "racecheck": "failed (9)"}
    assert machine.summary() == dict.fromkeys(STEPS, "ok") | failed
    assert list(machine.calls()) == STEPS
    summary = done.stdout.split("== summary")[1]
    for step, result in machine.summary().items():
        assert re.search(rf"^{step}: +{re.escape(result)} +\d+ s$", summary, re.MULTILINE)
    assert "tests: PYTHONPATH" in (machine.folder / "out" / "gpu" / "tests.log").read_text()
    assert "tests: PYTHONPATH" in done.stdout


@pytest.mark.parametrize("step", ["info", "initcheck", "device", "benchmark"])
def test_the_status_tells_of_correctness_alone(machine, step):
    assert machine.run("--only", step, FAILING=step).returncode == (0 if step in ("device", "benchmark") else 1)
    assert machine.summary()[step].startswith("failed (")


def test_a_build_that_fails_leaves_no_older_one(machine):
    (machine.folder / "build" / "gpu").mkdir(parents=True)
    (machine.folder / "build" / "gpu" / "older").touch()
    machine.run("--only", "build", FAILING="build")
    assert not (machine.folder / "build" / "gpu" / "older").exists()


def test_a_step_that_hangs_is_ended_at_its_limit(machine):
    script = machine.folder / "benchmarks" / "gpu.sh"
    script.write_text(script.read_text().replace("[info]=15", "[info]=1"))
    done = machine.run("--only", "info", "tests", HANGING="info")
    assert done.returncode == 1
    assert machine.summary() == {"info": "timed out", "tests": "ok"}


def test_steps_run_in_their_order_and_only_those_asked_for(machine):
    assert machine.run("--only", "benchmark", "device").returncode == 0
    assert list(machine.calls()) == ["device", "benchmark"]


def test_what_is_missing_is_said(machine):
    for name in ("compute-sanitizer", "nvidia-smi"):
        (machine.bin / name).unlink()
    done = machine.run()
    assert done.returncode == 0
    skipped = dict.fromkeys(STEPS[4:8], "skipped: compute-sanitizer not found")
    assert machine.summary() == dict.fromkeys(STEPS, "ok") | skipped | {"device": "failed (1)"}
    assert "device" in machine.calls()  # torch is asked all the same
    (machine.bin / "python3").unlink()
    assert machine.run("--only", "info").returncode == 1
    assert machine.summary() == {"info": "failed (127)"}


def test_a_dry_run_prints_commands_and_limits_that_stay_under_nine_minutes(machine):
    done = machine.run("--dry-run")
    assert done.returncode == 0
    limits = dict(re.findall(r"^(\w+), at most (\d+) s:\n  \S", done.stdout, re.MULTILINE))
    assert list(limits) == STEPS
    total = sum(map(int, limits.values())) + len(STEPS)  # a second each to be killed in
    assert total < 540
    assert done.stdout.endswith(f"all: at most {total} s\n")
    assert "BICO_CUDA_ARCHITECTURES=native" in done.stdout
    budget = int(re.search(r"gpu\.py --budget (\d+) ", done.stdout)[1])
    assert budget + 20 <= int(limits["benchmark"])
    assert sorted(path.name for path in machine.folder.iterdir()) == ["benchmarks", "bin", "python_tests"]
    alone = machine.run("--dry-run", "--only", "racecheck").stdout
    assert "--tool racecheck" in alone
    assert "-m pytest" not in alone


@pytest.mark.parametrize("wrong", [["--only", "compile"], ["--only"], ["--only", "--dry-run"], ["--fast"]], ids=str)
def test_wrong_usage_is_refused_before_anything_runs(machine, wrong):
    done = machine.run(*wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu.sh: ")
    assert not (machine.folder / "calls").exists()


def test_help_names_every_step(machine):
    done = machine.run("--help")
    assert done.returncode == 0
    assert all(step in done.stdout for step in STEPS)
    assert subprocess.run(["bash", "-n", str(SCRIPT)], env=dict(os.environ), check=False).returncode == 0


def test_the_small_cases_agree_with_the_reference(capsys):
    assert gpu_small_cases.main(["--device", "cpu"]) == 0
    assert "6 cases agree" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["mirror", "nan", "lse"])
def test_the_small_cases_find_wrong_numbers(fault, monkeypatch, capsys):
    real = gpu_small_cases.split_triangle_attention

    def wrong(*operands, mirror, **options):
        out, lse = real(*operands, mirror=mirror != (fault == "mirror"), **options)
        if fault == "nan":
            out = out * torch.where(torch.arange(out.shape[2]) == 7, math.nan, 1.0)[:, None].to(out.dtype)
        return out, lse + 0.1 if fault == "lse" else lse

    monkeypatch.setattr(gpu_small_cases, "split_triangle_attention", wrong)
    assert gpu_small_cases.main(["--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "bf16-spans-gqa: " + ("lse" if fault == "lse" else "out") in said
    assert "allowed" in said
