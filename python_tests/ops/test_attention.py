"""The op's numbers: against the dense fp64 definition, by gradcheck, and under every feature of the contract."""

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from devices import EVERY, needs_compiled
from hypothesis import given, settings
from problems import CASES, FLOOR, Case, assert_as_good_as_torch, make_problem
from random_problems import SMALL, assert_right, emulations, random_problems

from bico_ext.ops import reference
from bico_ext.ops.attention import split_triangle_attention


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan():
    """torch fills what the op allocates with NaN, so an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", FLOOR, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_that_of_torch(attention, case, dtype):
    if attention is EVERY["emulated-cuda-random"]:
        attention = partial(attention, deterministic=False)  # the other schedule adds in order
    assert_as_good_as_torch(attention, make_problem(case, dtype), dtype)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problem=random_problems())
def test_random_problems(unemulated, problem):
    """The whole contract, in combinations that nobody would write down; `make fuzz` tries thousands."""
    assert_right(unemulated, problem)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=random_problems(**SMALL), how=emulations)
def test_random_problems_under_the_emulator(emulated, problem, how):
    assert_right(partial(emulated, **how), problem)


GRADCHECK = [
    Case("all-context", S=5, D=4),
    Case("gqa", S=5, Hq=4, Hkv=2, D=4),
    Case("causal", S=5, D=4, spans="causal"),
    Case("spans-partial", S=6, D=6, R=4, spans="infill"),
    Case("interleaved", S=5, D=4, interleaved=True),
    Case("no-mirror", S=5, D=4, mirror=False, spans="placeholders"),
    Case("packed", S=6, B=1, D=4, packed=(2, 0, 4)),
    Case("window", S=9, D=4, window=3, spans="infill"),
    Case("two-tiles", S=66, B=1, Hq=1, Hkv=1, D=2, spans="prefix"),
]


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(attention, case):
    problem = make_problem(case)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]

    def run(q, k, v):
        out, lse = attention(q, k, v, problem.cos, problem.sin, return_lse=True, **problem.options)
        return out, lse[lse.isfinite()]

    assert torch.autograd.gradcheck(run, inputs, fast_mode=case.S > 10)


@pytest.mark.parametrize("spans", ["none", "infill"])
@pytest.mark.parametrize(("dtype", "D"), [(torch.float64, 12), (torch.bfloat16, 16)])
def test_strided_inputs_are_taken_as_they_are(attention, spans, dtype, D):
    """Projections reach the op as transposed [B, S, H, D], slices of a wider tensor, or expanded over the batch."""
    case = Case("strided", S=67, Hq=4, Hkv=2, D=D, spans=spans)
    problem = make_problem(case)
    cos, sin = problem.cos, problem.sin
    plain_q, plain_k, plain_v = (x.to(dtype) for x in (problem.q, problem.k, problem.v))
    want = attention(plain_q, plain_k, plain_v, cos, sin, **problem.options)
    wide = torch.randn(2, 67, 4, 40).to(dtype)
    wide[..., 5 : 5 + D] = plain_q.transpose(1, 2)
    q = wide[..., 5 : 5 + D].transpose(1, 2)
    k = plain_k.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    assert not q.is_contiguous()
    assert not k.is_contiguous()
    got = attention(q, k, plain_v, cos.expand(2, -1, -1), sin.expand(2, -1, -1), **problem.options)
    assert torch.equal(got, want)
    assert got.transpose(1, 2).is_contiguous(), "the caller's transpose must be free"

    shared = plain_v[:1].expand(2, -1, -1, -1)
    got = attention(q, k, shared, cos, sin, **problem.options)
    assert torch.equal(got, attention(q, k, shared.contiguous(), cos, sin, **problem.options))


THREADS = [
    Case("many-heads", S=300, Hq=4, Hkv=2, D=32, spans="infill", B=3),
    Case("one-head", S=1100, Hq=1, Hkv=1, D=32, B=1),  # all threads on one unit: they add to grad_q in order
    Case("one-head-causal-gqa", S=700, Hq=3, Hkv=1, D=16, B=1, spans="causal"),
    Case("packed", S=900, B=1, packed=(1, 300, 0, 40, 559), Hq=2, Hkv=2, D=64),
    Case("one-head-window", S=1100, Hq=1, Hkv=1, D=32, B=1, window=200),
    Case("one-tile", S=60, Hq=4, Hkv=2, D=64, spans="infill", B=8),  # each thread takes whole units
    Case("one-tile-two-units", S=60, Hq=8, Hkv=2, D=64, spans="infill", B=1),  # so do two threads, but not more
    Case("one-tile-packed", S=128, B=1, packed=(20, 0, 60, 33, 15), Hq=4, Hkv=2, D=64, spans="infill"),
]


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", THREADS, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(case, dtype):
    problem = make_problem(case, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = problem.run(split_triangle_attention, dtype, table_dtype=torch.float32)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for _ in range(3):
                together = problem.run(split_triangle_attention, dtype, table_dtype=torch.float32)
                assert all(torch.equal(alone[name], together[name]) for name in alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("spans", "window"), [("none", None), ("causal", None), ("infill", None), ("placeholders", None), ("none", 30)]
)
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("length", "dtype"), [(40, torch.float64), (150, torch.float32), (150, torch.bfloat16)])
def test_nan_reaches_the_rows_that_see_it_and_no_others(attention, spans, window, where, bad, length, dtype):
    """A hidden key has weight 0, yet 0 * NaN is NaN: the product must leave it out, forward and backward."""
    case = Case("nan", S=length, Hq=2, Hkv=1, D=8, spans=spans, window=window)
    clean = make_problem(case, dtype)
    broken = make_problem(case, dtype)
    at = length // 3 + 2
    getattr(broken, where)[0, 0, at, :] = bad
    ids = clean.options["span_ids"]
    seen = reference.visible(torch.zeros(2, length, dtype=torch.int32) if ids is None else ids, window)  # [B, m, n]
    affected = torch.zeros(2, 2, length, dtype=torch.bool)
    if where == "q":
        affected[0, 0, at] = seen[0, at].any()
    else:
        affected[0, :] = seen[0, :, at]

    want, got = (problem.run(attention, dtype) for problem in (clean, broken))
    assert torch.equal(got["out"][~affected], want["out"][~affected])
    assert affected.any() or spans == "placeholders"
    assert not got["out"][affected].isfinite().all(-1).any(), "a row that sees it must show it"
    # A query's gradient is its own; a key's gradient gathers from the queries that see it.
    assert torch.equal(got["grad_q"][~affected], want["grad_q"][~affected])
    reached = (affected[:, :, :, None] & seen[:, None]).any(2).any(1)  # [B, n], over the 2 heads of the one kv head
    for name in ("grad_k", "grad_v"):
        assert torch.equal(got[name].transpose(1, 2)[~reached], want[name].transpose(1, 2)[~reached]), name


@pytest.mark.parametrize(("spans", "window"), [("none", None), ("causal", None), ("infill", None), ("infill", 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mirror", [True, False])
def test_nan_gradients_reach_the_keys_that_their_query_sees(attention, spans, window, dtype, mirror):
    """grad_out of one query is NaN: so are grad_q of that query and grad_k, grad_v of what it sees, and no others."""
    case = Case("nan-grad", S=150, Hq=1, Hkv=1, D=5, R=2, spans=spans, mirror=mirror, window=window)
    clean, broken = (make_problem(case, dtype) for _ in range(2))
    at = 71
    broken.grad_out[0, 0, at] = float("nan")
    ids = clean.options["span_ids"]
    seen = reference.visible(torch.zeros(2, 150, dtype=torch.int32) if ids is None else ids, window)
    want, got = (problem.run(attention, dtype) for problem in (clean, broken))
    reached = torch.zeros(2, 150, dtype=torch.bool)
    reached[0] = seen[0, at]
    for name in ("grad_k", "grad_v"):
        assert got[name][:, 0][reached].isnan().any(-1).all(), name
        assert torch.equal(got[name][:, 0][~reached], want[name][:, 0][~reached]), name
    others = torch.arange(150) != at
    assert got["grad_q"][0, 0, at].isnan().any()
    assert torch.equal(got["grad_q"][0, 0, others], want["grad_q"][0, 0, others])


@pytest.mark.parametrize("where", ["q", "k", "v", "grad_out"])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_nan_in_a_long_row_stays_where_it_is_seen(attention, where, interleaved, dtype):
    """Long rows are converted by several vectors at once: a NaN must be found in each of them."""
    case = Case("one-nan", S=40, B=1, Hq=1, Hkv=1, D=128, R=64, spans="causal", interleaved=interleaved)
    want = make_problem(case, dtype).run(attention, dtype)
    for column in (3, 20, 40, 60, 70, 90, 100, 120):
        broken = make_problem(case, dtype)
        # The first query sees one key, and the last key is seen by one query.
        at, unaffected = (0, slice(1, 40)) if where in ("q", "grad_out") else (39, slice(0, 39))
        getattr(broken, where)[0, 0, at, column] = float("nan")
        got = broken.run(attention, dtype)
        for name in ("out", "grad_q") if where in ("k", "v") else ("grad_k", "grad_v"):
            assert torch.equal(got[name][:, :, unaffected], want[name][:, :, unaffected]), (name, column)
            assert got[name][0, 0, at].isnan().any(), (name, column)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_without_the_mirror(attention, where):
    """There is one frame only: the other has no memory that could be looked at."""
    case = Case("nan-no-mirror", S=150, Hq=1, Hkv=1, D=5, R=2, mirror=False, spans="causal")
    clean, broken = (make_problem(case, torch.bfloat16) for _ in range(2))
    getattr(broken, where)[0, 0, 71] = float("nan")
    want, got = (problem.run(attention, torch.bfloat16) for problem in (clean, broken))
    assert torch.equal(got["out"][:, :, :71], want["out"][:, :, :71])
    assert not got["out"][0, 0, 71].isfinite().any()


def test_a_frame_that_nobody_uses_may_overflow(attention):
    """k is finite in the plus frame, where its own query sees it, and infinite in the minus frame, which is unused."""
    angle = torch.tensor([0.2942, 0.0])  # atan(1 / 3.3)
    cos, sin = (f(angle)[None, :, None].expand(1, 2, 2) for f in (torch.cos, torch.sin))
    k = torch.tensor([[3.3e38, 1e38], [0.0, 0.0]]).view(1, 1, 2, 2)
    q, v = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    attention(q, k, v, cos, sin).sum().backward()
    assert not q.grad.any(), "all values are equal, so the weights do not matter"


def test_infinite_gradients_stay_in_their_columns(attention):
    """Beyond the rotated part, where 0 times the neighbour would be NaN."""
    q, k, v = (torch.zeros(1, 1, 64, 16, dtype=torch.float16) for _ in range(3))
    q[..., 8::2], q[..., 9::2], v[..., 0, :], v[..., 1, :] = 1, -1, 100, -100
    cos = torch.ones(1, 64, 8)
    k.requires_grad_()
    attention(q, k, v, cos, torch.zeros_like(cos)).backward(torch.full_like(q, 10000))
    assert k.grad[0, 0, 0].isinf().any()
    assert not k.grad[0, 0, 0, 8:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("R", [16, 10, 8])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations_may_scale(attention, interleaved, R, dtype):
    """Some models scale q and k through the table. A scale of 0 makes rotated keys 0, and their gradients."""
    case = Case("scaled", S=150, Hq=2, Hkv=1, R=R, spans="infill", interleaved=interleaved)
    problem = make_problem(case)
    scale = torch.tensor([1.3, 0.5, 0.0, 2.0]).repeat(38)[:150, None]
    problem.cos, problem.sin = problem.cos * scale, problem.sin * scale
    assert_as_good_as_torch(attention, problem, dtype)


@pytest.mark.parametrize(("dtype", "score"), [(torch.float64, 2000.0), (torch.float32, 200.0), (torch.bfloat16, 200.0)])
def test_nan_stays_where_later_keys_outweigh_it(attention, dtype, score):
    """The running softmax scales what it has by a factor that becomes 0, and 0 * NaN is NaN."""
    q, k, v = (torch.zeros(1, 1, 70, 8, dtype=dtype) for _ in range(3))
    q[..., 0] = 1
    k[0, 0, -1, 0] = score
    v[0, 0, 0] = float("nan")
    cos = torch.ones(1, 70, 0, dtype=torch.float64)
    assert attention(q, k, v, cos, cos, scale=1.0).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rise", [3, 10])
def test_scores_that_rise_and_fall_from_tile_to_tile(attention, rise, dtype):
    """An online softmax must change what its weights are relative to, for each row by itself, before they overflow."""
    ids = torch.zeros(2, 260, dtype=torch.int32)
    ids[1, :70] = -1  # the second sequence sees nothing in its first tile
    problem = make_problem(Case("rising", S=260, Hq=1, Hkv=1, D=16, R=0, scale=-math.log(2) / 4), dtype, ids=ids)
    # In exponents of 2, every 32 keys raise the scores of a third of the rows by `rise` and lower those of another.
    problem.k[..., 0] = torch.arange(260) // 32 * rise
    problem.q[..., 0] = torch.tensor([-4, 4, 0]).repeat(87)[:260]
    assert_as_good_as_torch(attention, problem, dtype)


@pytest.mark.parametrize(
    ("dtype", "score", "size"),
    [(torch.bfloat16, -200.0, 1), (torch.float16, -14.0, 1), (torch.float16, -60.0, 1), (torch.float16, -12.0, 200)],
)
def test_placeholders_beside_scores_far_below_zero(attention, score, size, dtype):
    """A score of 0 would have a weight of exp(-score) there, and a gradient, that dtype may not hold."""
    case = Case("low", S=150, Hq=1, Hkv=1, D=16, R=0, scale=1.0, spans="placeholders")
    problem = make_problem(case, dtype)
    problem.q[:] /= 4  # so that the other elements change a score by about 1
    problem.q[..., 0], problem.k[..., 0] = 4, score / 4
    problem.grad_out[:] *= size
    assert_as_good_as_torch(attention, problem, dtype)


@pytest.mark.parametrize("bad", ["key", "neighbour", "table"])
def test_what_is_hidden_does_no_harm(attention, bad):
    """A placeholder that overflows in the rotation, a NaN in the next packed sequence, a NaN in a hidden rotation."""
    case = Case("hidden", S=90, B=1, D=8, packed=(40, 50))
    ids = torch.zeros(1, 90, dtype=torch.int32)
    ids[0, 7] = -1
    clean = make_problem(case, torch.float32, ids=ids)
    broken = make_problem(case, torch.float32, ids=ids)
    others = torch.arange(90) != 7
    if bad == "key":
        broken.k[0, :, 7] = 3e38
    elif bad == "neighbour":
        for x in (broken.q, broken.k, broken.v):
            x[0, :, 40:] = float("nan")
        others = torch.arange(90) < 40
    else:
        broken.cos[0, 7] = float("nan")
    want, got = (problem.run(attention, torch.float32) for problem in (clean, broken))
    for name in ("out", "grad_q", "grad_k", "grad_v"):
        if bad == "table" and name in ("grad_k", "grad_v"):
            continue  # the query at the broken position sees the others, so their gradients are NaN
        assert torch.equal(got[name][:, :, others], want[name][:, :, others]), name


MEMORY = """
import sys, pathlib, torch
from bico_ext import split_triangle_attention

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def run(length):
    q, k, v, grad = (torch.randn(1, length, 1, 64).bfloat16().transpose(1, 2) for _ in range(4))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    angle = torch.rand(1, length, 64)
    cos, sin = angle.cos(), angle.sin()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    before = peak()
    out = split_triangle_attention(q, k, v, cos, sin)
    out.backward(grad)
    size = out.numel() * out.element_size()
    return peak() - before - 4 * size, 4 * size  # out and three gradients are outputs

run(64)
extra, inputs_and_output = run(int(sys.argv[1]))
print(extra, inputs_and_output)
"""


@needs_compiled
def test_memory_is_linear_in_the_length():
    """Beyond inputs and outputs under 3 times q, k, v and out at S = 32768, where a score matrix has 2 GiB.

    One head, where most of a problem is in progress at once. Instruction sets without products of bfloat16 keep their
    operands in float32, twice as large.
    """
    from bico_ext import _C

    kernels = _C.chosen_instruction_set()
    if kernels == "amx" and _C.emulates_amx:
        pytest.skip("tile registers in software would take minutes")

    def extra(length):
        command = [sys.executable, "-c", MEMORY, str(length)]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # each thread has a workspace of its own
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return [int(number) for number in shown.split()]

    half, _ = extra(16384)
    whole, inputs_and_output = extra(32768)
    assert whole < (3 if kernels in ("amx", "avx512_bf16") else 6) * inputs_and_output
    assert whole < 2.3 * half
