"""The comparison: trains the same initial model with each system and evaluates it on the same questions.

Runs are spread over `jobs` processes that share the cores, by default one a core with one thread each: on models of
this size a second thread hardly helps a run, and a run with one thread does not stall when the machine has other work.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from bico_ext import environment
from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.processes import cores, run_all
from bico_ext.comparison.run import entities, facts_read, initial_model, pretrain, pretrained_folder, run, run_folder
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.evaluation.ceiling import reachable
from bico_ext.evaluation.leakage import leakage
from bico_ext.facts.loader import load_facts
from bico_ext.facts.types import FactData
from bico_ext.files import make_folder, write_json, write_json_lines
from bico_ext.generation.greedy import encode_prompts
from bico_ext.models.tokenization import check_context, encode_prompt, encode_text
from bico_ext.reports.records import Data, Failure, Results, Run, data_from_json, run_from_json, to_json

LOCK = ".lock"  # in the output folder, while it is written to


def compare(config: CompareConfig) -> Results:
    """Train and evaluate every system under every seed; write and return the results.

    Args:
        config: what to run.

    Returns:
        What `results.json` holds. Finished runs are in it whatever became of the others.

    Raises:
        FileExistsError: the output folder holds a run, and `config.resume` is not set or its settings are others; or
            another comparison is writing to it.
        ValueError: the data has no training examples, no tasks, not what the setting or a system reads, or training
            texts that give an answer away; the model's tokenizer has no padding token; a question does not fit.
    """
    whole = load_facts(config.data)
    facts = facts_read(config, whole)
    _check_facts(config, facts)
    _check_model(config, facts)
    data = data_from_json({**reachable(facts), "digest": whole.digest()})
    out = make_folder(config.output_dir)
    _claim(out, config, whole.digest())  # so that a foreign folder gets no lock
    with _alone(out):
        settings = _claim(out, config, whole.digest())  # another comparison may have ended since
        write_json(out / "settings.json", settings)
        return _complete(out, config, data)


def _complete(out: Path, config: CompareConfig, data: Data) -> Results:
    """Make the runs that are missing, and the results of all that are there."""
    missing = [
        (name, seed) for seed in config.seeds for name in config.systems if not _results_of(config, name, seed).exists()
    ]
    jobs = config.jobs or max(1, min(cores(), len(missing)))
    failures = _pretrain_all(config, missing, jobs) if config.setting == "pretrained" else {}
    missing = [one for one in missing if one not in failures]
    if missing:
        arguments = [(config, name, seed) for name, seed in missing]
        died = run_all(_work, arguments, steps=cast(int, config.steps), jobs=jobs, label=f"{len(missing)} runs")
        failures |= {one: error for one, error in zip(missing, died, strict=True) if error is not None}

    runs, predictions = _collect(out)
    results = Results(
        tuple(runs),
        environment={**environment.describe(), "jobs": jobs},
        settings=config.settings,
        data=data,
        failures=tuple(Failure(name, seed, error) for (name, seed), error in failures.items()),
    )
    write_json_lines(out / "predictions.jsonl", predictions)
    write_json(out / "results.json", results.to_json())
    return results


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder, until this one ends or dies."""
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"output_dir {out} is being written to by another comparison; wait for it, or name another folder "
            "(bico report merges the two)"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _pretrain_all(config: CompareConfig, missing: list[tuple[str, int]], jobs: int) -> dict[tuple[str, int], str]:
    """The pre-trained models that the missing runs start from; what died, by run that therefore cannot start."""
    starts = sorted({(SYSTEMS[name].family, seed) for name, seed in missing})
    starts = [start for start in starts if not pretrained_folder(config, *start).exists()]
    if not starts:
        return {}
    died = run_all(
        pretrain,
        [(config, family, seed) for family, seed in starts],
        steps=config.pretrain_steps,
        jobs=jobs,
        label=f"{len(starts)} pre-trained",
    )
    errors = {start: error for start, error in zip(starts, died, strict=True) if error is not None}
    return {
        (name, seed): errors[SYSTEMS[name].family, seed]
        for name, seed in missing
        if (SYSTEMS[name].family, seed) in errors
    }


def _work(config: CompareConfig, name: str, seed: int, callback: TrainerCallback) -> None:
    finished = run(config, name, seed, [callback])
    records = [{**to_json(one.run), "predictions": one.predictions} for one in finished]
    write_json(_results_of(config, name, seed), records)


def _results_of(config: CompareConfig, name: str, seed: int) -> Path:
    place = run_folder(config, name, seed)
    return place.with_name(f"{place.name}.json")


def _collect(out: Path) -> tuple[list[Run], list[dict[str, Any]]]:
    """The finished runs in the order of the systems, and their predictions."""
    records = [
        record for file in (out / "runs").glob("*.json") for record in json.loads(file.read_text(encoding="utf-8"))
    ]
    order = list(SYSTEMS)
    records.sort(key=lambda one: (order.index(one["system"].split(",")[0]), one["system"], one["seed"]))
    return [run_from_json(one) for one in records], [row for one in records for row in one["predictions"]]


def _check_facts(config: CompareConfig, facts: FactData) -> None:
    """Find what the systems lack in the data, and texts that give answers away."""
    lacking = [name for name in config.systems if SYSTEMS[name].other_order and not facts.other_order]
    if lacking:
        raise ValueError(
            f"data {config.data!r} does not have its facts in the other order, as {', '.join(lacking)} needs "
            "(other_order.jsonl in a folder of your own); leave it out of systems"
        )
    untold = [name for name in config.systems if SYSTEMS[name].entities and not entities(facts)]
    if untold:
        raise ValueError(
            f"data {config.data!r} does not name the entities of its questions, as {', '.join(untold)} needs (a key "
            "'entity' in questions of your own); leave it out of systems"
        )
    leaks = leakage(facts)
    if leaks:
        task, question, text = leaks[0]
        raise ValueError(
            f"data {config.data!r} gives {len(leaks)} answers away in its training texts; the first is that of {task} "
            f"to {question.prompt!r:.80}, in {text!r:.120}; leave such texts out"
        )


def _check_model(config: CompareConfig, facts: FactData) -> None:
    """Find a model that cannot be loaded or a question that does not fit now, not after hours of training."""
    model, tokenizer = initial_model(config, facts, "llama", config.seeds[0])
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of model {config.model} has no padding token, which batches and bico's placeholder need; "
            "set one and save it with the model"
        )
    prompts = [example.prompt for task in facts.tasks.values() for example in task.examples]
    encode_prompts(model, tokenizer, prompts, config.max_new_tokens)
    lengths = [
        (example.text, len(encode_text(tokenizer, example.text)))
        for example in (*facts.train, *facts.pretraining, *facts.other_order)
    ]
    lengths += [
        (text, len(encode_prompt(tokenizer, text)))
        for task in facts.tasks.values()
        for question in task.examples
        if question.distractor is not None  # others are not scored by their likelihood
        for text in (question.text, question.prompt + question.distractor)
    ]
    for text, length in lengths:
        check_context(model, length, f"a text of data {config.data!r}, {text!r:.80},", "shorten it or leave it out")


def _claim(out: Path, config: CompareConfig, digest: str) -> dict[str, Any]:
    """The settings to write into the folder, or why it is not free. Settings that finished nothing do not hold it."""
    file = out / "settings.json"
    settings = json.loads(json.dumps({**config.settings, "facts": digest}))  # as they will be read back
    pretrained = [one for one in (out / "pretrained").glob("*/config.json") if one.parent.suffix != ".partial"]
    if pretrained or any((out / "runs").glob("*.json")):
        if not config.resume:
            raise FileExistsError(
                f"output_dir {out} already holds a run; add --resume to keep its finished runs and add the missing "
                "ones, or name another folder"
            )
        held = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in settings if held.get(name) != settings[name]]
        if changed:
            differences = ", ".join(
                "the facts have changed" if name == "facts" else f"{name} {held.get(name)!r} -> {settings[name]!r}"
                for name in changed
            )
            raise FileExistsError(
                f"output_dir {out} holds runs with other settings ({differences}); name another folder"
            )
    elif any(one.name != LOCK for one in out.iterdir()) and not file.exists():
        raise FileExistsError(f"output_dir {out} is not empty and holds no comparison; name another folder")
    return settings
