"""What does the flip do in fine-tuning if only some heads of a real Llama have it? Runs one cell.

    python benchmarks/experiments/flip_in_some_heads.py --model MODEL --data DIR --flip others-10 --seed 0

The heads are ranked by the share of the attention that they give to the token before, in causal passes of the model
before fine-tuning over 24 sequences of 128 tokens of the facts. "looking-back-10" flips the tenth that is ranked
highest, "others-10" all others, and "any-10" as many heads at random. "all" is the control: the attention of `infill`.

Training is that of `benchmarks/real_llama.py`, but layers in which only some heads flip compute dense attention in
float32, not with the op. A cell takes half an hour on one core, and a killed one goes on from its last checkpoint. Its
record is added to OUTPUT, by default the committed results; a cell that is there is not run again.
"""

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

import real_llama
from real_llama_cells.matrix import STAND_IN, Cell
from real_llama_cells.records import cell_to_json, finished_record, read_cells

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.run import run, run_folder
from bico_ext.comparison.training_data import select_facts
from bico_ext.facts.loader import load_facts
from bico_ext.files import write_json_lines
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
ALL = "all"
SEQUENCES, LENGTH = 24, 128


class FlipDuringTraining(TrainerCallback):
    """Enters a partial flip when training begins, which is after the trainer's proof that every layer flips."""

    def __init__(self, flip: PartialFlip) -> None:
        self.flip = flip

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        self.flip.__enter__()

    def on_train_end(self, *arguments: Any, **others: Any) -> None:
        self.flip.__exit__()


def flipped_heads(config: CompareConfig, flip: str) -> Tensor:
    """Return bool [layers, heads, 1]: the heads of the model before fine-tuning that `flip` names."""
    model, tokenizer = checkpoints.load(config.model, device="cpu")
    if flip == ALL:
        shape = model.config.get_text_config()
        return torch.ones(shape.num_hidden_layers, shape.num_attention_heads, 1, dtype=torch.bool)
    texts = select_facts(config, load_facts(config.data)).train
    sequences = sequences_by_length(model, tokenizer, texts, [LENGTH], samples=SEQUENCES)[LENGTH]
    heads = heads_by_distance(attach(model).eval(), sequences, progress=True)
    to_the_token_before = torch.tensor(heads["mass"]["causal: past"])[..., 0]
    return head_tables(to_the_token_before)[FLIPS[flip]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of SmolLM2-135M-Instruct as a Llama checkpoint")
    parser.add_argument("--data", required=True, help="the folder of the facts of Berglund et al.")
    parser.add_argument("--flip", required=True, choices=[ALL, *FLIPS], help="the heads that flip")
    parser.add_argument("--system", default="infill", choices=["infill", "bico"], help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=STAND_IN, help="peak rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=real_llama.RESULTS / "heads.jsonl", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=real_llama.WORK, help="for checkpoints (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.jobs = 1
    cell = Cell("full", options.system, options.learning_rate, options.seed)
    key = {"flip": options.flip, "cell": cell_to_json(cell)}
    finished = read_cells(options.output)
    if any(key.items() <= record.items() for record in finished):
        parser.error(f"{options.output} already has {cell.name} with the flip in {options.flip}")
    config = real_llama.config_of(cell, options)
    config = dataclasses.replace(config, output_dir=f"{config.output_dir}/{options.flip}")
    data, _ = real_llama.prepared(config)
    callback = FlipDuringTraining(PartialFlip(flipped_heads(config, options.flip)))
    started = time.perf_counter()
    result = run(config, cell.system, cell.seed, [callback])[0].run
    record = {**key, **finished_record(cell, config, data, result, time.perf_counter() - started)}
    write_json_lines(options.output, [*finished, record])
    shutil.rmtree(run_folder(config, cell.system, cell.seed), ignore_errors=True)
    for task, scores in result.tasks.items():
        print(f"{task}: contains {scores.contains:.2f}, exact match {scores.exact_match:.2f}")


if __name__ == "__main__":
    main()
