"""What each of two processes runs for test_distributed_evaluation.py: `evaluation_processes.py FOLDER`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from greedy_answers import NEW_TOKENS, make_model, make_tokenizer
from torch.distributed.fsdp import fully_shard

from bico_ext.cli.main import main
from bico_ext.evaluation.evaluate import Evaluation, evaluate
from bico_ext.facts.types import Question, Task

ANSWERS = [" symphony", " not known", " a composer", " who wrote it", " Ada Byron"]
PROMPTS = [
    "Ada Byron",
    "the first symphony, it was",
    "She",
    "then it was not",
    "a",
]  # three batches, which 2 cannot share
QUESTIONS = [Question(prompt, answer, distractor=" then") for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
TASKS = {"names": Task("names", "name", tuple(QUESTIONS)), "again": Task("again", "name", tuple(QUESTIONS[:1]))}


def evaluated(model: Any, **options: Any) -> Evaluation:
    settings = {"max_new_tokens": NEW_TOKENS, "batch_size": 2, "likelihood": True, "progress": False}
    return evaluate(model, make_tokenizer(), TASKS, **(settings | options))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(evaluation)))


def together(model: Any) -> dict[str, Any]:
    with patch.object(type(model), "generate", autospec=True, side_effect=type(model).generate) as generate:
        evaluation = evaluated(model, distributed=True)
    one_batch = evaluated(model, distributed=True, batch_size=8)  # which leaves nothing for the second process
    return {
        "evaluation": as_json(evaluation),
        "batches": sum(not {"cache", "past_key_values"} & call.kwargs.keys() for call in generate.call_args_list),
        "one batch": as_json(one_batch)["predictions"],
    }


def sharded(model: Any) -> dict[str, Any]:
    """All processes answer all questions, because each has only a part of the weights."""
    fully_shard(model)
    try:
        evaluated(model, distributed=True)
    except ValueError as error:
        return {"evaluation": as_json(evaluated(model)), "error": str(error)}
    return {}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = make_model(make_tokenizer())
    results = {"together": together(model)}
    if rank == 0:
        results["alone"] = {"evaluation": as_json(evaluated(model))}
    results["sharded"] = sharded(model)
    (folder / f"results of {rank}.json").write_text(json.dumps(results))

    command = ["evaluate", "--model", str(folder / "model"), "--data", str(folder / "facts")]
    command += ["--output-dir", str(folder / "by two"), "--batch_size", "4"]
    with patch("torch.distributed.init_process_group"):  # the command finds the group of the calls above
        assert main(command) == 1, "each process would answer all questions"
        assert main([*command, "--distributed"]) == 0
    assert not torch.distributed.is_initialized()
