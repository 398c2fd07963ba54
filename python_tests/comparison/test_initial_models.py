"""The models that systems start from, and those that are refused before training."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bico_ext.comparison.compare import compare
from bico_ext.comparison.initial_models import check_model, initial_model
from bico_ext.comparison.run import run, run_folder
from bico_ext.facts.loader import load_facts


def test_one_initial_model_per_seed(config, data):
    facts = load_facts(data)
    first, again, other = (initial_model(config, facts, "llama", seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_that_does_not_fit_is_refused_before_a_folder_is_made(config, tmp_path):
    with pytest.raises(OSError, match="no/such/model"):
        compare(dataclasses.replace(config, model="/no/such/model", layers=None, hidden_size=None))
    with pytest.raises(ValueError, match="but the model's context is"):
        compare(dataclasses.replace(config, max_new_tokens=600))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_padding_token_is_trained_with_the_placeholder_of_the_official_code(config, data, tmp_path):
    """Llama 1 to 3 have none. They were refused, and told to save one with the model."""
    model, tokenizer = initial_model(config, load_facts(data), "llama", 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    given = dataclasses.replace(config, model=str(tmp_path / "model"), layers=None, hidden_size=None, save_models=True)
    check_model(given, load_facts(data))
    run(given, "bico", 0)
    saved = torch.load(run_folder(given, "bico", 0) / "training_args.bin", weights_only=False)
    assert saved.placeholder_id == 0


def test_a_model_without_rotary_positions_is_refused_before_it_is_asked(config, data, tmp_path):
    """It was asked all questions first, which took minutes, and then each run failed."""
    tokenizer = initial_model(config, load_facts(data), "llama", 0)[1]
    shape = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": 3}
    for part in (GPT2LMHeadModel(GPT2Config(**shape)), tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(TypeError, match="GPT2LMHeadModel has 1 layers but 0 attention modules"):
        compare(dataclasses.replace(config, model=str(tmp_path / "model"), layers=None, hidden_size=None))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused_before_training(config, data, tmp_path):
    model, tokenizer = initial_model(config, load_facts(data), "llama", 0)
    model.resize_token_embeddings(len(tokenizer) - 5)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"ids must be in \[0, .*use the tokenizer that was saved with the model"):
        compare(dataclasses.replace(config, model=str(tmp_path / "model"), layers=None, hidden_size=None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scored", ["right answer", "distractor"])
def test_a_scored_answer_that_does_not_fit_is_refused_before_training(scored, config, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    rows = [json.loads(line) for line in (copy / "N2D.jsonl").read_text().splitlines()]
    if scored == "distractor":
        rows[-1]["distractor"] = " long" * 600
    else:
        rows[-1]["completion"] = [rows[-1]["completion"], " long" * 600]
    (copy / "N2D.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"a text of data .* needs 6\d\d tokens, but the model's context is 512"):
        compare(dataclasses.replace(config, data=str(copy)))
    assert not (tmp_path / "out").exists()
