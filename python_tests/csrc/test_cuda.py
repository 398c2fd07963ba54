"""The op as a citizen of torch on a GPU: registrations, compile, autocast, graphs, streams, sizes, determinism."""

import re

import pytest
import torch
from problems import Case, make_problem

from bico_ext.ops.attention import split_triangle_attention
from bico_ext.ops.backends import refusal

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
if refusal("compiled", "cuda"):
    pytest.skip("needs a build with CUDA kernels", allow_module_level=True)

LOW = (torch.bfloat16, torch.float16)


def inputs(case, dtype, requires_grad=True):
    """q, k, v, cos, sin on the GPU, and the options."""
    problem = make_problem(case, dtype)
    q, k, v = (x.to("cuda", dtype).requires_grad_(requires_grad) for x in (problem.q, problem.k, problem.v))
    options = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in problem.options.items()}
    return (q, k, v, problem.cos.float().cuda(), problem.sin.float().cuda()), options


def gradients(arguments, options):
    out = split_triangle_attention(*arguments, **options)
    generator = torch.Generator("cuda").manual_seed(0)
    weights = torch.randn(out.shape, generator=generator, device="cuda", dtype=torch.float32)
    return out, *torch.autograd.grad((out.float() * weights).sum(), arguments[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW], ids=str)
@pytest.mark.parametrize(
    "case", [Case("spans", S=66, Hq=4, Hkv=2, D=8, spans="infill"), Case("packed", S=9, B=1, packed=(4, 5))]
)
def test_opcheck(case, dtype):
    arguments, options = inputs(case, dtype)
    rest = (options["span_ids"], options.get("cu_seqlens"), options["window"], 0.5, True, False)
    torch.library.opcheck(torch.ops.bico.attention_forward, (*arguments, *rest))
    out, lse = torch.ops.bico.attention_forward(*arguments, *rest)
    plain = [x.detach() for x in arguments]
    backward = (torch.randn_like(out), torch.randn_like(lse), *plain[:3], out.detach(), lse.detach(), *plain[3:], *rest)
    torch.library.opcheck(torch.ops.bico.attention_backward, backward, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_deterministic_on_request(dtype):
    arguments, options = inputs(Case("long", S=1500, Hq=4, Hkv=2, D=64, spans="infill"), dtype)
    torch.use_deterministic_algorithms(True)
    try:
        first = gradients(arguments, options)
        for _ in range(5):
            assert all(map(torch.equal, first, gradients(arguments, options)))
    finally:
        torch.use_deterministic_algorithms(False)
    for free, ordered in zip(gradients(arguments, options), first, strict=True):
        torch.testing.assert_close(free, ordered, rtol=2**-6, atol=1e-2)


def test_compiles_without_a_graph_break():
    arguments, options = inputs(Case("compile", S=70, Hq=4, Hkv=2, D=32, spans="infill"), torch.bfloat16)

    def step(q, k, v, cos, sin):
        return split_triangle_attention(q * 2, k, v, cos, sin, **options).transpose(1, 2).flatten(2).sin()

    got = torch.compile(step, fullgraph=True)(*arguments)
    torch.testing.assert_close(got, step(*arguments))
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), arguments[:3]), torch.autograd.grad(step(*arguments).sum(), arguments[:3])
    )


def test_autocast_casts_q_k_v_and_keeps_the_table():
    (q, k, v, cos, sin), _ = inputs(Case("autocast", S=300, D=32), torch.float32, requires_grad=False)
    with torch.autocast("cuda", dtype=torch.float16):
        got = split_triangle_attention(q, k.half(), v, cos, sin)
    assert got.dtype == torch.float16
    assert torch.equal(got, split_triangle_attention(q.half(), k.half(), v.half(), cos, sin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_replays_forward_and_backward(dtype):
    arguments, options = inputs(Case("graph", S=300, Hq=4, Hkv=2, D=64, spans="infill"), dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(arguments, options)
    torch.cuda.current_stream().wait_stream(side)
    weights = torch.randn_like(arguments[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = split_triangle_attention(*arguments, **options)
        grads = torch.autograd.grad((out * weights).sum(), arguments[:3])
    with torch.no_grad():
        for x in arguments[:3]:
            x.copy_(torch.randn_like(x))
    graph.replay()
    want = split_triangle_attention(*arguments, **options)
    assert torch.equal(out, want)
    want_grads = torch.autograd.grad((want * weights).sum(), arguments[:3])
    for got, expected in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=2**-6, atol=1e-2)


def test_runs_on_the_current_stream():
    arguments, options = inputs(Case("stream", S=2000, Hq=8, Hkv=8, D=64), torch.bfloat16, requires_grad=False)
    want = split_triangle_attention(*arguments, **options)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # what follows must wait for it
        late = [x * 1 for x in arguments]
        got = split_triangle_attention(*late, **options)
    side.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_strided_inputs_are_taken_as_they_are(dtype):
    """Slices at no multiple of 16 bytes, expanded heads and tables: made on the device, where they stay so."""
    (q, k, v, cos, sin), options = inputs(Case("strided", S=130, Hq=4, Hkv=2, D=64, spans="infill"), dtype, False)
    wide = torch.randn(2, 130, 4, 100, device="cuda").to(dtype)
    wide[..., 5:69] = q.transpose(1, 2)
    sliced = wide[..., 5:69].transpose(1, 2)
    assert sliced.data_ptr() % 16 != 0
    shared = v[:1].expand(2, -1, -1, -1)
    got = split_triangle_attention(sliced, k, shared, cos.expand(2, -1, -1), sin.expand(2, -1, -1), **options)
    assert torch.equal(got, split_triangle_attention(q, k, shared.contiguous(), cos, sin, **options))


def test_more_than_2_31_elements():
    """Offsets need 64 bits: the last batch entry of q lies beyond 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs a GPU of 60 GiB")
    q = torch.randn(33, 32, 16384, 128, device="cuda", dtype=torch.bfloat16)
    assert q.numel() > 2**31
    table = torch.ones(1, 16384, 128, device="cuda")
    got = split_triangle_attention(q, q[:, :1], q[:, :1], table, table * 0)
    want = split_triangle_attention(q[-1:], q[-1:, :1], q[-1:, :1], table, table * 0)
    assert torch.equal(got[-1:], want)


def test_memory_is_linear_in_the_length():
    def extra(length):
        q = torch.randn(1, 1, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        angle = torch.rand(1, length, 64, device="cuda")
        cos, sin = angle.cos(), angle.sin()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        split_triangle_attention(q, q, q, cos, sin).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert extra(65536) < 2.3 * extra(32768)


def test_tensors_on_two_devices_are_named():
    (q, k, v, cos, sin), _ = inputs(Case("devices", S=8), torch.bfloat16)
    with pytest.raises(
        RuntimeError, match=re.escape("k must be on the device of q (cuda:0), got cpu; use k.to(q.device)")
    ):
        split_triangle_attention(q, k.cpu(), v, cos, sin)
