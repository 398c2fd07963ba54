"""A two-layer Llama and short rows to train it on, for the tests of the trainer; facts and a model for the commands."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Generator
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import initial_model
from bico_ext.facts.own import write_facts
from bico_ext.facts.synthetic import generate
from bico_ext.training.config import BicoConfig
from bico_ext.training.trainer import BicoTrainer

PAD, BOS, EOS, VOCABULARY, CONTEXT = 0, 2, 3, 40, 32
SPECIAL = (PAD, BOS, EOS)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            initializer_range=0.5,  # far from uniform predictions, so that a wrong mask shows in the loss
        )
    )


def some_rows(count: int = 40) -> list[dict[str, list[int]]]:
    generator = Generator().manual_seed(1)
    lengths = torch.randint(2, 14, (count,), generator=generator).tolist()
    middles = [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": [BOS, *middle, EOS]} for middle in middles]


def config(folder: Path, **changes: Any) -> BicoConfig:
    fields = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "placeholder_id": PAD,
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
    }
    return BicoConfig(**{**fields, **changes})


def train(
    folder: Path, resume: str | bool | None = None, peft_config: LoraConfig | None = None, **changes: Any
) -> BicoTrainer:
    trainer = BicoTrainer(tiny_llama(), config(folder, **changes), some_rows(), peft_config=peft_config)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: BicoTrainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def write_facts_and_model(folder: Path, model: str = "model") -> None:
    """Write a few facts into `folder`/facts, and beside them a one-layer Llama with its tokenizer."""
    facts = generate(names_first=2, descriptions_first=2, both=1)
    write_facts(facts, folder / "facts")
    for part in initial_model(CompareConfig(output_dir="out", layers=1, hidden_size=32), facts, "llama", 0):
        part.save_pretrained(folder / model)
