"""The backend `flex`, as far as a CPU can tell: FlexAttention's dense fallback, its masks, and what it refuses.

The fallback has no backward on the CPU. So gradients are tested with dense attention in the place of its calls.
"""

import gc
import re
from types import SimpleNamespace

import pytest
import torch
from devices import by_flex
from hypothesis import given, settings
from problems import CASES, Case, assert_as_good_as_torch, make_problem
from random_problems import assert_right, random_problems
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as library

from bico_ext import split_triangle_attention
from bico_ext.ops import backends, flex, reference

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def _no_masks_of_other_tests():
    flex._MASKS.clear()
    yield
    flex._MASKS.clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_forward_is_as_good_as_torch(case, dtype):
    """In float64, too, which no kernel of Triton takes: the error of the formula itself."""
    assert_as_good_as_torch(by_flex, make_problem(case, dtype), dtype, gradients=False)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=random_problems(most_tokens=200))
def test_the_forward_of_random_problems(problem):
    assert_right(by_flex, problem, gradients=False)


def test_its_output_lies_as_the_model_wants_it():
    problem = make_problem(Case("layout", S=9, Hq=4, Hkv=2))
    out, _ = by_flex(problem.q, problem.k, problem.v, problem.cos, problem.sin)
    assert out.transpose(1, 2).is_contiguous()


def dense_half(q, k, v, mask):
    """What FlexAttention computes, differentiable on the CPU."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    seen = library.create_mask(mask.mask_mod, len(q), 1, q.shape[2], q.shape[2], "cpu")
    blind = ~seen.any(-1, keepdim=True)
    scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
    lse = scores.masked_fill(blind, 0).logsumexp(-1, keepdim=True)
    return (scores - lse).exp() @ v, lse.masked_fill(blind, -torch.inf)[..., 0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradients_are_those_of_the_definition(case, monkeypatch):
    monkeypatch.setattr(flex, "_flex", dense_half)
    problem = make_problem(case)

    def attention(q, k, v, cos, sin, *, span_ids, mirror, interleaved, scale, cu_seqlens=None, window=None, **_):
        masks = flex.block_masks(q, span_ids, cu_seqlens, window, mirror)
        return flex.attend(q, k, v, cos, sin, masks, q.shape[-1] ** -0.5 if scale is None else scale, interleaved)

    got = problem.run(attention, torch.float64)
    want = problem.run(reference.split_triangle_attention, torch.float64)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


def test_a_merge_with_a_blind_part_has_finite_gradients():
    lse = torch.tensor([[[1.0, -torch.inf, 2.0, -torch.inf]]], requires_grad=True)
    other_lse = torch.tensor([[[-torch.inf, 3.0, 2.0, -torch.inf]]], requires_grad=True)
    out, other_out = (torch.full((1, 1, 4, 2), x, requires_grad=True) for x in (1.0, 5.0))
    merged, merged_lse = flex.merge(out * (lse != -torch.inf)[..., None], lse, other_out, other_lse)
    assert merged[0, 0, :3, 0].tolist() == [1.0, 5.0, 3.0]
    torch.testing.assert_close(merged_lse[0, 0], torch.tensor([1.0, 3.0, 2 + torch.tensor(2.0).log(), -torch.inf]))
    seen = merged_lse[merged_lse.isfinite()]
    grads = torch.autograd.grad(merged.sum() + seen.sum(), (lse, other_lse, out, other_out))
    torch.testing.assert_close(grads[0][0, 0], torch.tensor([1.0, 0, 0.5 - 2, 0]))  # share (1 - share) (1 - 5) 2 = -2
    torch.testing.assert_close(grads[1][0, 0], torch.tensor([0, 1.0, 0.5 + 2, 0]))
    assert all(grad.isfinite().all() for grad in grads)


def test_the_library_differentiates_the_whole(monkeypatch):
    """FlexAttention's own backward, in the dense form that torch refuses to run on the CPU but has."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    problem = make_problem(Case("library", S=140, Hq=4, Hkv=2, spans="random", B=1))
    compiled = torch.compile(flex.attend, fullgraph=True, dynamic=True, backend="aot_eager")

    def attention(q, k, v, cos, sin, *, span_ids, interleaved, mirror, **_):
        return compiled(q, k, v, cos, sin, flex.block_masks(q, span_ids, None, None, mirror), 0.25, interleaved)

    got = problem.run(attention, torch.float64)
    want = problem.run(reference.split_triangle_attention, torch.float64)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-6)  # the library sums lse in float32


def test_other_lengths_and_masks_compile_nothing(monkeypatch):
    graphs = CompileCounterWithBackend("eager")
    compiled = {
        function: torch.compile(function, fullgraph=True, dynamic=True, backend=graphs)
        for function in (flex.attend, library.create_block_mask)
    }
    monkeypatch.setattr(flex, "_on", lambda device, function: compiled[function])
    counts = []
    for S, batch, spans, window in [
        (256, 4, "random", None),
        (300, 5, "causal", 70),
        (400, 3, "placeholders", 200),
        (260, 4, "infill", None),
    ]:
        case = Case("many", S=S, B=batch, Hq=4, Hkv=4, D=256, spans=spans, window=window)
        problem = make_problem(case, torch.float32)
        inputs = [x.float() for x in (problem.q, problem.k, problem.v, problem.cos, problem.sin)]
        with torch.no_grad():
            got = by_flex(*inputs, **problem.options)[0]
            want = reference.split_triangle_attention(*inputs, **problem.options)
        torch.testing.assert_close(got, want)
        counts.append(graphs.frame_count)
    assert counts == [3] * 4, "the keys up to the query, the later keys, and the attention"


def test_it_becomes_part_of_the_graph_of_its_caller():
    problem = make_problem(Case("caller", S=70, spans="infill"), torch.float32)
    inputs = [x.float() for x in (problem.q, problem.k, problem.v, problem.cos, problem.sin)]
    ids = problem.options["span_ids"]
    with torch.no_grad():
        want = by_flex(*inputs, span_ids=ids)
        flex._MASKS.clear()
        got = torch.compile(by_flex, fullgraph=True, backend="eager")(*inputs, span_ids=ids)
    torch.testing.assert_close(got, want)
    assert not flex._MASKS


# The cache of block masks


def ids_of(length, fill=0):
    return torch.full((2, length), fill, dtype=torch.int32)


def test_the_layers_of_a_model_share_masks():
    q, ids = torch.zeros(2, 1, 150, 16), ids_of(150)
    offsets = torch.tensor([0, 100, 150], dtype=torch.int32)
    first = flex.block_masks(q, ids, None, None, True)
    assert len(first) == 2
    assert flex.block_masks(q.clone(), ids, None, None, True) is first
    assert flex.block_masks(q, ids.clone(), None, None, True) is not first
    assert len(flex.block_masks(q, ids, None, None, False)) == 1
    assert flex.block_masks(q, ids, None, 20, True) is not first
    packed = flex.block_masks(q[:1], None, offsets, None, True)
    assert flex.block_masks(q[:1], None, offsets, None, True) is packed
    whole = flex.block_masks(q, None, None, None, True)
    assert whole is not packed
    assert flex.block_masks(q[:1], None, None, None, True) is whole
    assert len(whole[0].kv_num_blocks) == 1, "one mask for every batch entry"
    assert flex.block_masks(q[:, :, 1:], None, None, None, True) is not whole


def test_masks_follow_changes_in_place_of_what_they_come_from():
    q, ids = torch.zeros(2, 1, 150, 16), ids_of(150)
    first = flex.block_masks(q, ids, None, None, True)
    ids.fill_(1)
    second = flex.block_masks(q, ids, None, None, True)
    assert second is not first
    assert not second[1].kv_num_blocks.any(), "causal attention sees no later key"
    assert first[1].mask_mod(*(torch.tensor(x) for x in (0, 0, 0, 1))), "masks in use stay what they are"
    assert len(flex._MASKS) == 1


def test_masks_keep_nothing_alive_and_do_not_outlive_their_ids():
    q, ids = torch.zeros(2, 1, 150, 16), ids_of(150)
    offsets = torch.tensor([0, 150], dtype=torch.int32)
    flex.block_masks(q, ids, None, None, True)
    flex.block_masks(q[:1], ids[:1], offsets, None, True)  # ids of a view that is gone at once
    assert len(flex._MASKS) == 1
    del ids
    gc.collect()
    assert not flex._MASKS


def test_the_cache_is_bounded():
    for length in range(1, flex.MOST_MASKS + 5):
        flex.block_masks(torch.zeros(1, 1, length, 16), None, None, None, False)
    assert len(flex._MASKS) == flex.MOST_MASKS
    assert {key[2] for key in flex._MASKS} == set(range(5, flex.MOST_MASKS + 5))


def test_masks_made_in_inference_mode_serve_training():
    q = torch.zeros(2, 1, 20, 16)
    with torch.inference_mode():
        flex.block_masks(q, None, None, None, True)
        flex.block_masks(q, ids_of(20), None, None, True)  # which has no version, so it is not kept
    assert len(flex._MASKS) == 1
    assert not flex.block_masks(q, None, None, None, True)[0].kv_indices.is_inference()


def test_fake_tensors_leave_no_masks():
    with FakeTensorMode():
        flex.block_masks(torch.zeros(1, 1, 20, 16), None, None, None, True)
    assert not flex._MASKS


# Refusals, and the choice by "auto"


def test_a_backward_on_the_cpu_is_refused():
    q = torch.zeros(1, 1, 3, 16, requires_grad=True)
    table = torch.ones(1, 3, 4)
    with pytest.raises(
        RuntimeError, match=re.escape("'flex' has no backward on the CPU; call it under torch.no_grad()")
    ):
        by_flex(q, q, q, table, table)


def test_the_public_op_needs_a_gpu_for_it():
    q, table = torch.zeros(1, 1, 3, 16, dtype=torch.bfloat16), torch.ones(1, 3, 4)
    message = "backend 'flex' cannot run on cpu: the kernels of FlexAttention need an NVIDIA GPU; use 'auto'"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        split_triangle_attention(q, q, q, table, table, backend="flex")


def test_empty_problems():
    q = torch.zeros(2, 2, 0, 16)
    out, lse = by_flex(q, q, q, torch.ones(1, 0, 4), torch.ones(1, 0, 4))
    assert (out.shape, lse.shape) == (q.shape, q.shape[:3])


def on_gpu(dtype=torch.bfloat16, length=2048, head_dim=64, device="cuda"):
    """What the choice reads of q, on a device that is not here."""
    place = SimpleNamespace(type=device, index=0)
    return SimpleNamespace(device=place, dtype=dtype, shape=(1, 2, length, head_dim), dim=lambda: 4)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU for which Triton compiles, unless that is changed."""
    state = SimpleNamespace(triton=True)
    monkeypatch.delenv("BICO_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_LOGGED", set())
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: state.triton)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    return state


@pytest.mark.parametrize("triton", [True, False])
def test_auto_does_not_choose_it_but_says_that_it_is_there(gpu, monkeypatch, caplog, triton):
    gpu.triton = triton
    monkeypatch.setattr(backends, "compiled", None)
    monkeypatch.setattr(backends, "_WITHOUT", backends.NOT_COMPILED)
    assert backends.choose("auto", on_gpu()) == "portable"
    (record,) = caplog.records
    assert record.getMessage().endswith("; BICO_BACKEND=flex may be faster in bfloat16 and float16") == triton
    gpu.triton = True
    monkeypatch.setenv("BICO_BACKEND", "flex")
    assert backends.choose("auto", on_gpu()) == "flex"


@pytest.mark.parametrize(
    ("q", "reason"),
    [
        (on_gpu(torch.float32), "q must be bfloat16 or float16, got float32"),
        (on_gpu(torch.float64), "q must be bfloat16 or float16, got float64"),
        (on_gpu(head_dim=8), "q must have a head dim D of 16 to 256, got D = 8"),
    ],
    ids=["float32", "float64", "head-dim"],
)
@pytest.mark.usefixtures("gpu")
def test_arguments_that_it_does_not_take_are_named(q, reason):
    message = f"backend 'flex' cannot take these arguments: {reason}; use 'auto'"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        backends.choose("flex", q)
    assert backends.choose("flex", on_gpu()) == "flex"


def test_without_triton_it_says_so(gpu):
    gpu.triton = False
    with pytest.raises(RuntimeError, match="'flex' cannot run on cuda: the kernels of FlexAttention need Triton"):
        backends.choose("flex", on_gpu())


def test_autocast_decides_the_dtype_that_it_takes(gpu, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert backends.choose("flex", on_gpu(torch.float32)) == "flex"
    with pytest.raises(RuntimeError, match="got float64"):
        backends.choose("flex", on_gpu(torch.float64))
