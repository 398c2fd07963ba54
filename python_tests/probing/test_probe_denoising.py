"""The probe: losses of a frozen model against dense fp64 models and numbers worked out by hand."""

import math
from statistics import mean, stdev

import pytest
import torch
from tiny_models import tiny_llama, tokens
from torch import Generator, Tensor

from bico_ext.models.attach import attach
from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import NO_LOSS, TrainingSequence
from bico_ext.ops import reference
from bico_ext.probing.denoising import (
    CONDITIONS,
    MASK_RATES,
    by_context,
    denoising,
    nearest_later,
    summary,
    token_losses,
)

PLACEHOLDER, BOS = 0, 1


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.cat((torch.tensor([BOS]), tokens(length - 1))) for length in lengths]


def hide(ids: Tensor, seed: int, mask_rate: float = 0.3) -> TrainingSequence:
    generator = Generator().manual_seed(seed)
    return bico(ids, generator, placeholder_id=PLACEHOLDER, special_ids=(BOS,), mask_rate=mask_rate)


def dense_losses(sequence: TrainingSequence, condition: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Compute the losses in fp64: with transformers' eager attention and a mask or, for "bico", with the reference."""
    hidden = (sequence.span_ids == -1).nonzero()[:, 0].tolist()
    model = tiny_llama().double()
    if condition == "bico":
        with monkeypatch.context() as patch:
            patch.setattr("bico_ext.models.hooks.split_triangle_attention", reference.split_triangle_attention)
            logits = attach(model)(input_ids=sequence.input_ids[None], span_ids=sequence.span_ids[None]).logits[0]
    else:
        model.set_attn_implementation("eager")
        length = len(sequence.input_ids)
        blocked = torch.zeros(length, length).double()
        for m in range(length):
            for n in range(length):
                if n in hidden or (condition == "causal" and n > m):
                    blocked[m, n] = -math.inf
        logits = model(input_ids=sequence.input_ids[None], attention_mask=blocked[None, None]).logits[0]
    return torch.stack([-logits[i - 1].log_softmax(-1)[sequence.labels[i]] for i in hidden])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_frozen_losses_are_those_of_a_dense_fp64_model(condition, monkeypatch):
    hidden = [hide(ids, seed) for seed, ids in enumerate(sequences(14, 6, 19, 9, 14))]
    span_ids = [sequence.span_ids for sequence in hidden]
    assert any((ids[1:] + ids[:-1] == -2).any() for ids in span_ids), "no placeholder predicts a hidden token"
    losses = token_losses(attach(tiny_llama()), hidden, condition, PLACEHOLDER, batch_size=3)
    for sequence, loss in zip(hidden, losses, strict=True):
        expected = dense_losses(sequence, condition, monkeypatch).detach()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_the_conditions_differ_except_where_nothing_is_on_the_right():
    model = attach(tiny_llama())
    (ids,) = sequences(12)
    losses = {c: token_losses(model, [hide(ids, 3)], c, PLACEHOLDER)[0] for c in CONDITIONS}
    assert min((losses[a] - losses[b]).abs().max() for a, b in (("bico", "naive"), ("bico", "causal"))) > 1e-3
    # With two tokens, only the placeholder is to the right of the first one, and it is not a key.
    (ids,) = sequences(2)
    losses = {c: token_losses(model, [hide(ids, 3)], c, PLACEHOLDER)[0] for c in CONDITIONS}
    torch.testing.assert_close(losses["bico"], losses["causal"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["bico"], losses["naive"], rtol=1e-4, atol=1e-5)


def test_without_sines_there_is_nothing_to_flip():
    model = attach(tiny_llama())
    model.model.rotary_emb.inv_freq.zero_()  # no pair rotates: cos = 1, sin = 0
    hidden = [hide(ids, seed) for seed, ids in enumerate(sequences(14, 9))]
    flipped, naive, causal = (
        torch.cat(token_losses(model, hidden, c, PLACEHOLDER)) for c in ("bico", "naive", "causal")
    )
    torch.testing.assert_close(flipped, naive, rtol=0, atol=1e-6)
    assert (flipped - causal).abs().max() > 1e-3


def estimate(values: list[float]) -> dict:
    return {"mean": pytest.approx(mean(values)), "se": pytest.approx(stdev(values) / len(values) ** 0.5)}


def test_the_summary_holds_means_over_texts_with_standard_errors():
    generator = Generator().manual_seed(0)
    text = torch.tensor([4, 4, 4, 7, 9, 9, 2])
    losses = {c: torch.rand(7, generator=generator).double() for c in CONDITIONS}
    by_text = {c: [losses[c][text == t].mean().item() for t in (2, 4, 7, 9)] for c in CONDITIONS}
    result = summary(losses, text)
    assert (result["texts"], result["tokens"]) == (4, 7)
    for c in CONDITIONS:
        assert result["loss"][c] == estimate(by_text[c])
    for other in ("naive", "causal"):
        paired = [ours - theirs for ours, theirs in zip(by_text["bico"], by_text[other], strict=True)]
        assert result["difference"][f"bico - {other}"] == estimate(paired)
    assert summary({c: x[3:4] for c, x in losses.items()}, text[3:4])["loss"]["bico"]["se"] is None


def test_denoising_records_every_length_and_mask_by_the_context_on_the_right():
    model = attach(tiny_llama())
    by_length = {None: sequences(6, 9, 13), 17: sequences(17, 17)}
    options = {"placeholder_id": PLACEHOLDER, "special_ids": [BOS]}
    records = denoising(model, by_length, **options, seed=3)
    assert [(r["length"], r["mask"]) for r in records] == [(n, mask) for n in (None, 17) for mask in MASK_RATES]
    for record in records:
        groups = record["by_right_context"]
        for name in ("by_right_context", "by_nearest_later"):
            assert sum(group["tokens"] for group in record[name]) == record["tokens"]
        assert {(group["from"], group["to"]) for group in groups} <= {(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)}
        if record["mask"] == "single":
            assert record["tokens"] == record["texts"] == len(by_length[record["length"]])
    assert denoising(model, by_length, **options, seed=3) == records
    assert denoising(model, by_length, **options, seed=4) != records


def test_groups_are_by_the_number_of_tokens_on_the_right():
    """Of 6 tokens, all but the first are hidden: they have 4, 3, 2, 1 and 0 tokens on their right."""
    model = attach(tiny_llama())
    hidden = hide(sequences(6)[0], 0, mask_rate=1.0)
    (loss,) = token_losses(model, [hidden], "bico", PLACEHOLDER)
    groups = by_context([hidden], {c: [loss] for c in CONDITIONS})["by_right_context"]
    means = {(g["from"], g["to"]): g["loss"]["bico"]["mean"] for g in groups}
    expected = {(0, 0): loss[4], (1, 1): loss[3], (2, 3): loss[1:3].mean(), (4, 7): loss[0]}
    assert means == {bounds: pytest.approx(value.item()) for bounds, value in expected.items()}


def test_groups_are_by_the_nearest_visible_token_on_the_right():
    span_ids = torch.tensor([0, -1, 0, -1, -1, -1, 0, -1], dtype=torch.int32)
    expected = [next((n - m for n in range(m + 1, len(span_ids)) if span_ids[n] == 0), 0) for m in range(len(span_ids))]
    assert nearest_later(span_ids).tolist() == expected == [2, 1, 4, 3, 2, 1, 0, 0]
    ids = sequences(8)[0]
    hidden = TrainingSequence(ids, ids.masked_fill(span_ids == 0, NO_LOSS), span_ids)
    loss = torch.arange(5.0).double()  # of the hidden tokens 1, 3, 4, 5 and 7
    groups = by_context([hidden], {c: [loss] for c in CONDITIONS})["by_nearest_later"]
    means = {(g["from"], g["to"]): g["loss"]["bico"]["mean"] for g in groups}
    assert means == {(0, 0): 4, (1, 1): (0 + 3) / 2, (2, 3): (1 + 2) / 2}
