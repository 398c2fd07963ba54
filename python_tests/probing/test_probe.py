"""The probe as a whole, and its details."""

import json

import pytest
import torch
from probed import TEXTS, word_model
from tiny_models import tiny_family, tokens

from bico_ext.probing.probe import details, probe
from bico_ext.probing.texts import sequences_by_length


def test_the_probe_keeps_the_weights_and_is_reproducible():
    model, tokenizer = word_model(max_position_embeddings=64)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sequences = sequences_by_length(model, tokenizer, TEXTS, [32, 64, 128], samples=4, seed=1)
    results = probe(model, tokenizer, sequences, seed=1, progress=False)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert [r["length"] for r in results["denoising"][::3]] == [None, 32, 64], "128 exceeds the context"
    assert max(r["texts"] for r in results["denoising"]) == 4
    assert results == probe(model, tokenizer, sequences, seed=1, progress=False)
    for condition, (low, high) in {"causal": (-1, 0), "bico": (-1, 0), "naive": (-1, 1)}.items():
        profile = results["attention"][condition]
        farthest = max(profile["distances"])
        rotary = [distance for distance in profile["rotary_distances"] if distance is not None]
        assert (min(rotary), max(rotary)) == (low * farthest, high * farthest)
        assert (profile["mass_on_later_keys"] > 0) == (condition != "causal")


def test_the_model_computes_the_same_after_a_probe():
    model, tokenizer = word_model()
    ids = tokens(1, 8) % len(tokenizer)
    before = model(input_ids=ids).logits
    sequences = sequences_by_length(model, tokenizer, TEXTS, [24], samples=3)
    probe(model, tokenizer, sequences, progress=False)
    details(model, tokenizer, sequences[24], progress=False)
    assert model(input_ids=ids).logits.equal(before)


def test_details_name_every_layer_distance_and_group_of_heads():
    model, tokenizer = word_model()
    sequences = sequences_by_length(model, tokenizer, TEXTS, [24], samples=3)[24]
    result = details(model, tokenizer, sequences, progress=False)
    assert json.loads(json.dumps(result)) == result == details(model, tokenizer, sequences, progress=False)
    flips = result["partial_flips"]
    assert (flips["texts"], flips["length"], flips["mask"]) == (3, 24, "0.15")
    tables = {record["where"]: record for record in flips["tables"]}
    layers = {"only 0", "only 1", "all but 0", "all but 1", "below 1", "chosen on the other half"}
    ends = {f"{kind} {end}" for kind in ("up to", "beyond") for end in (1, 2, 4, 8, 16)}
    heads = {f"{kind}, {share} %" for kind in ("looking back", "others", "any") for share in (10, 25, 50)}
    expected = {"layers": layers, "distances": ends, "heads": heads}
    assert set(tables) == {f"{group}: {name}" for group, names in expected.items() for name in names}
    # Of two layers, only layer 0 is all but layer 1, and also all below layer 1.
    assert tables["layers: only 0"]["partial - naive"] == tables["layers: below 1"]["partial - naive"]
    assert tables["layers: only 0"]["partial - bico"] == tables["layers: all but 1"]["partial - bico"]


def test_each_half_of_the_texts_gets_the_layers_chosen_on_the_other(monkeypatch):
    """Made-up losses: 10 with the layers chosen on texts 0 and 2, 20 with those chosen on text 1, and 0 otherwise."""

    def losses(model, sequences, tables, **options):
        return {name: torch.full((3,), {"on even": 10.0, "on odd": 20.0}.get(name, 0.0)).double() for name in tables}

    monkeypatch.setattr("bico_ext.probing.probe.partial_flips", losses)
    model, tokenizer = word_model()
    sequences = sequences_by_length(model, tokenizer, TEXTS, [24], samples=3)[24]
    *_, record = details(model, tokenizer, sequences, progress=False)["partial_flips"]["tables"]
    assert record["where"] == "layers: chosen on the other half"
    assert record["partial - naive"]["mean"] == pytest.approx((20 + 10 + 20) / 3)


def test_details_of_a_single_sequence_are_refused():
    model, tokenizer = word_model()
    with pytest.raises(ValueError, match="at least two sequences, got 1; name more texts or a smaller length"):
        details(model, tokenizer, [tokens(24) % len(tokenizer)])


def test_a_model_that_cannot_be_attached_is_refused():
    _, tokenizer = word_model()
    with pytest.raises(TypeError, match="rotary positions in every layer"):
        probe(tiny_family("gpt2"), tokenizer, {None: [tokens(8)]})
