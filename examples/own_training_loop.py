"""Trains a tiny Llama in a plain PyTorch loop that alternates next-token prediction with BICO denoising.

python examples/own_training_loop.py --steps 40
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bico_ext import attach
from bico_ext.models.tokenization import train_word_tokenizer
from bico_ext.objectives.causal import ntp
from bico_ext.objectives.denoising import bico
from bico_ext.objectives.training_sequence import pad

TEXTS = ["Ada Lovelace wrote the first program.", "Grace Hopper built the first compiler."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps, of both kinds together (default: 40)")
    steps = parser.parse_args().steps
    torch.manual_seed(0)

    tokenizer = train_word_tokenizer(TEXTS)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = attach(LlamaForCausalLM(config))  # from now on the model takes span_ids; without them it stays stock
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)  # decides which tokens are hidden
    sequences = [torch.tensor(tokenizer(text)["input_ids"]) for text in TEXTS]

    for step in range(steps):
        if step % 2 == 0:
            name, rows = "ntp", [ntp(ids, generator) for ids in sequences]
        else:
            options = {"placeholder_id": tokenizer.pad_token_id, "special_ids": tokenizer.all_special_ids}
            name, rows = "bico", [bico(ids, generator, mask_rate=0.3, **options) for ids in sequences]
        # input_ids, labels and span_ids, each [B, S]. The labels are unshifted: the model shifts them itself.
        batch = pad(rows, tokenizer.pad_token_id)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < 2 or step >= steps - 2:
            print(f"step {step + 1}, {name}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
