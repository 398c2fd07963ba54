"""The GPU benchmark, run on the CPU by another meter: what it records, how it judges, and that it outlives failures."""

import json
import math
import time
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import gpu
import gpu_cases
import gpu_measure
import pytest
import torch
from devices import needs_compiled
from gpu_cases import CUDNN, EAGER, FLASH, FLEX, MASKED, OURS, TWO_CALLS, UNMASKED, GpuCase
from gpu_measure import PRODUCT

FULL, CAUSAL, PLACEHOLDERS = SMALL = [
    GpuCase("full", 2, 2, 64, 16),
    GpuCase("causal", 1, 2, 128, 16),
    GpuCase("placeholders", 2, 2, 64, 16),
]


class CpuMeter:
    """A wall clock; memory is what the test says."""

    device = "cpu"
    extra, free = 3 * 2**20, 2**40

    def pause(self):
        pass

    def mark(self):
        return time.perf_counter()

    def milliseconds(self, marks):
        return [(end - start) * 1e3 for start, end in pairwise(marks)]

    def extra_bytes(self, call):
        return self.extra, call()

    def free_bytes(self):
        return self.free

    def release(self):
        pass


@pytest.fixture(autouse=True)
def _small_product(monkeypatch):
    monkeypatch.setattr(gpu_measure, "PRODUCT_SIZE", 64)


@needs_compiled
def test_a_case_records_every_way_that_runs_and_why_others_do_not():
    """On the CPU there is no cuDNN: a peer that truly fails."""
    result = gpu_measure.measure_case(FULL, CpuMeter(), 2, math.inf, ("flex", "portable"))
    assert result["case"] == {"name": "full-64x16", "mask": "full", "B": 2, "H": 2, "S": 64, "D": 16, "kv_heads": None}
    assert len(result["matrix_product_ms"]) == 2
    assert result["milliseconds"].keys() == {"forward", "backward"}
    for samples in result["milliseconds"].values():
        assert list(samples) == [OURS, "portable", FLASH, TWO_CALLS, EAGER]
        assert all(len(ms) == 2 and min(ms) > 0 for ms in samples.values())
    assert result["left_out"].keys() == {"flex", CUDNN, FLEX}
    assert result["left_out"][CUDNN].startswith("RuntimeError: ")
    assert result["extra_bytes"] == {way: CpuMeter.extra for way in (OURS, "portable", FLASH, TWO_CALLS, EAGER)}
    assert result["off_ours"].keys() == {"portable", TWO_CALLS, EAGER}
    assert all(0 < relative < 0.02 for relative in result["off_ours"].values())


def test_forward_and_backward_are_told_apart(monkeypatch):
    class Counting(CpuMeter):
        seconds = 0.0

        def mark(self):
            return self.seconds

    meter = Counting()

    def attention(q, k, v):
        out = q + k + v
        meter.seconds += 2
        out.register_hook(lambda grad: setattr(meter, "seconds", meter.seconds + 7))
        return out

    monkeypatch.setattr(gpu_cases, "attention", lambda *_: attention)
    milliseconds = gpu_measure.measure_case(CAUSAL, meter, 3, math.inf)["milliseconds"]
    for way in (OURS, FLASH):
        assert milliseconds["forward"][way] == [2000.0] * 3
        assert milliseconds["backward"][way] == [7000.0] * 3


def test_a_failing_peer_is_recorded_and_so_is_ours(monkeypatch):
    real = gpu_cases.attention

    def some_fail(case, way, device):
        if way in (OURS, EAGER):
            raise ValueError(f"{way}:\n   is  broken")
        return real(case, way, device)

    monkeypatch.setattr(gpu_cases, "attention", some_fail)
    result = gpu_measure.measure_case(FULL, CpuMeter(), 1, math.inf)
    assert result["left_out"][OURS] == "ValueError: ours: is broken"
    assert result["left_out"][EAGER] == "ValueError: two matrices: is broken"
    assert list(result["milliseconds"]["forward"]) == [FLASH, TWO_CALLS]
    assert gpu.measured_rows(result)
    assert len(gpu_measure.sentence(RuntimeError("x" * 1000))) == 400


def test_ways_alternate_and_one_that_fails_later_leaves_them():
    said = []

    class Saying(CpuMeter):
        def pause(self):
            said.append("-")

    def work(way, fails_at=None):
        def call(mark):
            mark()
            said.append(way)
            if said.count(way) == fails_at:
                raise RuntimeError(f"{way} is out of memory")
            mark()

        return call

    works = {"a": work("a"), "b": work("b", fails_at=3), "c": work("c")}
    samples, failures = gpu_measure.alternate(works, Saying(), 3, math.inf)
    assert "".join(said) == "-a-b-c" * 3 + "-a-c"
    assert {way: len(laps) for way, laps in samples.items()} == {"a": 3, "c": 3}  # the first round only warms up
    assert failures == {"b": "RuntimeError: b is out of memory"}
    samples, _ = gpu_measure.alternate({"a": work("a")}, CpuMeter(), 50, 0.0)
    assert len(samples["a"]) == gpu_measure.LEAST_ROUNDS


def test_a_fault_of_the_device_ends_the_case_but_not_the_run(tmp_path):
    class Faulty(CpuMeter):
        def milliseconds(self, marks):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record = gpu.run(SMALL[:2], Faulty(), {}, str(tmp_path / "base"), 1, 60)
    assert [result["case"]["mask"] for result in record["cases"]] == ["full", "causal"]
    for result in record["cases"]:
        assert "illegal memory access" in result["left_out"]["the whole case"]
    assert "- causal-128x16, the whole case: RuntimeError: CUDA error" in (tmp_path / "base.md").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.mask)
def test_the_cuda_meter_measures_a_case(case):
    result = gpu_measure.measure_case(case, gpu_measure.CudaMeter(), 2, math.inf)
    assert OURS in result["milliseconds"]["backward"], result["left_out"]
    assert all(relative < 0.02 for relative in result["off_ours"].values())
    assert all(extra > 0 for extra in result["extra_bytes"].values())


# Judging and reporting


def made_up(mask="full", length=2048, kv_heads=None, **milliseconds: list[float]) -> dict:
    case = GpuCase(mask, 8, 16, length, 128, kv_heads)
    names = {"ours": OURS, "flash": FLASH, "two": TWO_CALLS, "eager": EAGER}
    samples = {names[way]: ms for way, ms in milliseconds.items()}
    return {
        "case": {"name": case.name, **asdict(case)},
        "milliseconds": {"forward": samples, "backward": samples},
        "matrix_product_ms": [1.0, 1.0, 1.0],
        "forward_flops": 1e9,
        "extra_bytes": dict.fromkeys(samples.keys(), 2**20),
        "off_ours": {EAGER: None, TWO_CALLS: 0.004} if EAGER in samples else {},
        "left_out": {},
    }


def verdicts(result: dict) -> dict:
    judged = gpu.judge(result)
    forward = {verdict["peer"]: verdict["met"] for verdict in judged if verdict["pass"] == "forward"}
    assert forward == {verdict["peer"]: verdict["met"] for verdict in judged if verdict["pass"] == "backward"}
    return forward


def test_a_target_is_met_by_the_median_of_the_ratios():
    samples = {"ours": [1.0, 1.0, 9.0], "flash": [0.95, 0.5, 8.5], "two": [1.2, 2.0, 9.0]}
    assert verdicts(made_up(**samples)) == {FLASH: True, TWO_CALLS: False}  # medians 1.053, 0.833
    assert verdicts(made_up(ours=[1.0], flash=[1.0], two=[1.25])) == {FLASH: True, TWO_CALLS: True}  # 0.8: at most
    assert verdicts(made_up(length=4096, ours=[1.0], flash=[0.9], two=[1.3], eager=[10.1])) == {
        FLASH: False,
        TWO_CALLS: True,
        EAGER: True,
    }
    assert verdicts(made_up(length=4096, ours=[1.0], flash=[1.0], two=[2.0], eager=[9.9]))[EAGER] is False


def test_a_target_speaks_of_long_full_attention_and_of_what_was_timed():
    assert verdicts(made_up(length=1024, ours=[1.0], flash=[1.0])) == {}
    assert verdicts(made_up(mask="causal", ours=[1.0], flash=[1.0])) == {}
    assert verdicts(made_up(kv_heads=4, ours=[1.0], flash=[1.0])) == {}
    assert verdicts(made_up(ours=[1.0], flash=[1.0])) == {FLASH: True, TWO_CALLS: None}
    assert verdicts(made_up(flash=[1.0], two=[1.0])) == {FLASH: None, TWO_CALLS: None}


def test_the_page_shows_rates_ratios_verdicts_and_what_is_missing():
    assert gpu.measured_rows(made_up(kv_heads=4, ours=[1.0]))[1][:4] == ("full-2048x128-gqa", "8", "16 / 4", "forward")
    result = made_up(length=4096, ours=[2.0], flash=[1.0], two=[4.0], eager=[40.0])
    result["left_out"] = {FLEX: "InductorError: no compiler"}
    record = {"environment": {"gpu": "NVIDIA H200"}, "budget_seconds": 9.0, "cases": [result], "not_run": ["full-1x2"]}
    page = gpu.report({**record, "targets": gpu.judge(result)})
    product = 2 * 64**3 / 1e9
    assert f"| full-4096x128 | 8 | 16 |  | {PRODUCT} | 1.000 [1.000, 1.000] | {product:.1f} | 100% |  |  |  |" in page
    # 1e9 operations in 2 ms: 0.5 TFLOP/s; the backward counts 2.5 times as many.
    assert f"| forward | ours | 2.000 [2.000, 2.000] | 0.5 | {0.5 / product:.0%} |  |  |  |" in page
    assert f"| backward | ours | 2.000 [2.000, 2.000] | 1.2 | {1.25 / product:.0%} |  | 1.0 |  |" in page
    assert f"| backward | {TWO_CALLS} | 4.000 [4.000, 4.000] | 0.6 |" in page
    assert "| 0.50 [0.50, 0.50] | 1.0 | 0.40% |" in page
    assert "| 0.05 [0.05, 0.05] | 1.0 | not finite |" in page
    assert f"| full-4096x128 | forward | {FLASH} | 2.00 [2.00, 2.00] | 1.10 | missed |" in page
    assert f"| full-4096x128 | backward | {EAGER} | 0.05 [0.05, 0.05] | 0.10 | met |" in page
    assert "4 of 6 targets met." in page
    assert f"- full-4096x128, {FLEX}: InductorError: no compiler\n" in page
    assert "- not run within 9 s: full-1x2\n" in page
    assert "- gpu: NVIDIA H200\n" in page
    assert "TFLOP/s count 4 B H S^2 D" in page


def test_results_that_are_not_finite_are_recorded_as_null():
    ones, spoilt = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    assert gpu_measure.difference([ones, spoilt], [ones, ones]) is None
    assert gpu_measure.difference([ones, 1.5 * ones], [ones, ones]) == 0.5


# Running


@needs_compiled
def test_a_run_writes_every_case_as_it_comes_and_exits_with_0_whatever_the_targets(tmp_path, monkeypatch, capsys):
    """The whole of it, but for the device: main, parsing, environment, files."""
    long_enough = [replace(target, least=0, ceiling=0.0) for target in gpu_cases.TARGETS]
    monkeypatch.setattr(gpu, "TARGETS", long_enough)
    monkeypatch.setattr(gpu, "CASES", SMALL)
    monkeypatch.setattr(gpu, "CudaMeter", CpuMeter)
    monkeypatch.setattr(gpu, "lacks", lambda: None)
    monkeypatch.setattr(gpu, "gpu_facts", lambda: {"driver_version": "580.1"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3 (PCIe)")
    monkeypatch.setattr(gpu, "judge", spy := Spy(gpu.judge, lambda: record_in(tmp_path)["not_run"]))
    assert gpu.main(["--repetitions", "2"]) == 0
    assert spy.seen == [[case.name for case in SMALL[number:]] for number in range(3)]  # each case is written at once
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("nvidia-h100-80gb-hbm3-pcie-20")
    record = record_in(tmp_path)
    assert [result["case"]["mask"] for result in record["cases"]] == ["full", "causal", "placeholders"]
    assert list(record["cases"][1]["milliseconds"]["forward"]) == [OURS, FLASH]
    assert list(record["cases"][2]["milliseconds"]["backward"]) == [OURS, UNMASKED, MASKED]
    assert record["not_run"] == []
    assert record["environment"]["driver_version"] == "580.1"
    assert record["environment"]["torch"] == torch.__version__
    assert {verdict["met"] for verdict in record["targets"]} == {False}
    printed, page = capsys.readouterr().out, path.with_suffix(".md").read_text()
    for text in (f"| causal-128x16 | 1 | 2 | forward | {FLASH} |", "missed |", "targets met", f"full-64x16, {CUDNN}: "):
        assert text in printed
        assert text in page


class Spy:
    """Calls through, and notes what `look` sees at each call."""

    def __init__(self, function, look):
        self.function, self.look, self.seen = function, look, []

    def __call__(self, *arguments):
        self.seen.append(self.look())
        return self.function(*arguments)


def record_in(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_after_its_budget_a_run_lists_the_cases_that_it_did_not_run(tmp_path, monkeypatch):
    now = [0.0]

    def slow(case, *_):
        now[0] += 50
        return made_up() | {"case": {"name": case.name, **asdict(case)}}

    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(gpu, "measure_case", slow)
    record = gpu.run(SMALL, CpuMeter(), {}, str(tmp_path / "new" / "base"), 1, 60)
    assert record == json.loads((tmp_path / "new" / "base.json").read_text())
    assert [result["case"]["name"] for result in record["cases"]] == ["full-64x16", "causal-128x16"]
    assert record["not_run"] == ["placeholders-64x16"]
    assert "not run within 60 s: placeholders-64x16" in (tmp_path / "new" / "base.md").read_text()
    assert gpu.run(SMALL, CpuMeter(), {}, str(tmp_path / "base"), 1, 0)["cases"] == []


@needs_compiled
@pytest.mark.parametrize("mode", [(), ("--deterministic",)], ids=["free", "deterministic"])
def test_the_deterministic_backward_is_timed_on_request(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(gpu, "CASES", SMALL[:1])
    monkeypatch.setattr(gpu, "CudaMeter", CpuMeter)
    monkeypatch.setattr(gpu, "lacks", lambda: None)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(gpu, "measure_case", spy := Spy(gpu.measure_case, torch.are_deterministic_algorithms_enabled))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        assert gpu.main(["--repetitions", "1", *mode]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert spy.seen == [bool(mode)]
    record = record_in(tmp_path)
    assert OURS in record["cases"][0]["milliseconds"]["backward"]
    assert record["environment"]["deterministic"] is bool(mode)
    assert bool(list(tmp_path.glob("*-deterministic.json"))) is bool(mode)


@pytest.mark.parametrize(("cuda", "needed"), [(False, "an NVIDIA GPU"), (True, "BICO_CUDA=ON")])
def test_without_a_gpu_or_kernels_one_sentence_says_so(monkeypatch, capsys, cuda, needed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(gpu, "refusal", lambda backend, device: "no kernels")
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert needed in said
    assert said.count("\n") == 1


def test_wrong_options_are_refused(capsys):
    for wrong in (["--budget", "0"], ["--repetitions", "0"]):
        with pytest.raises(SystemExit):
            gpu.parse(wrong)
        assert "--budget more than 0" in capsys.readouterr().err


def test_nvidia_smi_is_asked_and_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.gpu_facts() == {}
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '580.1, 345 MHz, 1980 MHz, 3201 MHz, 700.00 W, 31'\necho 'another GPU'\n")
    fake.chmod(0o755)
    facts = gpu.gpu_facts()
    assert (facts["driver_version"], facts["clocks.max.sm"], facts["temperature.gpu"]) == ("580.1", "1980 MHz", "31")
