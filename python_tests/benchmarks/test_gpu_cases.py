"""The GPU benchmark's ways compute what they are said to compute; here on the CPU, or, as to shapes, on no device."""

import math
from dataclasses import replace

import gpu_cases
import gpu_measure
import pytest
import torch
from devices import needs_compiled
from gpu_cases import (
    EAGER,
    FLASH,
    FLEX,
    MASKED,
    OTHER_BACKENDS,
    OURS,
    SAME_FUNCTION,
    TWO_CALLS,
    UNMASKED,
    WAYS,
    GpuCase,
)
from peers import two_flash_calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bico_ext.ops import reference

FULL, CAUSAL, PLACEHOLDERS, GROUPED, HIDDEN_GROUPED = SMALL = [
    GpuCase("full", 2, 2, 64, 16),
    GpuCase("causal", 1, 2, 128, 16),
    GpuCase("placeholders", 2, 2, 64, 16),
    GpuCase("full", 2, 4, 64, 16, 2),
    GpuCase("placeholders", 2, 4, 64, 16, 2),
]


def results_of(case: GpuCase, way: str) -> list[Tensor]:
    work = gpu_measure.both_passes(gpu_cases.attention(case, way, "cpu"), *gpu_cases.inputs(case, "cpu"))
    return work(lambda: None)


def dense(case: GpuCase, seen: Tensor) -> Tensor:
    """Plain attention, not rotated, over the visible pairs [B, 1, m, n]."""
    q, k, v = (x.detach().double() for x in gpu_cases.inputs(case, "cpu")[0])
    k, v = (x.repeat_interleave(case.H // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / math.sqrt(case.D)).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


@needs_compiled
@pytest.mark.parametrize("way", [way for way in SAME_FUNCTION if way != "flex"])  # which needs a GPU
@pytest.mark.parametrize("length", [64, 128])
def test_a_peer_of_the_same_function_gives_the_results_of_ours(way, length):
    case = replace(FULL, S=length)
    assert gpu_measure.difference(results_of(case, way), results_of(case, OURS)) < 0.02  # bfloat16 against bfloat16


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_backends_of_ours_are_forced_and_given_the_same(case):
    """On the CPU the backend `flex` refuses, so its call is only looked at."""
    ways = (OURS, *OTHER_BACKENDS)
    assert WAYS[case.mask][: len(ways)] == ways, "the results of ours come first, to compare with"
    calls = {way: gpu_cases.attention(case, way, "cpu").keywords for way in ways}
    assert [call.pop("backend") for call in calls.values()] == ["compiled", *OTHER_BACKENDS]
    ours = calls.pop(OURS)
    for call in calls.values():
        assert ours.keys() == call.keys() == {"cos", "sin", "span_ids"}
        assert all(torch.equal(ours[name], call[name]) for name in ours if ours[name] is not None)
    with pytest.raises(RuntimeError, match="'flex' cannot run on cpu"):
        results_of(case, "flex")


@needs_compiled
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_ours_is_given_the_mask_of_the_case(case):
    q, k, v = (x.double() for x in gpu_cases.inputs(case, "cpu")[0])
    cos, sin = gpu_cases.rotary_tables(torch.arange(case.S), case.D)
    ids = gpu_cases.span_ids(case, "cpu")
    expected = reference.split_triangle_attention(q, k, v, cos, sin, span_ids=ids)
    assert gpu_measure.difference(results_of(case, OURS)[:1], [expected]) < 0.01
    assert case is not CAUSAL or ids.unique().tolist() == [1]
    if case.mask == "placeholders":
        assert ids.unique().tolist() == [-1, 0]
        assert 0.05 < (ids == -1).float().mean() < 0.25


@pytest.mark.parametrize(
    ("case", "way", "seen"),
    [
        (FULL, FLASH, torch.ones(64, 64, dtype=torch.bool)),
        (CAUSAL, FLASH, torch.ones(128, 128, dtype=torch.bool).tril()),
        (PLACEHOLDERS, UNMASKED, torch.ones(64, 64, dtype=torch.bool)),
        (PLACEHOLDERS, MASKED, (gpu_cases.span_ids(PLACEHOLDERS, "cpu") != -1)[:, None, None]),
        (GROUPED, FLASH, torch.ones(64, 64, dtype=torch.bool)),
        (HIDDEN_GROUPED, MASKED, (gpu_cases.span_ids(HIDDEN_GROUPED, "cpu") != -1)[:, None, None]),
    ],
    ids=["full", "causal", "no mask", "with mask", "groups", "groups with mask"],
)
def test_sdpa_computes_the_pairs_of_the_case(case, way, seen):
    assert gpu_measure.difference(results_of(case, way)[:1], [dense(case, seen)]) < 0.01


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_plain_full_attention(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which takes long, and a GPU
    operands = [x.detach() for x in gpu_cases.inputs(FULL, "cpu")[0]]
    out = gpu_cases.attention(FULL, FLEX, "cpu")(*operands)
    everything = torch.ones(64, 64, dtype=torch.bool)
    assert gpu_measure.difference([out], [dense(FULL, everything)]) < 0.01


def test_two_flash_calls_call_the_cuda_ops_but_on_the_cpu():
    """torch knows the shapes that they take and give, also without a GPU: on the meta device."""
    q, k, v, grad_out = (
        torch.empty(2, 67, 3, 64, dtype=torch.bfloat16, device="meta").transpose(1, 2).requires_grad_()
        for _ in range(4)
    )
    cos, sin = torch.empty(2, 1, 67, 64, device="meta").unbind()
    called = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function)
            return function(*args, **(kwargs or {}))

    with Listening():
        out = two_flash_calls(q, k, v, cos, sin)
        grads = torch.autograd.grad(out, (q, k, v), grad_out)
    assert (out.shape, out.stride()) == (q.shape, q.stride())
    assert [x.shape for x in grads] == [q.shape] * 3
    assert called.count(torch.ops.aten._scaled_dot_product_flash_attention.default) == 2
    assert called.count(torch.ops.aten._scaled_dot_product_flash_attention_backward.default) == 2


def test_flops_count_causal_attention_by_half():
    assert gpu_cases.forward_flops(FULL) == gpu_cases.forward_flops(PLACEHOLDERS) == 4 * 2 * 2 * 64**2 * 16
    assert gpu_cases.forward_flops(CAUSAL) == 2 * 2 * 128**2 * 16


def test_the_cases_hold_the_tokens_and_every_target_speaks_of_some():
    grouped = [case for case in gpu_cases.CASES if case.kv_heads]
    assert {(case.mask, case.D) for case in grouped} == {(m, D) for m in ("full", "placeholders") for D in (64, 128)}
    full = {(case.S, case.D) for case in gpu_cases.CASES if case.mask == "full"}
    assert full == {(2**power, head_dim) for power in range(9, 16) for head_dim in (64, 128)}
    assert len({case.name for case in gpu_cases.CASES}) == len(gpu_cases.CASES)
    for case in gpu_cases.CASES:
        if case in grouped:
            continue
        assert case.H * case.D == 2048
        assert case.S > 16_384 or case.B * case.S == 16_384
    for target in gpu_cases.TARGETS:
        assert target.peer in gpu_cases.WAYS["full"]
        assert any(target.least <= length <= target.most for length, _ in full)


def test_what_needs_too_much_memory_or_compiling_is_left_out():
    case = gpu_cases.gpu_case("full", 4096, 64)  # 30 GiB of scores
    assert gpu_cases.left_out(case, EAGER, lambda: 80 * 2**30) is None
    assert "about 30 GiB, over 80% of the 37 GiB free" in gpu_cases.left_out(case, EAGER, lambda: 37 * 2**30)
    assert "only S = 2048" in gpu_cases.left_out(case, FLEX, lambda: 0)
    assert gpu_cases.left_out(replace(case, S=2048), FLEX, lambda: 0) is None
    assert gpu_cases.left_out(case, OURS, lambda: 0) is None
    assert [way for way in WAYS["full"] if gpu_cases.left_out(GROUPED, way, lambda: 2**40)] == [TWO_CALLS, FLEX, EAGER]
