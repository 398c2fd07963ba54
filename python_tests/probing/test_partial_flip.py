"""The flip in a part of the model, against loops over heads, queries and keys, and against the op itself."""

import pytest
import torch
from tiny_models import some_span_ids, tiny_llama, tokens
from torch import Generator

from bico_ext.models.attach import attach
from bico_ext.objectives.denoising import bico
from bico_ext.ops import reference
from bico_ext.ops.attention import split_triangle_attention
from bico_ext.probing.denoising import token_losses
from bico_ext.probing.partial_flip import (
    PartialFlip,
    chosen_layers,
    compare_tables,
    distance_tables,
    head_tables,
    layer_tables,
    partial_flips,
)

LENGTH, HEADS = 19, 4


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_each_head_and_distance_is_flipped_where_the_table_says(dtype, autocast, window):
    generator = Generator().manual_seed(3)
    q = torch.randn(2, HEADS, LENGTH, 8, generator=generator).to(dtype)
    k, v = torch.randn(2, 2, 2, LENGTH, 8, generator=generator).to(dtype).unbind()
    angle = torch.outer(torch.arange(LENGTH), torch.tensor([1.0, 0.4, 0.1, 0.02])).repeat(1, 2)[None]
    cos, sin, span_ids = angle.cos(), angle.sin(), some_span_ids(2, LENGTH)
    flipped = torch.rand(1, HEADS, 5, generator=generator) < 0.5
    with PartialFlip(flipped), torch.autocast("cpu", enabled=autocast):
        out = split_triangle_attention(q, k, v, cos, sin, span_ids=span_ids, window=window)

    visible = reference.visible(span_ids, window)
    scores = torch.full((2, HEADS, LENGTH, LENGTH), -torch.inf).double()
    plus, minus = (
        (reference.rotate(q.double(), cos, s, False), reference.rotate(k.double(), cos, s, False)) for s in (sin, -sin)
    )
    for b, h, m, n in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        if visible[b, m, n]:
            rotated_q, rotated_k = minus if n > m and flipped[0, h, min(n - m, 5) - 1] else plus
            scores[b, h, m, n] = rotated_q[b, h, m] @ rotated_k[b, h // 2, n] / 8**0.5
    expected = scores.softmax(-1) @ v.double().repeat_interleave(2, dim=1)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def hidden_sequences():
    return [
        bico(tokens(n), Generator().manual_seed(n), placeholder_id=0, special_ids=(1,), mask_rate=0.3) for n in (14, 9)
    ]


def test_everywhere_is_bico_nowhere_is_naive_and_distances_in_between_are_neither():
    model, sequences = attach(tiny_llama()), hidden_sequences()
    everywhere, nowhere = (
        torch.stack([x.mean() for x in token_losses(model, sequences, condition, 0)]) for condition in ("bico", "naive")
    )
    tables = {f"all at {reach}": torch.ones(2, HEADS, reach, dtype=torch.bool) for reach in (1, 20)}
    tables |= {"none": torch.zeros(2, HEADS, 1, dtype=torch.bool)}
    tables |= distance_tables(2, HEADS, 13) | layer_tables(2, HEADS)
    losses = partial_flips(model, sequences, tables, placeholder_id=0)
    for name, expected in (
        ("all at 1", everywhere),
        ("all at 20", everywhere),
        ("none", nowhere),
        ("distances: beyond 8", None),
        ("distances: up to 4", None),
        ("layers: only 1", None),
    ):
        if expected is not None:
            torch.testing.assert_close(losses[name], expected, rtol=0, atol=1e-12)
        else:
            assert (losses[name] - everywhere).abs().max() > 1e-4
            assert (losses[name] - nowhere).abs().max() > 1e-4


def test_a_single_flipped_layer_is_that_layer():
    """The layers are told apart by a hook that asks one of them for `mirror`, in a model that flips nowhere else."""
    model, sequences = attach(tiny_llama()), hidden_sequences()[:1]
    losses = partial_flips(model, sequences, layer_tables(2, HEADS), placeholder_id=0)
    for number, layer in enumerate(model.model.layers):
        hook = layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"mirror": True}), with_kwargs=True
        )
        (expected,) = token_losses(model, sequences, "naive", 0)
        hook.remove()
        assert losses[f"layers: only {number}"].item() == pytest.approx(expected.mean().item(), abs=1e-9)


def test_tables_name_what_they_flip():
    for name, table in distance_tables(2, 3, 6).items():
        kind, end = name.removeprefix("distances: ").rsplit(" ", 1)
        expected = [d <= int(end) if kind == "up to" else d > int(end) for d in range(1, 7)]
        assert table.tolist() == [[expected] * 3] * 2
    for name, table in layer_tables(3, 2).items():
        kind, number = name.removeprefix("layers: ").rsplit(" ", 1)
        flips = {"only": int.__eq__, "all but": int.__ne__, "below": int.__lt__}[kind]
        assert table.tolist() == [[[flips(layer, int(number))]] * 2 for layer in range(3)]


def test_groups_of_heads_are_the_ones_that_look_back_most():
    mass = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.8, 0.0, 0.4, 0.5]])
    tables = {name: table[..., 0] for name, table in head_tables(mass, seed=1).items()}
    assert tables["heads: looking back, 25 %"].tolist() == [[False, True, False, False], [True, False, False, False]]
    for percent, count in ((10, 1), (25, 2), (50, 4)):
        looking, others, anyhow = (tables[f"heads: {name}, {percent} %"] for name in ("looking back", "others", "any"))
        assert looking.sum() == anyhow.sum() == count
        assert torch.equal(others, ~looking)


def test_differences_are_paired_and_layers_chosen_on_one_half():
    nowhere = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    changes = {"layers: only 0": [-1, 1, -1, 1], "layers: only 1": [1, -2, 1, -2], "layers: only 2": [1, 1, 1, 1]}
    losses = {name: nowhere + torch.tensor(change) for name, change in changes.items()}
    records = {record["where"]: record for record in compare_tables(losses, nowhere, nowhere + 1)}
    assert records["layers: only 1"]["partial - naive"] == {"mean": -0.5, "se": pytest.approx(3**0.5 / 2)}
    assert records["layers: only 2"]["partial - bico"] == {"mean": 0, "se": 0}
    on_even, on_odd = chosen_layers(losses, nowhere)
    assert (on_even.tolist(), on_odd.tolist()) == ([True, False, False], [False, True, False])
