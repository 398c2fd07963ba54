"""benchmarks/gpu.sh: what runs after a failure and what is left on disk; its small cases find wrong numbers."""

import json
import math
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import gpu_small_cases
import pytest
import torch
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STEPS = ["build", "small", "speed", "sanitize", "tests", "table", "counters"]

# Says which step called it, with which packages, and fails or hangs as the test wants.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  *pathsep*) echo /fake/site-packages; exit ;;
  *" pip install "*) step=build; mkdir -p "$FOLDER/build/gpu" ;;
  *" bico_ext.cli info") step=info ;;
  *" pytest "*) step=tests ;;
  *gpu_small_cases.py) step=${TOOL:-small} ;;
  *--lengths*) step=speed ;;
  *--once*) step=counters ;;
  *gpu.py*) step=table ;;
esac
echo "$step: PYTHONPATH=${PYTHONPATH:-} in ${PWD##*/}: $*" | tee -a "$FOLDER/calls"
[[ " ${HANGING:-} " == *" $step "* ]] && sleep 60
[[ " ${FAILING:-} " == *" $step "* ]] && exit 3
seq "${CHATTY:-0}"
exit 0
"""
SANITIZER = r"""#!/usr/bin/env bash
[[ "$1 $3 $4" == "--tool --error-exitcode 9" ]] || exit 64
TOOL=$2 "${@:5}" || exit 9
echo "10 cases agree"
"""
NCU = '#!/usr/bin/env bash\nwhile [[ $1 != */python3 ]]; do shift; done\n"$@" && echo "Duration us 1"\n'
ECHO = "#!/usr/bin/env bash\necho 'NVIDIA H200'\n"


class Machine:
    """A folder with the script in it, and fake tools that come first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.output = folder, folder / "bin", folder / "output"
        for name in ("bin", "benchmarks", "python_tests"):
            (folder / name).mkdir()
        shutil.copy(SCRIPT, folder / "benchmarks")
        (folder / "build" / "gpu" / "bico_ext").mkdir(parents=True)
        tools = {"python3": PYTHON, "nvidia-smi": ECHO, "nvcc": ECHO, "compute-sanitizer": SANITIZER, "ncu": NCU}
        for name, text in tools.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        script = str(self.folder / "benchmarks" / "gpu.sh")
        command = ["bash", script, "--output", str(self.output), *arguments]
        variables = {"PATH": f"{self.bin}:/usr/bin:/bin", "FOLDER": str(self.folder), "CUDA_HOME": "/none"}
        variables |= {"PYTHON": str(self.bin / "python3"), **environment}
        return subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def results(self) -> dict[str, str]:
        steps = json.loads((self.output / "steps.json").read_text())["steps"]
        return {step["step"]: step["result"] for step in steps}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_every_step_runs_on_the_build_and_outside_the_sources(machine):
    done = machine.run(PYTHONPATH="/more")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.results() == dict.fromkeys(STEPS, "ok")
    build, *others = machine.calls()
    assert build.endswith(f"-C cmake.define.BICO_CUDA_ARCHITECTURES=native {machine.folder}")
    for call in others:
        assert f"PYTHONPATH={machine.folder}/build/gpu:/more:/fake/site-packages in python_tests: -S " in call
    ran = [call.split(":")[0] for call in others]
    assert sorted(ran) == sorted(
        ["info", "small", "speed", "memcheck", "racecheck", "tests", "tests", "tests", "table", "counters"]
    )


def test_what_comes_back_is_little_and_complete(machine):
    done = machine.run(CHATTY="5000")
    assert len(done.stdout) < 12_000
    assert done.stdout.split("== verdict")[1].count(" ok ") == len(STEPS)
    assert sorted(path.name for path in machine.output.iterdir()) == ["counters.txt", "logs.tar.gz", "steps.json"]
    with tarfile.open(machine.output / "logs.tar.gz") as archive:
        assert {f"./{step}.log" for step in (*STEPS, "memcheck", "racecheck")} <= set(archive.getnames())


@pytest.mark.parametrize(
    ("failing", "without", "status"),
    [
        ("build", STEPS[1:], 1),
        ("small", ["speed", "table", "counters"], 1),
        ("racecheck", [], 1),
        ("tests", [], 1),
        ("speed", [], 0),
        ("counters", [], 0),
    ],
)
def test_a_failure_stops_what_would_mean_nothing(machine, failing, without, status):
    assert machine.run(FAILING=failing).returncode == status
    failed = "sanitize" if failing == "racecheck" else failing
    results = machine.results()
    assert [step for step, result in results.items() if result.startswith("failed (")] == [failed]
    assert [step for step, result in results.items() if result == "not run"] == without


def test_each_file_of_tests_runs_though_one_before_has_failed(machine):
    machine.run("--only", "tests", FAILING="tests")
    assert [call.split()[-1] for call in machine.calls()] == [
        "csrc/test_cuda.py",
        "ops/test_attention_contract.py",
        "ops/test_attention.py",
    ]


def test_a_build_that_fails_leaves_no_older_one(machine):
    older = machine.folder / "build" / "gpu" / "older"
    older.touch()
    machine.run("--only", "build", FAILING="build")
    assert not older.exists()


def test_no_other_package_is_judged_in_place_of_a_build(machine):
    shutil.rmtree(machine.folder / "build")
    done = machine.run("--only", "small")
    assert (done.returncode, "run the step build first" in done.stderr) == (2, True)


def test_a_step_that_hangs_is_ended_at_its_limit(machine):
    script = machine.folder / "benchmarks" / "gpu.sh"
    script.write_text(script.read_text().replace("[small]=40", "[small]=1"))
    assert machine.run("--only", "small", "tests", HANGING="small").returncode == 1
    assert machine.results() == {"small": "timed out", "tests": "ok"}


def test_the_limits_stay_under_ten_minutes(machine):
    done = machine.run("--dry-run")
    limits = dict(re.findall(r"^(\w+): at most (\d+) s$", done.stdout, re.MULTILINE))
    assert list(limits) == STEPS
    assert sum(map(int, limits.values())) + 2 * len(STEPS) < 600
    assert not (machine.folder / "calls").exists()


@pytest.mark.parametrize("wrong", [["--only", "compile"], ["--only"], ["--output"], ["--fast"]], ids=str)
def test_wrong_usage_is_refused_before_anything_runs(machine, wrong):
    done = machine.run(*wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu.sh: ")
    assert not (machine.folder / "calls").exists()


def test_help_names_every_step(machine):
    assert all(step in machine.run("--help").stdout for step in STEPS)


def test_the_small_cases_agree_with_the_reference(capsys):
    assert gpu_small_cases.main(["--device", "cpu"]) == 0
    assert f"{len(gpu_small_cases.CASES)} cases agree" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["mirror", "nan", "lse", "deterministic"])
def test_the_small_cases_find_wrong_numbers(fault, monkeypatch, capsys):
    real = gpu_small_cases.split_triangle_attention

    def wrong(*operands, mirror, **options):
        out, lse = real(*operands, mirror=mirror != (fault == "mirror"), **options)
        if fault == "nan":
            out = out * torch.where(torch.arange(out.shape[2]) == 7, math.nan, 1.0)[:, None].to(out.dtype)
        if fault == "deterministic" and torch.are_deterministic_algorithms_enabled():
            out = out * 2
        return out, lse + 0.1 if fault == "lse" else lse

    monkeypatch.setattr(gpu_small_cases, "split_triangle_attention", wrong)
    assert gpu_small_cases.main(["--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "bf16-spans-gqa: " + ("lse" if fault == "lse" else "out") in said
    assert ("free: " in said) == (fault != "deterministic")
