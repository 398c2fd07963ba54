"""The benchmarks compare like with like: peers that compute the op, alternating calls, and a record of all of it."""

import json
import re
import time
from dataclasses import asdict, replace

import attention
import cases
import cpu_profile
import measure
import pytest
import torch
from cases import FULL, PADDED, Case, prepare
from peers import two_flash_calls, two_matrices
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bico_ext import environment
from bico_ext.ops import reference

CEILINGS = {"forward": 0.0, "forward + backward": 1e9}
SMALL = [
    Case("full", "bfloat16", 1, 2, 70, 16, FULL, CEILINGS),
    Case("causal", "float32", 1, 2, 70, 16, ("SDPA causal",), CEILINGS, causal=True),
    Case("packed", "bfloat16", 3, 2, 30, 16, PADDED, CEILINGS, packed=True),
]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def with_grads(call, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = call(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad_out)]


@pytest.mark.parametrize(
    ("peer", "dtype", "bound"),
    [
        (two_flash_calls, torch.float64, 1e-13),
        (two_flash_calls, torch.float32, 1e-6),
        (two_matrices, torch.float32, 1e-6),
    ],
)
@pytest.mark.parametrize("length", [2, 67, 600])
def test_a_peer_computes_split_triangle_attention(peer, dtype, bound, length):
    generator = torch.Generator().manual_seed(0)
    *inputs, grad_out = (torch.randn(2, length, 3, 16, generator=generator).transpose(1, 2) for _ in range(4))
    cos, sin = (table.double() for table in cases.rotary_tables(torch.arange(length), 16))
    expected = with_grads(
        lambda q, k, v: reference.split_triangle_attention(q, k, v, cos, sin),
        [x.double() for x in inputs],
        grad_out.double(),
    )
    actual = with_grads(
        lambda q, k, v: peer(q, k, v, cos.to(dtype), sin.to(dtype)), [x.to(dtype) for x in inputs], grad_out.to(dtype)
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative(ours, theirs) < bound


@pytest.mark.parametrize("way", PADDED)
def test_a_padded_peer_hides_the_padding(way):
    case = replace(SMALL[2], dtype="float32")
    call = prepare(case, way)
    real = torch.arange(case.S) < torch.tensor(case.lengths())[:, None]
    cos, sin = cases.rotary_tables(torch.arange(case.S), case.D)
    span_ids = real.int() - 1  # -1: never a key
    if way == "SDPA padded":
        expected = scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=real[:, None, None])
    else:
        expected = reference.split_triangle_attention(call.q, call.k, call.v, cos, sin, span_ids=span_ids)
    assert not real.all()
    assert relative(call.forward(), expected.double()) < 1e-6


def test_ours_computes_the_packed_and_the_causal_case():
    _, causal, packed = SMALL
    call = prepare(replace(packed, dtype="float32"), "ours")
    lengths = packed.lengths()
    assert len(lengths) == 3
    assert min(lengths) >= 10
    assert max(lengths) <= 30
    parts = [x.split(lengths, dim=2) for x in (call.q, call.k, call.v)]
    alone = [
        reference.split_triangle_attention(q, k, v, *cases.rotary_tables(torch.arange(q.shape[2]), packed.D))
        for q, k, v in zip(*parts, strict=True)
    ]
    assert relative(call.forward(), torch.cat(alone, dim=2).double()) < 1e-5

    call = prepare(causal, "ours")
    cos, sin = cases.rotary_tables(torch.arange(causal.S), causal.D)
    span_ids = torch.ones(1, causal.S, dtype=torch.int32)
    expected = reference.split_triangle_attention(call.q, call.k, call.v, cos, sin, span_ids=span_ids)
    assert relative(call.forward(), expected.double()) < 1e-5


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_way_gets_a_gradient_in_the_layout_of_its_output(case):
    for way in ("ours", *case.peers):
        call = prepare(case, way)
        out = call.forward_backward()
        assert (out.shape, out.stride()) == (call.grad_out.shape, call.grad_out.stride()), way
        assert all(x.grad is not None and x.grad.isfinite().all() for x in (call.q, call.k, call.v)), way
        call.clear()
        assert call.q.grad is call.k.grad is call.v.grad is None


def test_flops_count_causal_attention_by_half_and_padding_not_at_all():
    full, causal, packed = SMALL
    assert cases.forward_flops(full, "two flash calls") == 4 * 2 * 70**2 * 16
    assert cases.forward_flops(full, "SDPA causal") == cases.forward_flops(causal, "ours") == 2 * 2 * 70**2 * 16
    assert cases.forward_flops(packed, "SDPA padded") == 4 * 2 * 16 * sum(n**2 for n in packed.lengths())


def test_the_named_cases_can_be_told_apart_and_are_measured_against_their_peer():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    for case in cases.CASES:
        assert case.ceilings.keys() <= cases.PASSES.keys()
        assert cases.left_out(case, case.peers[0]) is None
    assert "GiB" in cases.left_out(cases.sweep_case(32768), "two matrices")


def test_calls_alternate_and_the_first_round_warms_up():
    said = []
    samples = measure.interleaved(
        {"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 2, lambda: said.append("-")
    )
    assert "".join(said) == "a-b-" * 3
    assert {key: len(ms) for key, ms in samples.items()} == {"a": 2, "b": 2}


def test_seconds_can_add_rounds_or_leave_only_one():
    assert len(measure.interleaved({"a": lambda: time.sleep(0.01)}, 1, least=0.1)["a"]) > 1
    assert len(measure.interleaved({"a": lambda: None}, 5, most=0.0)["a"]) == 1


@pytest.mark.parametrize(
    ("commit", "shown"),
    [("0123456789abcdef", "0123456"), ("0123456789abcdef-dirty", "0123456-dirty"), (None, "unknown")],
)
def test_a_table_says_whether_files_were_changed(commit, shown):
    machine = {"cpu": "Z80", "threads": 1, "kernels": "avx2", "torch": "2.13.0", "commit": commit}
    assert f"Z80, 1 thread, avx2 kernels, torch 2.13.0, commit {shown}, 20" in measure.origin(machine)


def test_quartiles_and_ratios():
    assert measure.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert measure.quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert measure.ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    assert measure.spread([1.0, 2.0, 3.0], 1) == "2.0 [1.5, 2.5]"


def grown_by_a_passing_tensor(mebibytes: int) -> int:
    torch.ones(200, 2**18)  # an earlier and higher peak
    return measure.peak_memory(lambda: torch.ones(mebibytes, 2**18).sum())[0]


def test_peak_memory_is_that_of_the_call():
    for mebibytes in (0, 100):
        grown = measure.in_fresh_process(grown_by_a_passing_tensor, mebibytes)
        assert grown / 2**20 == pytest.approx(mebibytes, abs=5)


def test_a_run_prints_and_writes_every_case_and_never_judges_by_its_exit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attention, "CASES", SMALL)
    monkeypatch.setattr(attention, "SWEEP_LENGTHS", [16, 32])
    monkeypatch.setattr(attention, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(measure, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(attention, "LEAST_SECONDS", 0.0)
    attention.main(["--repetitions", "2", "--sweep", "--output-dir", str(tmp_path)])
    record = json.loads((tmp_path / "attention.json").read_text())
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert re.search(rf", torch {re.escape(torch.__version__)}, commit [\w-]+, 20\d\d-\d\d-\d\d\n\n\| case", table)
    assert record["seed"] == cases.SEED
    assert record["environment"]["threads"] == torch.get_num_threads()
    assert [result["case"]["name"] for result in record["cases"]] == ["full", "causal", "packed"]
    assert [result["case"]["S"] for result in record["sweep"]] == [16, 32]
    for result in record["cases"]:
        name = result["case"]["name"]
        assert f"| {name} | forward | {result['case']['peers'][0]} | " in table
        for samples in result["milliseconds"].values():
            assert samples.keys() == {"ours", *result["case"]["peers"]} == result["extra_bytes"].keys()
            assert all(len(ms) == 2 and min(ms) > 0 for ms in samples.values())
        assert any(line.startswith(f"| {name} | forward | ") and "missed" in line for line in table.splitlines())
        assert any(line.startswith(f"| {name} | forward + b") and "| met" in line for line in table.splitlines())
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_instruction_sets_are_compared_with_the_one_that_runs():
    ms = {"avx2": [4.0, 6.0], "avx512": [2.0, 2.0]}
    table = attention.instruction_set_report([{"case": {"name": "a"}, "milliseconds": {"forward": ms}}], "avx512")
    assert "| a | forward | avx2 | 5.00 [4.50, 5.50] | 2.50 [2.25, 2.75] |" in table
    assert "| a | forward | avx512 | 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |" in table


@pytest.mark.skipif(environment.describe()["kernels"].startswith("none"), reason="needs the compiled part")
def test_each_instruction_set_has_a_process_whose_kernels_it_is():
    (packed,) = (case for case in cases.CASES if case.name == "packed-bf16")
    (result,) = attention.time_instruction_sets([packed], ["avx2"], 2)
    assert result["milliseconds"].keys() == cases.PASSES.keys()
    assert all(len(ms["avx2"]) == 2 and min(ms["avx2"]) > 0 for ms in result["milliseconds"].values())
    with pytest.raises(RuntimeError, match=r"BICO_ISA must be one of .* got avx3"):
        next(attention.time_instruction_sets([packed], ["avx3"], 1))


def test_a_way_that_would_need_too_much_is_left_out_and_said_to_be(monkeypatch):
    monkeypatch.setattr(cases, "SCORE_LIMIT", 0)
    monkeypatch.setattr(measure, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(attention, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(attention, "in_fresh_process", lambda function, *arguments: function(*arguments))
    result = attention.measure_case(SMALL[0], 1, list(cases.PASSES))
    assert "two matrices" not in result["milliseconds"]["forward"]
    assert "Left out: two matrices at full" in attention.report([result])


def test_one_run_can_be_the_sweep_alone_and_a_wrong_case_is_refused(capsys):
    assert attention.parse(["--cases", "--sweep"]).cases == []
    assert attention.parse(["--cases", "causal-bf16"]).cases == ["causal-bf16"]
    with pytest.raises(SystemExit):
        attention.parse(["--cases", "nothing"])
    assert "causal-bf16" in capsys.readouterr().err


PERF_REPORT = """# Samples  Shared Object  Symbol
        60\t_ops.so\t[.] void bico::cpu::on_amx::tile_block<2, 2, true>(long, bico::BFloat16 const*)
        20\t_ops.so\t[.] bico::cpu::on_amx::attend<bico::cpu::on_amx::BFloat16Tiles>
        10\t_ops.so\t[.] bool bico::cpu::on_amx::pack_by_vectors<bico::cpu::on_amx::BFloat16Tiles>
         6\t_ops.so\t[.] void bico::cpu::on_amx::with_element<float, void store_row<float>(bico::Heads)>
         4\t_ops.so\t[.] bico::cpu::run_tasks
       900\tlibtorch_cpu.so\t[.] at::native::attend
"""


def test_a_profile_counts_the_samples_of_the_op_by_what_its_functions_do():
    assert cpu_profile.count(PERF_REPORT) == {
        "products": 60,
        "rotating back, storing": 6,
        "loading, rotating, packing": 10,
        "softmax, P and dS": 20,
        "rest": 4,
    }


def test_a_profile_relates_samples_to_calls(monkeypatch):
    printed = {"record": "50\n", "report": PERF_REPORT}
    monkeypatch.setattr(cpu_profile, "run_perf", lambda command, *_: printed[command])
    found = cpu_profile.profile(SMALL[0], "forward", 1.0)
    assert found["ms"] == pytest.approx(100 / 4999 / 50 * 1e3)
    assert found["shares"]["products"] == 0.6
    flops = 4 * 2 * 16 * 70**2  # 2 heads of 16, 70 tokens
    assert found["products_gflops"] == pytest.approx(flops / (60 / 4999 / 50) / 1e9)


@pytest.mark.parametrize(
    ("report", "remedy"),
    [("", "--seconds"), ("  70\t_ops.so\t[.] 0x0000000000051ecd\n  30\t_ops.so\t[.] bico::f\n", "install.strip=false")],
)
def test_a_profile_without_samples_or_names_tells_the_way_out(report, remedy):
    with pytest.raises(cpu_profile.ProfileError, match=re.escape(remedy)):
        cpu_profile.count(report)


@pytest.mark.parametrize(("perf", "remedy"), [(None, "linux-perf"), ("false", "perf_event_paranoid")])
def test_a_profile_without_a_working_perf_tells_the_way_out(monkeypatch, capsys, perf, remedy):
    monkeypatch.setattr(cpu_profile.shutil, "which", lambda name: perf)
    assert cpu_profile.main(["--lengths", "--seconds", "0.1"]) == 1
    assert remedy in capsys.readouterr().err


def test_a_profile_names_its_cases():
    names = [case.name for case in cpu_profile.profiled_cases((512,), (64, 128), "float32")]
    assert names == ["512x64", "512x128", "short"]


def test_a_profiled_process_prints_its_calls(capsys):
    before = torch.get_num_threads()
    try:
        cpu_profile.repeat(asdict(SMALL[2]), "forward + backward", 0.01)
    finally:
        torch.set_num_threads(before)
    assert int(capsys.readouterr().out) >= 1
