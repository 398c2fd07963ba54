"""What does the flip do in fine-tuning if only some heads of a real Llama have it? Runs one cell.

    python benchmarks/experiments/flip_in_some_heads.py --model MODEL --data DIR --flip others-10 --seed 0

The heads are ranked by the share of the attention that they give to the token before, in causal passes of the model
before fine-tuning over 24 sequences of 128 tokens of the facts. All other settings are those of
`benchmarks/real_llama.py`, so the cell compares with those of `infill` (all heads flip) and `infill-naive` (none does).
"others-10" flips all but the tenth that is ranked highest. The record, the answers and a table go to a folder of OUTPUT
of that name.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

import real_llama
from real_llama_matrix import STAND_IN, Cell

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.training_data import select_facts
from bico_ext.facts.loader import load_facts
from bico_ext.files import make_folder
from bico_ext.models import checkpoints
from bico_ext.models.attach import attach
from bico_ext.probing.heads import heads_by_distance
from bico_ext.probing.partial_flip import PartialFlip, head_tables
from bico_ext.probing.texts import sequences_by_length

FLIPS = {  # the tables of `head_tables`
    f"{heads.replace(' ', '-')}-{percent}": f"heads: {heads}, {percent} %"
    for heads in ("looking back", "others", "any")
    for percent in (10, 25, 50)
}
SEQUENCES, LENGTH = 24, 128


class DuringTraining(TrainerCallback):
    """Enters a partial flip when training begins, which is after the trainer's proof that every layer flips."""

    def __init__(self, flip: PartialFlip) -> None:
        self.flip = flip

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        self.flip.__enter__()

    def on_train_end(self, *arguments: Any, **others: Any) -> None:
        self.flip.__exit__()


def flipped_heads(config: CompareConfig, flip: str) -> Tensor:
    """Return bool [layers, heads, 1]: the heads of the model before fine-tuning that `flip` of `FLIPS` names."""
    model, tokenizer = checkpoints.load(config.model, device="cpu")
    texts = select_facts(config, load_facts(config.data)).train
    sequences = sequences_by_length(model, tokenizer, texts, [LENGTH], samples=SEQUENCES)[LENGTH]
    heads = heads_by_distance(attach(model).eval(), sequences, progress=True)
    to_the_token_before = torch.tensor(heads["mass"]["causal: past"])[..., 0]
    return head_tables(to_the_token_before)[FLIPS[flip]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of SmolLM2-135M-Instruct as a Llama checkpoint")
    parser.add_argument("--data", required=True, help="the folder of the facts of Berglund et al.")
    parser.add_argument("--flip", required=True, choices=FLIPS, help="the heads that flip")
    parser.add_argument("--system", default="infill", choices=["infill", "bico"], help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=STAND_IN, help="peak rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=real_llama.RESULTS / "heads", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=real_llama.WORK, help="for checkpoints (default: %(default)s)")
    options = parser.parse_args(arguments)
    cell = Cell("full", options.system, options.learning_rate, options.seed)
    options.jobs = 1
    config = real_llama.config_of(cell, options)
    config = dataclasses.replace(config, output_dir=f"{config.output_dir}/{options.flip}")
    data, _ = real_llama.prepared(config)
    callback = DuringTraining(PartialFlip(flipped_heads(config, options.flip)))
    real_llama.work(cell, config, data, make_folder(options.output / options.flip), callback)


if __name__ == "__main__":
    main()
