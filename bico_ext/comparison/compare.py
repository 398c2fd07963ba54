"""The comparison: trains the same initial model with each system and evaluates it on the same questions.

The runs are spread over `jobs` processes that share the cores, and the GPU if there is one. By default, each core has
one process with one thread: tiny models gain little from a second thread, and a run with one thread does not stall on a
busy machine. A large model uses all cores well and needs much memory, so its runs come one after the other.
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
from bico_ext.comparison.initial_models import check_model, partly_pretrained, pretrain, pretrained_folder
from bico_ext.comparison.processes import check_not_imported_by_child, run_all
from bico_ext.comparison.resume import remove_checkpoints, steps_done
from bico_ext.comparison.run import Finished, before_fine_tuning, run, run_folder
from bico_ext.comparison.systems import SYSTEMS
from bico_ext.comparison.trainer import check_disk, check_memory, trains_on_gpu
from bico_ext.comparison.training_data import check_facts, select_facts, with_steps
from bico_ext.evaluation.ceiling import reachable
from bico_ext.facts.loader import load_facts
from bico_ext.files import left_by_killed, make_folder, read_json, write_json, write_json_lines
from bico_ext.models.checkpoints import count_parameters
from bico_ext.reports.records import BEFORE, Data, Failure, Results, Run, data_from_json, run_from_json, to_json
from bico_ext.reports.version_1 import upgraded_run_file
from bico_ext.training.lora import lora_config
from bico_ext.training.resume_record import differences

LARGE = 20_000_000  # parameters, from which on a model uses all cores
LOCK = ".lock"  # a file in the output folder, locked while a comparison writes there


def compare(config: CompareConfig) -> Results:
    """Train and evaluate every system with every seed; write and return the results.

    Args:
        config: the systems, the seeds and the settings.

    Returns:
        The content of `results.json`: the finished runs, and the failures of the others.

    Raises:
        FileExistsError: the output folder holds a run, and `config.resume` is False or that run has other settings;
            the folder holds other files; or another comparison is writing to it.
        ImportError: the settings ask for adapters, and PEFT is not installed.
        OSError: the model cannot be loaded, or the output folder cannot be made.
        TypeError: the model cannot be attached.
        ValueError: the data set has no training examples or tasks, lacks texts that the setting or a system needs, or
            gives an answer away in a training text; a question does not
            fit the model's context; or a file of an earlier comparison is broken.
        RuntimeError: the memory or the disk is too small for the model; or a script calls this as it is imported.

    Example:
        >>> results = compare(CompareConfig("out", systems=["ntp", "bico"], seeds=[0, 1]))  # doctest: +SKIP
        >>> results.runs[0].tasks["N2D-reverse"].contains  # doctest: +SKIP
        0.0
    """
    check_not_imported_by_child()
    all_facts = load_facts(config.data)
    facts = select_facts(config, all_facts)
    config = with_steps(config, facts)
    check_facts(config, facts)
    if config.lora:
        lora_config()  # fails now if PEFT is missing
    parameters = 0
    if config.model != "tiny":
        parameters = count_parameters(config.model)
        runs = len(config.systems) * len(config.seeds)
        check_memory(config, parameters, min(_jobs(config, parameters, runs), runs))
    check_model(config, facts)
    digest = all_facts.digest()
    data = data_from_json({**reachable(facts), "digest": digest})
    out = make_folder(config.output_dir)
    _settings_for(out, config, digest)  # before the lock is made, so that a foreign folder gets none
    with _locked(out):
        settings = _settings_for(out, config, digest)  # again: another comparison may just have ended
        write_json(out / "settings.json", settings)
        return _complete(out, config, data, parameters)


def _complete(out: Path, config: CompareConfig, data: Data, parameters: int) -> Results:
    """Make the missing runs, and write the results of all runs in the folder.

    Args:
        parameters: the number of parameters of a given model; 0 for the tiny one.
    """
    _collect(out)  # fails now if a file is broken, and not when all runs are made
    missing = []
    for name, seed in ((name, seed) for seed in config.seeds for name in config.systems):
        if _results_of(config, name, seed).exists():
            remove_checkpoints(run_folder(config, name, seed))  # if it was killed before it could
        else:
            missing.append((name, seed))
    if config.model != "tiny" and not _results_before(config).exists():
        (error,) = run_all(_work_before, [(config,)], steps=[0], jobs=1, label=BEFORE)
        if error is not None:
            raise RuntimeError(f"model {config.model} cannot be evaluated {BEFORE}: {error}")
    jobs = _jobs(config, parameters, len(missing))
    check_disk(config, parameters, jobs, len(missing))
    failures = _pretrain_all(config, missing, jobs) if config.setting == "pretrained" else {}
    missing = [key for key in missing if key not in failures]
    if missing:
        arguments = [(config, name, seed) for name, seed in missing]
        steps = [cast(int, config.steps) - steps_done(run_folder(config, name, seed)) for name, seed in missing]
        errors = run_all(_work, arguments, steps=steps, jobs=jobs, label=f"{len(missing)} runs")
        failures |= {key: error for key, error in zip(missing, errors, strict=True) if error is not None}

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


def _jobs(config: CompareConfig, parameters: int, runs: int) -> int:
    """Return how many runs go on at once: by default one for a large model or a given one on a GPU, else one a core."""
    alone = parameters > LARGE or (parameters > 0 and trains_on_gpu())
    return config.jobs or (1 if alone else max(1, min(environment.cores(), runs)))


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder until this one ends; the lock of a killed process is void."""
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
    """Make the pre-trained models that the missing runs start from.

    Returns:
        The error of each run that cannot start, because its model could not be pre-trained.
    """
    starts = sorted({(SYSTEMS[name].family, seed) for name, seed in missing})
    starts = [start for start in starts if not pretrained_folder(config, *start).exists()]
    if not starts:
        return {}
    outcomes = run_all(
        pretrain,
        [(config, family, seed) for family, seed in starts],
        steps=[config.pretrain_steps - steps_done(partly_pretrained(config, *start)) for start in starts],
        jobs=jobs,
        label=f"{len(starts)} pre-trained",
    )
    errors = {start: error for start, error in zip(starts, outcomes, strict=True) if error is not None}
    return {
        (name, seed): errors[SYSTEMS[name].family, seed]
        for name, seed in missing
        if (SYSTEMS[name].family, seed) in errors
    }


def _work(config: CompareConfig, name: str, seed: int, callback: TrainerCallback) -> None:
    """Make one run in a worker process and write its results."""
    _write_finished(_results_of(config, name, seed), run(config, name, seed, [callback]))
    remove_checkpoints(run_folder(config, name, seed))


def _work_before(config: CompareConfig, callback: TrainerCallback) -> None:
    """Evaluate the given model in a worker process, which frees its memory at the end."""
    _write_finished(_results_before(config), [before_fine_tuning(config)])


def _write_finished(file: Path, finished: list[Finished]) -> None:
    """Write what `_collect` reads."""
    write_json(file, [{**to_json(entry.run), "predictions": entry.predictions} for entry in finished])


def _results_of(config: CompareConfig, name: str, seed: int) -> Path:
    """Return the file of a run's results, which exists if the run is finished."""
    folder = run_folder(config, name, seed)
    return folder.with_name(f"{folder.name}.json")


def _results_before(config: CompareConfig) -> Path:
    """Return the file of the scores of the given model before fine-tuning."""
    return Path(config.output_dir) / "runs" / "before.json"


def _collect(out: Path) -> tuple[list[Run], list[dict[str, Any]]]:
    """Return the finished runs in the order of the systems, and their predictions."""
    records: list[dict[str, Any]] = []
    for file in (out / "runs").glob("*.json"):
        finished = read_json(file, "delete it, and --resume makes this run again")
        records += upgraded_run_file(finished) if isinstance(finished, dict) else finished
    order = [BEFORE, *SYSTEMS]
    records.sort(key=lambda record: (order.index(record["system"].split(",")[0]), record["system"], record.get("seed")))
    predictions = [prediction for record in records for prediction in record["predictions"]]
    return [run_from_json(record) for record in records], predictions


def _settings_for(out: Path, config: CompareConfig, digest: str) -> dict[str, Any]:
    """Return the settings to write into the output folder, if the comparison may use it.

    A folder with the settings of a comparison that finished nothing may be used with any settings.

    Raises:
        FileExistsError: the folder holds finished runs that are not to be resumed or have other settings, or other
            files.
    """
    file = out / "settings.json"
    settings = json.loads(json.dumps({**config.settings, "digest": digest}))  # as they are read back from the file
    pretrained = [path for path in (out / "pretrained").glob("*/config.json") if path.parent.suffix != ".partial"]
    runs = [*(out / "runs").glob("*.json"), *out.glob("*/*/checkpoint-*/trainer_state.json")]
    if pretrained or runs:
        if not config.resume:
            raise FileExistsError(
                f"output_dir {out} already holds a run; add --resume to keep what is finished and add the rest, "
                "or name another folder"
            )
        held = read_json(file, "name another folder, because it says what the runs have in common")
        changed = differences(held, settings, {"digest": "the facts have changed"})
        if changed:
            raise FileExistsError(f"output_dir {out} holds runs with other settings ({changed}); name another folder")
    elif not file.exists() and not all(path.name == LOCK or left_by_killed(path) for path in out.iterdir()):
        raise FileExistsError(f"output_dir {out} is not empty and holds no comparison; name another folder")
    return settings
