"""What must not change the op's results, or change them in a known way; and where they are those of torch's SDPA."""

import dataclasses

import pytest
import torch
from problems import Case, make_problem
from torch.nn import functional
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_pairs_of_neighbours
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_pairs_of_halves

from bico_ext.ops.reference import CAUSAL_CONTEXT

# Another order of sums: in float32 a few epsilons of sums, in bfloat16 of what is rounded once more.
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}
pytestmark = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

BY_TOKEN = "q", "k", "v", "grad_out", "grad_lse"  # [B, H, S] or [B, H, S, D]
S = 75


def changed(problem, change, **others):
    """The problem with `change` made to all that has tokens, and with other fields or options."""
    fields = {name: change(getattr(problem, name)) for name in BY_TOKEN}
    fields |= {name: others.pop(name) for name in ("cos", "sin") if name in others}
    return dataclasses.replace(problem, **fields, options=problem.options | others)


def assert_same(attention, dtype, problem, other, back=lambda x: x):
    """`other` has the results of `problem` once `back` has undone the change."""
    want, got = (one.run(attention, dtype, table_dtype=torch.float32) for one in (problem, other))
    for name in want:
        torch.testing.assert_close(back(got[name]), want[name], **TOLERANCE[dtype], msg=lambda x, n=name: f"{n}: {x}")


@pytest.mark.parametrize("window", [None, 20])
def test_a_reversed_text_has_the_reversed_results(attention, dtype, window):
    """The score of a pair knows the distance |m - n| alone."""
    problem = make_problem(Case("reversed", S=S, Hq=4, Hkv=2, R=8, window=window), dtype)
    assert_same(attention, dtype, problem, changed(problem, lambda x: x.flip(2)), lambda x: x.flip(2))


def test_heads_change_places_together_with_those_they_share(attention, dtype):
    problem = make_problem(Case("heads", S=S, Hq=6, Hkv=3, spans="infill"), dtype)
    order = torch.tensor([2, 0, 1])

    def permuted(x):
        return x.unflatten(1, (3, -1))[:, order].flatten(1, 2)

    def back(x):
        return x.unflatten(1, (3, -1))[:, order.argsort()].flatten(1, 2)

    assert_same(attention, dtype, problem, changed(problem, permuted), back)


def test_batch_entries_change_places(attention, dtype):
    problem = make_problem(Case("batch", S=S, B=3, spans="random", tables=3, window=50), dtype)
    order = torch.tensor([2, 0, 1])
    tables = {name: getattr(problem, name)[order] for name in ("cos", "sin")}
    other = changed(problem, lambda x: x[order], span_ids=problem.options["span_ids"][order], **tables)
    assert_same(attention, dtype, problem, other, lambda x: x[order.argsort()])


def test_a_batch_entry_may_come_alone(attention, dtype):
    problem = make_problem(Case("batch", S=S, B=3, spans="random", tables=3), dtype)
    whole = problem.run(attention, dtype, table_dtype=torch.float32)
    for i in range(3):
        tables = {name: getattr(problem, name)[i : i + 1] for name in ("cos", "sin")}
        ids = problem.options["span_ids"][i : i + 1]
        alone = changed(problem, lambda x, i=i: x[i : i + 1], span_ids=ids, **tables)
        for name, got in alone.run(attention, dtype, table_dtype=torch.float32).items():
            torch.testing.assert_close(got, whole[name][i : i + 1], **TOLERANCE[dtype])


@pytest.mark.parametrize("spans", ["infill", "causal-context"])
@pytest.mark.parametrize("where", [0, 30, S])
def test_ignored_tokens_change_nothing_wherever_they_stand(attention, dtype, spans, where):
    """A token with a negative id has huge values and takes part in nothing: neither as a key nor by its place."""
    problem = make_problem(Case("ignored", S=S, spans=spans), dtype)

    def with_ignored(x, fill=100.0, dimension=2):
        before, after = x.split((where, S - where), dimension)
        shape = list(x.shape)
        shape[dimension] = 40
        return torch.cat((before, x.new_full(shape, fill), after), dimension)

    def without(x):
        return torch.cat((x[:, :, :where], x[:, :, where + 40 :]), 2)

    other = changed(
        problem,
        with_ignored,
        span_ids=with_ignored(problem.options["span_ids"], -1, 1),
        **{name: with_ignored(getattr(problem, name), 0.0, 1) for name in ("cos", "sin")},
    )
    # As queries they would send gradients to the context, so they get none.
    for name in ("grad_out", "grad_lse"):
        setattr(other, name, with_ignored(getattr(problem, name), 0.0))
    assert_same(attention, dtype, problem, other, without)


@pytest.mark.parametrize("interleaved", [True, False])
def test_positions_count_from_anywhere(attention, dtype, interleaved):
    problem = make_problem(Case("shifted", S=S, R=12, interleaved=interleaved, spans="random", window=60), dtype)
    step = torch.tensor([1.0, 0.7, 0.3, 0.1, 0.03, 0.01], dtype=torch.float64) * 123.0
    step = step.repeat_interleave(2) if interleaved else step.repeat(2)
    cos, sin = problem.cos, problem.sin
    tables = {"cos": cos * step.cos() - sin * step.sin(), "sin": sin * step.cos() + cos * step.sin()}
    assert_same(attention, dtype, problem, changed(problem, lambda x: x, **tables))


@pytest.mark.parametrize("same", ["causal-context", "window", "one-sequence", "shared-heads"])
def test_two_ways_to_say_the_same(attention, dtype, same):
    problem = make_problem(
        Case("same", S=S, B=1, Hq=4, spans="causal" if same == "causal-context" else "random"), dtype
    )
    ids = problem.options["span_ids"]
    if same == "shared-heads":  # of k and v, instead of copies of them
        group = {name: getattr(problem, name).repeat_interleave(2, 1) for name in ("k", "v")}
        want = problem.run(attention, dtype, table_dtype=torch.float32)
        got = dataclasses.replace(problem, **group).run(attention, dtype, table_dtype=torch.float32)
        got |= {name: got[name].unflatten(1, (2, 2)).sum(2) for name in ("grad_k", "grad_v")}
        for name in want:
            torch.testing.assert_close(got[name], want[name], **TOLERANCE[dtype])
        return
    other = {
        "causal-context": {"span_ids": torch.full_like(ids, CAUSAL_CONTEXT)},
        "window": {"window": S},
        "one-sequence": {"cu_seqlens": torch.tensor([0, 0, S, S], dtype=torch.int32)},
    }
    assert_same(attention, dtype, problem, changed(problem, lambda x: x, **other[same]))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_without_later_keys_or_mirror_it_is_sdpa_of_rotated_inputs(attention, dtype, causal, interleaved):
    """Causal ids against torch's causal attention; all context without the mirror against its full one."""
    case = Case("sdpa", S=S, Hq=4, Hkv=2, mirror=causal, spans="causal" if causal else "none", interleaved=interleaved)
    problem = make_problem(case, dtype)
    rotate = rotate_pairs_of_neighbours if interleaved else rotate_pairs_of_halves

    def sdpa(q, k, v, cos, sin, **_):
        if interleaved:  # transformers' GLM hands out the half layout
            cos, sin = (torch.cat([x[..., ::2]] * 2, -1) for x in (cos, sin))
        return functional.scaled_dot_product_attention(*rotate(q, k, cos, sin), v, is_causal=causal, enable_gqa=True)

    inputs = [getattr(problem, name).requires_grad_() for name in ("q", "k", "v")]
    want = sdpa(*inputs, problem.cos, problem.sin)
    grads = torch.autograd.grad(want, inputs, problem.grad_out)
    problem.through = ("out",)
    got = problem.run(attention, dtype, table_dtype=torch.float32)
    for name, x in zip(("out", "grad_q", "grad_k", "grad_v"), (want, *grads), strict=True):
        torch.testing.assert_close(got[name], x, **TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}")
