"""The op as a citizen of torch: registrations, compile, autocast, and a clear error for each wrong argument."""

import re

import pytest
import torch
from devices import EVERY, needs_compiled
from problems import Case, make_problem
from torch.autograd import forward_ad

from bico_ext.ops import reference
from bico_ext.ops.attention import split_triangle_attention

OPCHECK = [
    Case("context", S=5, D=4),
    Case("gqa-spans", S=66, Hq=4, Hkv=2, D=4, spans="infill"),
    Case("packed", S=6, B=1, D=4, packed=(2, 4)),
    Case("window", S=9, D=4, window=3),
]


@needs_compiled
@pytest.mark.parametrize("case", OPCHECK, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(case, dtype):
    problem = make_problem(case)
    q, k, v = (x.to(dtype).requires_grad_() for x in (problem.q, problem.k, problem.v))
    options = problem.options
    arguments = (q, k, v, problem.cos.float(), problem.sin.float(), options["span_ids"], options.get("cu_seqlens"))
    settings = (options["window"], 0.5, True, False)
    torch.library.opcheck(torch.ops.bico.attention_forward, (*arguments, *settings))
    out, lse = torch.ops.bico.attention_forward(*arguments, *settings)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    torch.library.opcheck(
        torch.ops.bico.attention_backward,
        (torch.randn_like(out), torch.randn_like(lse), *plain[:3], out.detach(), lse.detach(), *plain[3:], *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_without_a_graph_break(op):
    problem = make_problem(Case("compile", S=70, Hq=4, Hkv=2, D=8, spans="infill"), torch.float32)

    def step(q, k, v, cos, sin, ids):
        out = op(q * 2, k, v, cos, sin, span_ids=ids)
        return out.transpose(1, 2).flatten(2).sin()

    inputs = [x.float().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    rest = (problem.cos.float(), problem.sin.float(), problem.options["span_ids"])
    want = step(*inputs, *rest)
    want_grads = torch.autograd.grad(want.sum(), inputs)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs, *rest)
    got_grads = torch.autograd.grad(got.sum(), inputs)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_grads, want_grads)


def test_one_tensor_may_be_several_arguments_of_a_compiled_call(op):
    q, table = torch.randn(1, 2, 5, 4, requires_grad=True), torch.ones(1, 5, 4)
    (want,) = torch.autograd.grad(op(q, q, q, table, table).sum(), q)
    out = torch.compile(op, fullgraph=True, backend="eager")(q, q, q, table, table)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), q)[0], want)


def test_autocast_casts_q_k_v_and_keeps_the_table(op):
    problem = make_problem(Case("autocast", S=300, D=8), torch.float32)
    q, k, v, cos, sin = (x.float() for x in (problem.q, problem.k, problem.v, problem.cos, problem.sin))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = op(q, k.bfloat16(), v, cos, sin)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, op(q.bfloat16(), k.bfloat16(), v.bfloat16(), cos, sin))
    rounded = op(q.bfloat16(), k.bfloat16(), v.bfloat16(), cos.bfloat16().float(), sin.bfloat16().float())
    assert not torch.equal(got, rounded), "a bf16 table would give other numbers"


def test_autocast_is_differentiable(op):
    problem = make_problem(Case("autocast", S=20, D=8), torch.float32)
    q, k, v = (x.float().requires_grad_() for x in (problem.q, problem.k, problem.v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        op(q, k, v, problem.cos.float(), problem.sin.float()).float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in (q, k, v))


def test_expanded_gradient_and_unused_outputs(op):
    problem = make_problem(Case("grads", S=9, D=4))
    q, k, v = (x.requires_grad_() for x in (problem.q, problem.k, problem.v))
    out, lse = op(q, k, v, problem.cos, problem.sin, return_lse=True)
    by_sum = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    by_ones = torch.autograd.grad((out * torch.ones_like(out)).sum(), (q, k, v), retain_graph=True)
    assert all(map(torch.equal, by_sum, by_ones))
    grad_v = torch.autograd.grad(lse.sum(), v)[0]
    assert not grad_v.any(), "lse does not depend on v"


@needs_compiled
def test_second_derivative_of_the_compiled_op_raises():
    problem = make_problem(Case("second", S=4, D=4))
    q = problem.q.requires_grad_()
    out = split_triangle_attention(q, problem.k, problem.v, problem.cos, problem.sin, backend="compiled")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; give it backend='portable'"):
        torch.autograd.grad(grad.sum(), q)


DERIVATIVES = {
    "torch.func.grad, vjp and jacrev": [
        lambda f, q: torch.func.grad(lambda x: f(x).sum())(q),
        lambda f, q: torch.func.vjp(f, q)[1](q),
        lambda f, q: torch.func.jacrev(f)(q),
        lambda f, q: torch.func.hessian(lambda x: f(x).sum())(q),
        lambda f, q: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(torch.stack([q, q])),
        lambda f, q: torch.func.grad(lambda x: torch.vmap(f)(x).sum())(torch.stack([q, q])),
        lambda f, q: torch.compile(torch.func.grad(lambda x: f(x).sum()), backend="eager")(q),
    ],
    "torch.func.jvp, jacfwd and hessian": [
        lambda f, q: torch.func.jvp(f, (q,), (q,)),
        lambda f, q: torch.func.jacfwd(f)(q),
        lambda f, q: torch.compile(lambda x: torch.func.jvp(f, (x,), (x,)), backend="eager")(q),
    ],
    "forward-mode AD": [
        lambda f, q: forward_mode(f, q),
        lambda f, q: torch.func.linearize(f, q),
        lambda f, q: torch.autograd.functional.jacobian(f, q, vectorize=True, strategy="forward-mode"),
    ],
}
BATCHED = {
    "torch.vmap and batched gradients": [
        lambda f, q: torch.vmap(f)(torch.stack([q, 2 * q])),
        lambda f, q: torch.autograd.functional.jacobian(f, q, vectorize=True),
    ],
    "torch.func.functionalize": [lambda f, q: torch.func.functionalize(f)(q)],
}


def forward_mode(f, q):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(q, q))).tangent


def attention_to(op):
    """The op as a function of q alone, and a q."""
    problem = make_problem(Case("transform", S=5, D=4, spans="infill"))
    rest = (problem.k, problem.v, problem.cos, problem.sin)
    return lambda q: op(q, *rest, **problem.options), problem.q


def each(transforms):
    pairs = [(name, one) for name, several in transforms.items() for one in several]
    return [pytest.param(*pair, id=f"{pair[0]}-{i}") for i, pair in enumerate(pairs)]


@pytest.mark.parametrize(("name", "transform"), each(DERIVATIVES))
def test_derivatives_that_torch_would_take_to_be_0_are_refused(op, name, transform):
    """Forward-mode derivatives of the compiled op were 0, and torch.func.grad asked for a "setup_context"."""
    f, q = attention_to(op)
    message = f"cannot go through {name}; use torch.autograd.grad or backward(), or call bico_ext.ops.reference.split"
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        transform(f, q)
    reference_f, _ = attention_to(reference.split_triangle_attention)
    transform(reference_f, q)


@pytest.mark.parametrize(("name", "transform"), each(BATCHED))
def test_batches_of_calls_are_right_or_refused(op, name, transform):
    f, q = attention_to(op)
    if op is EVERY["portable"]:
        with pytest.raises(NotImplementedError, match=f"cannot go through {name}; use "):
            transform(f, q)
    else:
        want = transform(attention_to(reference.split_triangle_attention)[0], q)
        torch.testing.assert_close(transform(f, q), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 2, 0, 4)], ids=["no-batch", "no-tokens"])
def test_empty_problems(op, shape):
    q, k, v = (torch.zeros(shape, requires_grad=True) for _ in range(3))
    table = torch.ones(1, shape[2], 4)
    out, lse = op(q, k, v, table, table, return_lse=True)
    assert out.shape == shape
    assert lse.shape == shape[:3]
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.shape == shape


@needs_compiled
def test_one_long_stride():
    """An index that needs 64 bits: rows 2^28 elements apart would overflow a 32-bit offset in bytes."""
    stride = 2**28
    storage = torch.empty(stride * 9 + 4, dtype=torch.bfloat16)  # 4.8 GB of address space, few pages touched
    q = storage.as_strided((1, 1, 10, 4), (stride, stride, stride, 1))
    q.copy_(torch.randn(1, 1, 10, 4))
    table = torch.ones(1, 10, 4)
    got = split_triangle_attention(q, q, q, table, table * 0)
    assert torch.equal(got, split_triangle_attention(*[q.contiguous()] * 3, table, table * 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pointers_at_no_vector_boundary(op, dtype):
    """Tensors that begin anywhere: slices of a larger storage, one element into it."""
    problem = make_problem(Case("offset", S=70, D=20), dtype)
    inputs = [x.to(dtype) for x in (problem.q, problem.k, problem.v)]
    rest = (problem.cos.float(), problem.sin.float())
    want = op(*inputs, *rest)

    def shifted(x):
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)

    got = op(*map(shifted, inputs), *map(shifted, rest))
    assert torch.equal(got, want)


@needs_compiled
def test_elements_across_element_boundaries_are_refused():
    memory = bytearray(1 + 4 * 2 * 4 * 8 * 16)
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(2, 4, 8, 16)
    with pytest.raises(RuntimeError, match=r"q must lie in memory at a multiple of its element size"):
        split_triangle_attention(odd, *list(GOOD.values())[1:])
    assert split_triangle_attention(odd.clone(), *list(GOOD.values())[1:]).shape == odd.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_token(op, dtype):
    """S = 1: the query sees itself, so out is v, whatever q and k are."""
    q, k, v = torch.randn(3, 2, 2, 1, 5, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    table = torch.ones(1, 1, 4)
    out = op(q, k, v, table, table * 0)
    torch.testing.assert_close(out, v)


def test_only_empty_sequences(op):
    q = torch.zeros(1, 2, 0, 4)
    table = torch.ones(1, 0, 4)
    offsets = torch.zeros(4, dtype=torch.int32)
    assert op(q, q, q, table, table, cu_seqlens=offsets).shape == q.shape


GOOD = {
    "q": torch.zeros(2, 4, 8, 16),
    "k": torch.zeros(2, 2, 8, 16),
    "v": torch.zeros(2, 2, 8, 16),
    "cos": torch.zeros(1, 8, 16),
    "sin": torch.zeros(1, 8, 16),
}
PACKED = {name: x[:1] for name, x in GOOD.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4, 8, 16).long()}, "q must be float64, float32, bfloat16 or float16, got int64"),
        ({"q": torch.zeros(4, 8, 16)}, "q must be [B, Hq, S, D], got float32 [4, 8, 16]"),
        ({"q": torch.tensor(1.0)}, "q must be [B, Hq, S, D], got float32 []"),
        ({"q": torch.zeros(2, 4, 8, 300)}, "q must have a head dim D of 1 to 256, got D = 300"),
        ({"q": torch.zeros(2, 0, 8, 16)}, "q must have at least one head"),
        ({"q": torch.zeros(2, 4, 8, 32)[..., ::2]}, "q must have a contiguous last dimension, got strides [1024, 256"),
        ({"k": torch.zeros(2, 2, 16, 8).mT}, "use k.contiguous()"),
        ({"k": torch.zeros(2, 2, 8, 16).double()}, "k must have the dtype of q (float32), got float64"),
        ({"k": torch.zeros(2, 3, 8, 16), "v": torch.zeros(2, 3, 8, 16)}, "divides the 4 heads of q, got 3"),
        ({"v": torch.zeros(2, 4, 8, 16)}, "k and v must have the same number of heads, got 2 and 4"),
        ({"v": torch.zeros(2, 2, 9, 16)}, "v must be [B, Hkv, S, D] = [2, Hkv, 8, 16] to match q, got float32 [2"),
        ({"cos": torch.zeros(3, 8, 16)}, "cos must be [1 or B, S, R] = [1 or 2, 8, R], got float32 [3, 8, 16]"),
        ({"cos": torch.zeros(1, 8, 16).int()}, "cos must be floating point, got int32"),
        ({"cos": torch.zeros(1, 8, 15)}, "even rotary width R of at most D = 16, got R = 15"),
        ({"sin": torch.zeros(1, 8, 8)}, "cos and sin must have the same shape"),
        ({"sin": torch.zeros(1, 8, 16, requires_grad=True)}, "cos and sin must not require gradients"),
        ({"span_ids": torch.zeros(2, 8).long()}, "span_ids must be int32 [B, S] = [2, 8], got int64 [2, 8]; use span"),
        ({"span_ids": torch.zeros(2, 9).int()}, "span_ids must be int32 [B, S] = [2, 8], got int32 [2, 9]"),
        ({"span_ids": torch.zeros(2, 8).int().to("meta")}, "span_ids must be on the device of q (cpu)"),
        ({"window": 2.5}, "window must be an int or None, got 2.5"),
        ({"window": 0}, "window must be at least 1, got 0; None sets no limit"),
        ({"cu_seqlens": torch.tensor([0, 8]).int()}, "cu_seqlens needs one packed batch entry, B = 1, got B = 2"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 8])}, "cu_seqlens must be int32 [sequences + 1], got int64 [2]"),
        ({**PACKED, "cu_seqlens": torch.tensor([1, 8]).int()}, "cu_seqlens must begin with 0, got 1"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 7]).int()}, "cu_seqlens must end with S = 8, got 7"),
        ({**PACKED, "cu_seqlens": torch.tensor([0, 5, 3, 8]).int()}, "must not descend, got 5 before 3 at index 1"),
        ({**PACKED, "cu_seqlens": torch.zeros(1).int()}, "cu_seqlens must end with S = 8, got one offset alone"),
        ({**PACKED, "cu_seqlens": torch.zeros(0).int()}, "cu_seqlens must be int32 [sequences + 1], got int32 [0]"),
    ],
)
def test_errors_name_the_argument(op, change, message):
    arguments = {**GOOD, **change}
    positional = [arguments.pop(name) for name in ("q", "k", "v", "cos", "sin")]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op(*positional, **arguments)


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16", "int64", "int16", "bool"])
def test_errors_name_the_dtype(op, name):
    with pytest.raises(RuntimeError, match=rf"span_ids must be int32 \[B, S\] = \[2, 8\], got {name} \[2, 8\]"):
        op(*GOOD.values(), span_ids=torch.zeros(2, 8, dtype=getattr(torch, name)))


def test_meta_tensors_give_meta_tensors(op):
    out, lse = op(*(x.to("meta") for x in GOOD.values()), return_lse=True)
    assert (out.shape, out.device.type, lse.shape) == ((2, 4, 8, 16), "meta", (2, 4, 8))


@needs_compiled
def test_backward_takes_any_strides_of_what_it_did_not_make():
    problem = make_problem(Case("strides", S=9, D=4))
    inputs = (problem.q, problem.k, problem.v)
    rest = (problem.cos, problem.sin, None, None, None, 0.5, True, False)
    out, lse = torch.ops.bico.attention_forward(*inputs, *rest)
    want = torch.ops.bico.attention_backward(problem.grad_out, None, *inputs, out, lse, *rest)
    transposed = [x.mT.contiguous().mT for x in (problem.grad_out, out)]
    got = torch.ops.bico.attention_backward(transposed[0], None, *inputs, transposed[1], lse.mT.contiguous().mT, *rest)
    assert all(map(torch.equal, got, want))
