"""A tiny model and facts for the scripts about the real Llama."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext.facts.loader import load_facts
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.models.tokenization import train_word_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model and facts, as options of the script."""
    folder = tmp_path_factory.mktemp("real-llama")
    write_facts(generate(names_first=2, descriptions_first=2, both=1, pretraining=2), folder / "data")
    tokenizer = train_word_tokenizer([example.text for example in load_facts(folder / "data").train])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return ["--model", str(folder / "model"), "--data", str(folder / "data")]
