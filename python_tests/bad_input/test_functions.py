"""The matrix of bad input at the public functions: what is given in place of what is needed, and what is then said.

The op's own table is in ops/test_attention_contract.py; here are objects that are no tensors at all.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import config, some_rows, tiny_llama, write_facts_and_model
from torch import nn
from transformers import TrainingArguments

import bico_ext
from bico_ext.evaluation import intervals, likelihood, metrics
from bico_ext.facts import invented, own, synthetic
from bico_ext.facts.types import Example
from bico_ext.models import checkpoints
from bico_ext.objectives import registry
from bico_ext.training.trainer import BicoTrainer


class Good:
    """What the functions need, made once."""

    def __init__(self, folder: Path) -> None:
        write_facts_and_model(folder)
        self.folder = folder
        self.facts = bico_ext.load_facts(folder / "facts")
        self.model, self.tokenizer = checkpoints.load(folder / "model")
        self.attached = bico_ext.attach(checkpoints.load(folder / "model")[0])
        self.encoder = bico_ext.attach(checkpoints.load(folder / "model")[0], bidirectional=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good(tmp_path_factory.mktemp("bad_input"))


def op(**changed: Any) -> Callable[[Good], Any]:
    """A call of the op with some arguments changed."""
    q, table = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2)
    arguments = {"q": q, "k": q, "v": q, "cos": table, "sin": table} | changed
    first = [arguments.pop(name) for name in ("q", "k", "v", "cos", "sin")]
    return lambda good: bico_ext.split_triangle_attention(*first, **arguments)


def generate(*given: Any, **options: Any) -> Callable[[Good], Any]:
    """A call of `generate` with a prompt, or with other arguments in front."""

    def call(good: Good) -> Any:
        defaults = (good.model, good.tokenizer, ["The name"])
        return bico_ext.generate(*given, *defaults[len(given) :], progress=False, **options)

    return call


def prompts(value: Any) -> Callable[[Good], Any]:
    return lambda good: bico_ext.generate(good.model, good.tokenizer, value, progress=False)


def infill(gaps: Any = (("a", "b"),), **options: Any) -> Callable[[Good], Any]:
    return lambda good: bico_ext.generate_infill(good.attached, good.tokenizer, gaps, progress=False, **options)


def evaluate(tasks: Callable[[Good], Any], **options: Any) -> Callable[[Good], Any]:
    return lambda good: bico_ext.evaluate(good.model, good.tokenizer, tasks(good), progress=False, **options)


def settings(**options: Any) -> Callable[[Good], Any]:
    return lambda good: config(good.folder / "out", **options)


def train(rows: Any = None, model: Any = None, **options: Any) -> Callable[[Good], Any]:
    def call(good: Good) -> Any:
        trained = tiny_llama() if model is None else model
        return BicoTrainer(trained, config(good.folder / "out", **options), some_rows() if rows is None else rows)

    return call


def one_answer(*arguments: Any, **options: Any) -> list[str]:
    return ["the answer"]


def one_text(model: Any, tokenizer: Any, asked: list[str], **options: Any) -> str:
    return "a" * len(asked)


def no_texts(model: Any, tokenizer: Any, asked: list[str], **options: Any) -> list[Any]:
    return [None] * len(asked)


NO_MODEL = "model must be a transformers PreTrainedModel or a PEFT model around one, got "
REFUSED: dict[str, list[tuple[Callable[[Good], Any], type[Exception], str]]] = {
    "attach": [
        (lambda good: bico_ext.attach(None), TypeError, f"{NO_MODEL}NoneType"),  # type: ignore[type-var]
        (lambda good: bico_ext.attach("llama"), TypeError, f"{NO_MODEL}str"),  # type: ignore[type-var]
        (lambda good: bico_ext.attach(type(good.model)), TypeError, f"{NO_MODEL}type"),
        (lambda good: bico_ext.attach(good.model, mirror=False), ValueError, "mirror=False needs bidirectional=True"),
    ],
    "detach": [
        (lambda good: bico_ext.detach(good.model), RuntimeError, "LlamaForCausalLM is not attached; call attac")
    ],
    "check_attached": [
        (lambda good: bico_ext.check_attached(good.model), RuntimeError, "LlamaForCausalLM is not attached; call"),
        (lambda good: bico_ext.check_attached(None), TypeError, f"{NO_MODEL}NoneType"),  # type: ignore[arg-type]
    ],
    "split_triangle_attention": [
        (op(q=None), RuntimeError, "q must be a tensor, got NoneType"),
        (op(k=[[0.0]]), RuntimeError, "k must be a tensor, got list"),
        (op(v=torch.zeros(1, 1, 2, 2).numpy()), RuntimeError, "v must be a tensor, got ndarray"),
        (op(cos=None), RuntimeError, "cos must be a tensor, got NoneType"),
        (op(sin=1.0), RuntimeError, "sin must be a tensor, got float"),
        (op(span_ids=[[0, 0]]), RuntimeError, "span_ids must be a tensor, got list"),
        (op(cu_seqlens=[0, 2]), RuntimeError, "cu_seqlens must be a tensor, got list"),
        (op(window="2"), RuntimeError, "window must be an int or None, got '2'"),
        (op(backend="cuda"), ValueError, "backend must be one of 'auto', 'compiled', 'flex', 'portable', got 'cuda'"),
    ],
    "load_facts": [
        (lambda good: bico_ext.load_facts(None), TypeError, "a path or a name, got NoneType"),  # type: ignore[arg-type]
        (lambda good: bico_ext.load_facts(b"x"), TypeError, "a path or a name, got bytes b'x'"),  # type: ignore[arg-type]
        (lambda good: bico_ext.load_facts(""), ValueError, "a path or a name, got an empty string; use '.'"),
        (lambda good: bico_ext.load_facts("/nowhere"), FileNotFoundError, "got '/nowhere': no such file or folder"),
        (
            lambda good: bico_ext.load_facts(good.folder / "model"),
            FileNotFoundError,
            "lacks train.jsonl; write your own",
        ),
    ],
    "generate": [
        (
            generate("llama"),
            TypeError,
            "model must be a transformers model, got str; load it with AutoModelForCausalLM",
        ),
        (
            lambda good: generate(good.tokenizer, good.model)(good),
            TypeError,
            "model must be a transformers model, got ",
        ),
        (
            lambda good: generate(good.model, None)(good),
            TypeError,
            "tokenizer must be a transformers tokenizer, got No",
        ),
        (prompts("The name"), TypeError, "prompts must be an iterable of texts, got str 'The name'; use [text]"),
        (prompts(None), TypeError, "prompts must be an iterable of texts, got NoneType"),
        (prompts([1, 2]), TypeError, "prompts must hold texts, got int 1"),
        (prompts([None]), TypeError, "prompts must hold texts, got NoneType"),
        (prompts(["The " * 600]), ValueError, "but the model's context is 512"),
        (generate(max_new_tokens=0), ValueError, "max_new_tokens must be at least 1, got 0"),
        (generate(max_new_tokens=1.5), TypeError, "max_new_tokens must be an integer, at least 1, got 1.5"),
        (generate(max_new_tokens="4"), TypeError, "max_new_tokens must be an integer, at least 1, got '4'"),
        (generate(batch_size=-1), ValueError, "batch_size must be at least 1, got -1"),
        (generate(batch_size=True), TypeError, "batch_size must be an integer, at least 1, got True"),
        (generate(distributed=True), RuntimeError, "distributed=True needs a process group, got none"),
    ],
    "generate_infill": [
        (lambda good: bico_ext.generate_infill(good.model, good.tokenizer, []), RuntimeError, "is not attached; call"),
        (lambda good: bico_ext.generate_infill(good.attached, None, []), TypeError, "tokenizer must be a transformers"),  # type: ignore[arg-type]
        (infill("ab"), TypeError, "gaps must hold pairs of texts, (prefix, suffix), got 'a'"),
        (infill([("a", "b", "c")]), TypeError, "gaps must hold pairs of texts, (prefix, suffix), got ('a', 'b', 'c')"),
        (infill([("a", None)]), TypeError, "gaps must hold pairs of texts, (prefix, suffix), got ('a', None)"),
        (infill(lengths=4), TypeError, "lengths must hold numbers of tokens, such as range(1, 9), got 4"),
        (infill(lengths=[1.5]), TypeError, "lengths must hold numbers of tokens, such as range(1, 9), got [1.5]"),
        (infill(lengths=[]), ValueError, "lengths must hold numbers of tokens, each at least 1, got []"),
        (infill(lengths=[0, 1]), ValueError, "lengths must hold numbers of tokens, each at least 1, got [0, 1]"),
        (infill(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
    ],
    "evaluate": [
        (
            evaluate(lambda good: good.facts),
            TypeError,
            "tasks must map names to tasks, as load_facts(...).tasks does, g",
        ),
        (
            evaluate(lambda good: "facts"),
            TypeError,
            "tasks must map names to tasks, as load_facts(...).tasks does, got",
        ),
        (evaluate(lambda good: {}), ValueError, "tasks must have at least one task, got none"),
        (evaluate(lambda good: good.facts.tasks, max_new_tokens=-3), ValueError, "max_new_tokens must be at least 1"),
        (evaluate(lambda good: good.facts.tasks, generator=one_answer), ValueError, "one text for each of the "),
        (evaluate(lambda good: good.facts.tasks, generator=no_texts), ValueError, "one text for each of the "),
        (evaluate(lambda good: good.facts.tasks, generator=one_text), ValueError, "one text for each of the "),
    ],
    "BicoConfig": [
        (settings(objective="x"), ValueError, "objective must be one of 'ntp', 'bico', "),
        (settings(objective=None), ValueError, "objective must be one of 'ntp', 'bico', "),
        (settings(mixing_probability="0.5"), TypeError, "mixing_probability must be a number, in [0, 1], got '0.5'"),
        (settings(mixing_probability=2), ValueError, "mixing_probability must be in [0, 1], got 2"),
        (settings(mask_rate=None), ValueError, "mask_rate must be in (0, 1] or 'uniform', got None"),
        (settings(infill_spans=1.5), TypeError, "infill_spans must be an integer, at least 1, got 1.5"),
        (settings(permute_segments=2.5), TypeError, "permute_segments must be an integer, at least 2, got 2.5"),
        (settings(max_length=2.5), TypeError, "max_length must be an integer, in [2, 2**31), got 2.5"),
        (
            settings(learning_rate="1e-4"),
            TypeError,
            "learning_rate must be a number, 0 or more, and finite, got '1e-4'",
        ),
        (settings(abi_positions="x"), ValueError, "the positions of 'abi' must be '2d' or 'in-place', got 'x'"),
        (settings(long_rows="x"), ValueError, "long_rows must be 'cut' or 'windows', got 'x'"),
        (settings(entities_file="/nowhere"), FileNotFoundError, "entities_file /nowhere: no such file"),
        (settings(nonsense=1), TypeError, "unexpected keyword argument 'nonsense'"),
    ],
    "BicoTrainer": [
        (
            train(model=nn.Linear(2, 2)),
            TypeError,
            "model must be a transformers model, or its name or path, got Linear",
        ),
        (train(model=3), TypeError, "model must be a transformers model, or its name or path, got int"),
        (lambda good: BicoTrainer(tiny_llama(), "out"), TypeError, "args must be a BicoConfig, got str"),  # type: ignore[arg-type]
        (
            lambda good: BicoTrainer(tiny_llama(), TrainingArguments(str(good.folder / "out"), use_cpu=True)),  # type: ignore[arg-type]
            TypeError,
            "args must be a BicoConfig, got TrainingArguments; it has the same fields and more",
        ),
        (train("facts.jsonl"), TypeError, "train_dataset must be a list, torch Dataset or datasets.Dataset of rows"),
        (train({"input_ids": [[2, 7]]}), TypeError, "got dict; give one of its splits"),
        (train([]), ValueError, "train_dataset is empty"),
        (
            train([1, 2]),
            ValueError,
            "train_dataset[0] must be a dict with 'input_ids', 'messages', 'text', or 'prompt'",
        ),
        (train([{"text": "Ada"}]), ValueError, "train_dataset[0] is text, which needs a tokenizer"),
        (train([{"input_ids": "abc"}]), ValueError, "input_ids must be a sequence of token ids, got str"),
        (train([{"input_ids": [2.5, 7, 3]}]), ValueError, "input_ids must be integers, got torch.float32"),
        (train([{"input_ids": [2, 700, 3]}]), ValueError, "ids must be in [0, 40), the ids of the model, got 2 to 700"),
        (train([{"input_ids": [2, -7, 3]}]), ValueError, "ids must be in [0, 40), the ids of the model, got -7 to 3"),
        (train([{"input_ids": [7] * 100}]), ValueError, "needs 100 tokens, but the model's context is 32"),
        (train([{"input_ids": []}]), ValueError, "train_dataset[0] has nothing to predict"),
        (train(placeholder_id=-1), ValueError, "placeholder_id must be in [0, 40), the ids of the model, got -1"),
        (train(placeholder_id=1.5), ValueError, "placeholder_id must be in [0, 40), the ids of the model, got 1.5"),
        (train(placeholder_id="x"), ValueError, "placeholder_id must be in [0, 40), the ids of the model, got 'x'"),
        (train(placeholder_id=None), ValueError, "placeholder_id is needed for objective='bico'"),
    ],
    "what these are made of": [
        (lambda good: registry.bind("x"), ValueError, "objective must be one of 'ntp', 'bico', "),
        (lambda good: metrics.contains("a", "b", "both"), ValueError, "answer must be 'name' or 'description', got"),  # type: ignore[arg-type]
        (lambda good: intervals.wilson_interval(3, 2), ValueError, "successes must be between 0 and n = 2, got 3"),
        (lambda good: intervals.wilson_interval(0, 0), ValueError, "n must be at least 1, got 0"),
        (lambda good: intervals.clustered_interval([[]]), ValueError, "two or more clusters of one or more trials"),
        (
            lambda good: likelihood.log_probabilities(good.model, good.tokenizer, ["Ada wrote it."]),  # type: ignore[list-item]
            TypeError,
            "examples must hold bico_ext.facts.types.Example, got 'Ada wrote it.'",
        ),
        (
            lambda good: likelihood.log_probabilities(good.encoder, good.tokenizer, [Example("Ada", " wrote it.")]),
            ValueError,
            "model is attached with bidirectional=True, so it would see the answers that it scores",
        ),
        (lambda good: synthetic.generate(names_first=-1), ValueError, "names_first must be at least 0, got -1"),
        (lambda good: synthetic.generate(names_first=10**6), ValueError, "must be at most 15435, got 1000160"),
        (lambda good: invented.generate(names_first=10**6), ValueError, "sum to 1 to 40, got 1000000 and 20"),
        (
            lambda good: own.write_facts(good.facts, good.folder / "model" / "config.json"),
            NotADirectoryError,
            "model/config.json",
        ),
        (lambda good: checkpoints.load(""), ValueError, "expected a path or a name, got an empty string"),
    ],
}


def test_each_public_name_is_in_the_table() -> None:
    assert set(bico_ext.__all__) - {"__version__"} <= set(REFUSED)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*row, id=f"{name}-{i}") for name, rows in REFUSED.items() for i, row in enumerate(rows)],
)
def test_bad_input_is_named(call: Callable[[Good], Any], error: type[Exception], message: str, good: Good) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(good)
