"""The models that systems start from: one per seed and architecture, so that systems differ in nothing else."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)

from bico_ext.comparison.config import HEADS, CompareConfig
from bico_ext.comparison.resume import Checkpoints, remove_checkpoints, train
from bico_ext.comparison.trainer import make_trainer
from bico_ext.comparison.training_data import select_facts
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import FactData
from bico_ext.generation.greedy import encode_prompts
from bico_ext.models import checkpoints
from bico_ext.models.attach import attach
from bico_ext.models.tokenization import check_context, check_ids, encode_prompt, encode_text, train_word_tokenizer


def initial_model(config: CompareConfig, facts: FactData, family: str, seed: int) -> tuple[Any, Any]:
    """Return the model before any training, and its tokenizer; the same for every system of a family and a seed.

    The vocabulary of the tiny model comes from the training texts alone, so a word that occurs only in test prompts is
    unknown to it.

    Args:
        config: `model`, `layers` and `hidden_size` describe the model.
        facts: the data set, as `select_facts` returns it.
        family: architecture of the tiny model, "llama" or "glm"; other models have their own.
        seed: the seed of the weights.
    """
    set_seed(seed)
    if config.model != "tiny":
        return checkpoints.load(config.model, device="cpu", merge_adapters=True)
    tokenizer = train_word_tokenizer([example.text for example in (*facts.train, *facts.pretraining)])
    width = cast(int, config.hidden_size)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width * 4,
        "num_hidden_layers": cast(int, config.layers),
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": tokenizer.model_max_length,
        # transformers' 0.02 suits widths in the thousands: at width 128, denoising learned later and reversed less.
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model: PreTrainedModel
    if family == "glm":
        model = GlmForCausalLM(GlmConfig(**shape, head_dim=width // HEADS))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    return model, tokenizer


def starting_model(config: CompareConfig, facts: FactData, family: str, seed: int) -> tuple[Any, Any]:
    """Return the model that the training of a system starts from, pre-trained if the setting says so; its tokenizer."""
    if config.setting == "pretrained":
        return checkpoints.load(pretrained_folder(config, family, seed), device="cpu")
    return initial_model(config, facts, family, seed)


def pretrain(config: CompareConfig, family: str, seed: int, callback: TrainerCallback) -> None:
    """Pre-train the initial model of a family and a seed by next-token prediction, and save it for all systems.

    The folder gets its final name only after training, so a folder of that name holds a finished model. If an earlier
    call was killed, its training goes on.
    """
    facts = select_facts(config, load_facts(config.data))
    model, tokenizer = initial_model(config, facts, family, seed)
    folder = partly_pretrained(config, family, seed)
    trainer = make_trainer(
        dataclasses.replace(
            config, steps=config.pretrain_steps, learning_rate=config.pretrain_learning_rate, lora=False
        ),
        "ntp",
        0.0,
        model,
        tokenizer,
        facts.pretraining,
        seed,
        folder,
    )
    trainer.add_callback(callback)
    trainer.add_callback(Checkpoints(config.checkpoint_minutes))
    train(trainer)
    trainer.save_model()
    remove_checkpoints(folder)
    folder.rename(pretrained_folder(config, family, seed))


def pretrained_folder(config: CompareConfig, family: str, seed: int) -> Path:
    """Return the folder of the finished pre-trained model of a family and a seed."""
    return Path(config.output_dir) / "pretrained" / f"{family}-seed{seed}"


def partly_pretrained(config: CompareConfig, family: str, seed: int) -> Path:
    """Return the folder in which the initial model of a family and a seed is being pre-trained."""
    return pretrained_folder(config, family, seed).with_suffix(".partial")


def check_model(config: CompareConfig, facts: FactData) -> None:
    """Raise an error now, not after hours of training, if the model cannot be used with the data set.

    Raises:
        OSError: the model cannot be loaded.
        TypeError: the model cannot be attached.
        ValueError: a text or a question exceeds the model's context or has ids that the model lacks.
    """
    model, tokenizer = initial_model(config, facts, "llama", config.seeds[0])
    prompts = [example.prompt for task in facts.tasks.values() for example in task.examples]
    encode_prompts(model, tokenizer, prompts, config.max_new_tokens)
    encoded = [
        (example.text, encode_text(tokenizer, example.text))
        for example in (*facts.train, *facts.pretraining, *facts.other_order)
    ]
    encoded += [
        (text, encode_prompt(tokenizer, text))
        for task in facts.tasks.values()
        for question in task.examples
        if question.distractor is not None  # only these are scored by likelihood
        for text in (question.prompt + answer for answer in (*question.accepted, question.distractor))
    ]
    for text, ids in encoded:
        check_ids(model, ids, f"a text of data {config.data!r}, {text!r:.80}")
        check_context(model, len(ids), f"a text of data {config.data!r}, {text!r:.80},", "shorten it or leave it out")
    attach(model)  # less than a second for 135M parameters
