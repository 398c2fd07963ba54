"""The probe: attention by distance and frozen losses against hand computation and dense fp64 models."""

import math
from statistics import mean, stdev

import pytest
import torch
from tiny_models import tiny_family, tiny_llama, tokens
from torch import Generator, Tensor

from bico_ext.comparison.probe import (
    CONDITIONS,
    MASK_RATES,
    attention_by_distance,
    attention_matrix,
    by_right_context,
    denoising,
    encode,
    pack,
    probe,
    rotary_distance,
    summary,
    token_losses,
)
from bico_ext.facts.types import Example
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import TrainingSequence
from bico_ext.ops import reference

PLACEHOLDER, BOS = 0, 1
TEXTS = [Example(f"word{i}", " and".join(f" word{j}" for j in range(i % 5 + 1)) + ".") for i in range(20)]


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.cat((torch.tensor([BOS]), tokens(length - 1))) for length in lengths]


def tables(length: int, speeds: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    angle = torch.outer(torch.arange(float(length)), torch.tensor(speeds)).repeat(1, 2)[None].double()
    return angle.cos(), angle.sin()


def spans(length: int, condition: str) -> Tensor:
    return torch.full((1, length), int(condition == "causal"), dtype=torch.int32)


def hide(ids: Tensor, seed: int, mask_rate: float = 0.3) -> TrainingSequence:
    generator = Generator().manual_seed(seed)
    return bico(ids, generator, placeholder_id=PLACEHOLDER, special_ids=(BOS,), mask_rate=mask_rate)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_attention_mass_sums_to_one(condition):
    model = attach(tiny_llama())
    profile = attention_by_distance(model, sequences(5, 11, 8), condition)
    assert profile.mass.shape == (2, 21)
    torch.testing.assert_close(profile.mass.sum(-1), torch.ones(2).double())
    assert profile.distances.tolist() == list(range(-10, 11))
    lengths = (5, 11, 8)
    sides = (-1, 0, 1) if condition != "causal" else (-1, 0)
    expected = [
        sum(max(length - abs(d), 0) for length in lengths) if (d > 0) - (d < 0) in sides else 0 for d in range(-10, 11)
    ]
    assert profile.pairs.tolist() == expected


def test_causal_attention_has_no_later_keys():
    profile = attention_by_distance(attach(tiny_llama()), sequences(9), "causal")
    later = profile.distances > 0
    assert not profile.mass[:, later].any()
    assert profile.logits[:, later].isnan().all()
    assert profile.mass[:, ~later].all()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_mass_by_distance_of_a_model_is_that_of_its_eager_attention(condition):
    """One layer, so that its input is the same in every condition; the matrices come from transformers' own code."""
    stock = tiny_llama(num_hidden_layers=1).double()
    (ids,) = sequences(7)
    stock.set_attn_implementation("eager")
    inner = stock.model
    x = inner.layers[0].input_layernorm(inner.embed_tokens(ids[None]))
    cos, sin = inner.rotary_emb(x, torch.arange(7)[None])
    attention = inner.layers[0].self_attn
    everything = torch.zeros(1, 1, 7, 7).double()
    causal = torch.full((7, 7), -math.inf).double().triu(1)[None, None]
    mask = causal if condition == "causal" else everything
    weights = attention(x, position_embeddings=(cos, sin), attention_mask=mask)[1][0]  # [H, m, n]
    if condition == "bico":  # each row: exp(score) below from the usual rotation, above from the flipped one
        scores = weights.log()
        # Rows are known up to a constant; the diagonal, which rotation leaves alone, aligns the two.
        flipped = attention(x, position_embeddings=(cos, -sin), attention_mask=mask)[1][0].log()
        scores, flipped = (s - s.diagonal(dim1=-2, dim2=-1)[..., None] for s in (scores, flipped))
        weights = torch.where(torch.ones(7, 7).tril().bool(), scores, flipped).softmax(-1)
    expected = [weights.mean(0).diagonal(d).sum().item() / 7 for d in range(-6, 7)]
    profile = attention_by_distance(attach(tiny_llama(num_hidden_layers=1).double()), [ids], condition)
    assert profile.mass[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_layers_are_told_apart_and_texts_pooled_by_query():
    model = attach(tiny_llama())
    both = attention_by_distance(model, sequences(6, 9), "bico")
    short, long = (attention_by_distance(model, [s], "bico") for s in sequences(6, 9))
    padded = torch.nn.functional.pad(short.mass, (3, 3))
    torch.testing.assert_close(both.mass, (6 * padded + 9 * long.mass) / 15)
    assert (both.mass[0] - both.mass[1]).abs().max() > 1e-3


def test_weights_by_hand():
    """Two tokens, one pair turning by a right angle a token, scale 1.

    q = (1, 0), k = (0, 1): at n - m = 0 the score is 0. A key behind (n - m = -1) is turned by -90 degrees relative to
    the query, onto it: score 1. A later key is turned by +90 degrees, away from it: -1; flipped, it scores 1.
    """
    q, k = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2), torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    cos, sin = tables(2, (math.pi / 2,))
    e = math.e
    for condition, later in (("bico", 1.0), ("naive", -1.0)):
        weights, logits = attention_matrix(
            q, k, cos, sin, span_ids=spans(2, condition), scale=1.0, mirror=condition == "bico"
        )
        torch.testing.assert_close(logits[0, 0], torch.tensor([[0.0, later], [1.0, 0.0]]).double())
        ahead = math.exp(later)
        expected = torch.tensor([[1 / (1 + ahead), ahead / (1 + ahead)], [e / (1 + e), 1 / (1 + e)]])
        torch.testing.assert_close(weights[0, 0], expected.double())


def logits_of_constants(condition: str, q: list[float], k: list[float], length: int = 9) -> Tensor:
    """[m, n] for the same q and the same k at every position."""
    q_all, k_all = (torch.tensor(x).expand(1, 1, length, -1) for x in (q, k))
    cos, sin = tables(length, (1.0, 0.3))
    span_ids = spans(length, condition)
    return attention_matrix(q_all, k_all, cos, sin, span_ids=span_ids, scale=None, mirror=condition == "bico")[1][0, 0]


def test_without_content_the_flip_leaves_only_the_absolute_distance():
    q, k = [1.0, 0.5, 0.0, 0.2], [0.0, 0.1, 1.0, -0.7]
    mirrored, naive = (logits_of_constants(condition, q, k) for condition in ("bico", "naive"))
    torch.testing.assert_close(mirrored, mirrored.mT)
    for distance in range(1, 9):
        torch.testing.assert_close(mirrored.diagonal(distance), mirrored[distance, 0].expand(9 - distance))
        torch.testing.assert_close(naive.diagonal(distance), naive[0, distance].expand(9 - distance))
        assert (naive[0, distance] - naive[distance, 0]).abs() > 1e-2
    torch.testing.assert_close(mirrored.tril(), naive.tril())


def test_the_sign_does_not_matter_where_sines_do_not():
    """q = k: the score is a sum of cosines, which are even."""
    same = [1.0, 0.5, 0.3, -0.2]
    torch.testing.assert_close(logits_of_constants("bico", same, same), logits_of_constants("naive", same, same))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_rotary_distance_is_what_the_attention_rotates_by(condition):
    """Read off the angle between q and k: the score with q = k is its cosine, with k a quarter turn ahead -sine."""
    speed, length = 0.1, 9
    cos, sin = tables(length, (speed,))
    q = torch.tensor([1.0, 0.0]).expand(1, 1, length, 2)
    ahead = torch.tensor([0.0, 1.0]).expand(1, 1, length, 2)
    arguments = {"span_ids": spans(length, condition), "scale": 1.0, "mirror": condition == "bico"}
    cosine, minus_sine = (attention_matrix(q, k, cos, sin, **arguments)[1][0, 0] for k in (q, ahead))
    for m in range(length):
        for n in range(m + 1 if condition == "causal" else length):
            met = math.atan2(-minus_sine[m, n], cosine[m, n]) / speed
            assert rotary_distance(n - m, condition) == pytest.approx(met, abs=1e-6)


def dense_losses(row: TrainingSequence, condition: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """In fp64: by transformers' eager code on a stock model with a mask, or, flipped, by the dense reference."""
    hidden = (row.span_ids == -1).nonzero()[:, 0].tolist()
    model = tiny_llama().double()
    if condition == "bico":
        with monkeypatch.context() as patch:
            patch.setattr("bico_ext.models.attach.split_triangle_attention", reference.split_triangle_attention)
            logits = attach(model)(input_ids=row.input_ids[None], span_ids=row.span_ids[None]).logits[0]
    else:
        model.set_attn_implementation("eager")
        length = len(row.input_ids)
        blocked = torch.zeros(length, length).double()
        for m in range(length):
            for n in range(length):
                if n in hidden or (condition == "causal" and n > m):
                    blocked[m, n] = -math.inf
        logits = model(input_ids=row.input_ids[None], attention_mask=blocked[None, None]).logits[0]
    return torch.stack([-logits[place - 1].log_softmax(-1)[row.labels[place]] for place in hidden])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_frozen_losses_are_those_of_a_dense_fp64_model(condition, monkeypatch):
    rows = [hide(ids, seed) for seed, ids in enumerate(sequences(14, 6, 19, 9, 14))]
    assert any((row.span_ids[1:] + row.span_ids[:-1] == -2).any() for row in rows), "a placeholder restores a token"
    losses = token_losses(attach(tiny_llama()), rows, condition, PLACEHOLDER, batch_size=3)
    for row, loss in zip(rows, losses, strict=True):
        torch.testing.assert_close(loss, dense_losses(row, condition, monkeypatch).detach(), rtol=1e-4, atol=1e-4)


def test_the_conditions_differ_and_agree_where_nothing_is_on_the_right():
    model = attach(tiny_llama())
    (ids,) = sequences(12)
    losses = {c: token_losses(model, [hide(ids, 3)], c, PLACEHOLDER)[0] for c in CONDITIONS}
    assert min((losses[a] - losses[b]).abs().max() for a, b in (("bico", "naive"), ("bico", "causal"))) > 1e-3
    # Of two tokens, the first has only the placeholder on its right, which is no key.
    (ids,) = sequences(2)
    losses = {c: token_losses(model, [hide(ids, 3)], c, PLACEHOLDER)[0] for c in CONDITIONS}
    torch.testing.assert_close(losses["bico"], losses["causal"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["bico"], losses["naive"], rtol=1e-4, atol=1e-5)


def test_without_sines_there_is_nothing_to_flip():
    model = attach(tiny_llama())
    model.model.rotary_emb.inv_freq.zero_()  # no pair turns: cos = 1, sin = 0
    rows = [hide(ids, seed) for seed, ids in enumerate(sequences(14, 9))]
    mirrored, naive, causal = (
        torch.cat(token_losses(model, rows, c, PLACEHOLDER)) for c in ("bico", "naive", "causal")
    )
    torch.testing.assert_close(mirrored, naive, rtol=0, atol=1e-6)
    assert (mirrored - causal).abs().max() > 1e-3


def estimate(values: list[float]) -> dict:
    return {"mean": pytest.approx(mean(values)), "se": pytest.approx(stdev(values) / len(values) ** 0.5)}


def test_summary_is_means_over_texts_with_standard_errors():
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


def test_packed_sequences_are_the_texts_in_a_row():
    texts = sequences(5, 4, 6)
    packed = pack(texts, 7)
    assert torch.equal(torch.cat(packed), torch.cat(texts)[:14])
    assert [len(ids) for ids in packed] == [7, 7]
    assert pack(texts, 16) == []


def test_denoising_records_every_set_and_mask_by_the_context_on_the_right():
    model = attach(tiny_llama())
    sets = {None: sequences(6, 9, 13), 17: sequences(17, 17)}
    options = {"placeholder_id": PLACEHOLDER, "special_ids": [BOS]}
    records = denoising(model, sets, **options, seed=3)
    assert [(r["length"], r["mask"]) for r in records] == [(n, mask) for n in (None, 17) for mask in MASK_RATES]
    for record in records:
        groups = record["by_right_context"]
        assert sum(group["tokens"] for group in groups) == record["tokens"]
        assert {(group["from"], group["to"]) for group in groups} <= {(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)}
        if record["mask"] == "single":
            assert record["tokens"] == record["texts"] == len(sets[record["length"]])
    assert denoising(model, sets, **options, seed=3) == records
    assert denoising(model, sets, **options, seed=4) != records


def test_groups_hold_the_tokens_with_that_much_on_their_right():
    """Everything but the first token hidden: places 1 to 5 of 6 have 4, 3, 2, 1 and 0 tokens on their right."""
    model = attach(tiny_llama())
    row = hide(sequences(6)[0], 0, mask_rate=1.0)
    (loss,) = token_losses(model, [row], "bico", PLACEHOLDER)
    groups = by_right_context([row], {c: [loss] for c in CONDITIONS})["by_right_context"]
    means = {(g["from"], g["to"]): g["loss"]["bico"]["mean"] for g in groups}
    expected = {(0, 0): loss[4], (1, 1): loss[3], (2, 3): loss[1:3].mean(), (4, 7): loss[0]}
    assert means == {bounds: pytest.approx(value.item()) for bounds, value in expected.items()}


def word_model(**changes: object):
    tokenizer = train_word_tokenizer(text.text for text in TEXTS)
    return tiny_llama(vocab_size=len(tokenizer), **changes), tokenizer


def test_probe_leaves_the_weights_alone_and_repeats_itself():
    model, tokenizer = word_model(max_position_embeddings=64)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    results = probe(model, tokenizer, TEXTS, samples=4, seed=1, progress=False)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert [r["length"] for r in results["denoising"][::3]] == [None, 32, 64], "128 and 256 exceed the context"
    assert max(r["texts"] for r in results["denoising"]) == 4
    assert results == probe(model, tokenizer, TEXTS, samples=4, seed=1, progress=False)
    for condition, (low, high) in {"causal": (-1, 0), "bico": (-1, 0), "naive": (-1, 1)}.items():
        profile = results["attention"][condition]
        farthest = max(profile["distances"])
        met = [d for d in profile["rotary_distances"] if d is not None]
        assert (min(met), max(met)) == (low * farthest, high * farthest)
        assert (profile["mass_on_later_keys"] > 0) == (condition != "causal")


def test_probing_does_not_disturb_the_model_afterwards():
    model, tokenizer = word_model()
    ids = tokens(1, 8) % len(tokenizer)
    before = model(input_ids=ids).logits
    probe(model, tokenizer, TEXTS, samples=2, progress=False)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        ([], {}, "texts must hold at least one text, got none"),
        (TEXTS, {"max_position_embeddings": 8}, r"text \d+, .* needs \d+ tokens, but the model's context is 8"),
    ],
)
def test_texts_that_cannot_be_read_are_named(texts, changes, message):
    model, tokenizer = word_model(**changes)
    with pytest.raises(ValueError, match=message):
        probe(model, tokenizer, texts, progress=False)


def test_a_text_with_nothing_to_hide_is_named():
    tokenizer = train_word_tokenizer(["word"])
    with pytest.raises(ValueError, match=r"text 2 has no token to hide.*got \[2, 1, 3\]"):
        encode(tiny_llama(), tokenizer, [Example("word", ""), Example("unseen", "")])


@pytest.mark.parametrize("name", ["samples", "batch_size"])
def test_counts_below_one_are_named(name):
    model, tokenizer = word_model()
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        probe(model, tokenizer, TEXTS, **{name: 0})


def test_a_model_that_cannot_be_attached_is_refused():
    tokenizer = train_word_tokenizer(text.text for text in TEXTS)
    with pytest.raises(TypeError, match="rotary positions in every layer"):
        probe(tiny_family("gpt2"), tokenizer, TEXTS)
