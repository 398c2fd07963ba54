"""Which systems cure a real, pre-trained Llama of the reversal curse? Runs the cells of `real_llama_cells/matrix.py`.

    python benchmarks/real_llama.py --model MODEL --data DIR --next                        # the next missing cell
    python benchmarks/real_llama.py --model MODEL --data DIR --all --jobs 12 --budget 300  # many at once, on a GPU
    python benchmarks/real_llama.py --list                                                 # done and missing cells
    python benchmarks/real_llama.py --merge FOLDER/cells.jsonl                             # from another folder

Each finished cell becomes a line of `cells.jsonl` in the output folder at once, and its answers are added to
`predictions.jsonl.gz` there. `table.md` and `accuracy.png` are made from these lines alone. A killed cell goes on from
its last checkpoint in the next call. A failed one leaves a line with its error and is tried again in the next call.
Cells that docs/results/real_llama holds count as done, whatever the output folder is.
"""

import argparse
import dataclasses
import fcntl
import fnmatch
import gzip
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from statistics import median
from typing import cast

from real_llama_cells import matrix
from real_llama_cells.matrix import BEFORE, Cell, missing, rows
from real_llama_cells.records import (
    Record,
    by_name,
    cell_of,
    failed_record,
    finished_record,
    joined,
    read_cells,
    scores_of,
)
from real_llama_cells.tables import final_results, markdown
from tokenizers.processors import TemplateProcessing
from transformers import TrainerCallback

from bico_ext.comparison.config import CompareConfig
from bico_ext.comparison.initial_models import check_model
from bico_ext.comparison.processes import run_all
from bico_ext.comparison.resume import steps_done
from bico_ext.comparison.run import before_fine_tuning, run, run_folder
from bico_ext.comparison.trainer import check_disk, check_memory, trains_on_gpu
from bico_ext.comparison.training_data import check_facts, select_facts, with_steps
from bico_ext.evaluation.ceiling import reachable
from bico_ext.facts.loader import load_facts
from bico_ext.files import atomic_write, make_folder, write_json_lines, write_text
from bico_ext.models import checkpoints
from bico_ext.models.tokenization import encode_text
from bico_ext.reports.plots import draw_accuracy
from bico_ext.seeding import stream_seed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "real_llama"
WORK = ROOT / "out" / "real_llama"
CELLS = "cells.jsonl"
PREDICTIONS = "predictions.jsonl.gz"
SECONDS = 1900.0  # the duration of a cell on one core, for the first estimate


def config_of(cell: Cell, options: argparse.Namespace) -> CompareConfig:
    """Return the settings of a cell. Its folder depends on all of them, so no checkpoint of other ones is found."""
    key = f"{stream_seed(repr(cell.settings), options.model, options.data):x}"
    return CompareConfig(
        output_dir=str(options.work / key / Path(cell.name).parent),
        data=options.data,
        model=with_bos(options),
        systems=["ntp" if cell == BEFORE else cell.system],  # ntp is not trained
        seeds=[cell.seed],
        learning_rate=cell.learning_rate,
        lora=cell.training == "lora",
        jobs=options.jobs,
        **cell.settings,
    )


def with_bos(options: argparse.Namespace) -> str:
    """Return a copy of the model whose tokenizer puts BOS in front of every text; the first call makes it.

    SmolLM2's own tokenizer puts nothing there, which suits the model better. But the finished cells were run when BOS
    was put in front for every tokenizer that has one, and cells are to be compared with each other.
    """
    folder = options.work / f"{stream_seed(options.model):x}-with-bos"
    if not folder.exists():
        model, tokenizer = checkpoints.load(options.model, device="cpu")
        bos = str(tokenizer.bos_token)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
        partial = make_folder(folder.with_name(f"{folder.name}.{os.getpid()}"))
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process has made it in the meantime
            if not folder.exists():
                raise
            shutil.rmtree(partial)
    return str(folder)


def known_cells(output: Path) -> dict[str, Record]:
    """Return the records of the committed results and of the output folder."""
    return by_name([*read_cells(RESULTS / CELLS), *read_cells(output / CELLS)])


def add_cells(output: Path, records: Iterable[Record]) -> None:
    """Add records to those of a folder, and make its table and its picture anew."""
    with locked(output):
        known = joined([*read_cells(output / CELLS), *records])
        write_json_lines(output / CELLS, known)
        current = by_name(known)
        write_text(output / "table.md", markdown(current))
        if (results := final_results(current)).runs:
            draw_accuracy(results, output / "accuracy.png")


def add_answers(output: Path, answers: Iterable[Record]) -> None:
    """Add answers to those of a folder, in place of earlier ones of the same cells."""
    new = list(answers)
    cells = {answer["cell"] for answer in new}
    with locked(output):
        known = [answer for answer in read_answers(output) if answer["cell"] not in cells]
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in (*known, *new)]
        with atomic_write(output / PREDICTIONS) as temporary:
            temporary.write_bytes(gzip.compress("".join(lines).encode()))


def read_answers(folder: Path) -> list[Record]:
    """Return the answers of a folder; there are none if it has no file of them."""
    if not (folder / PREDICTIONS).exists():
        return []
    with gzip.open(folder / PREDICTIONS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def merge(output: Path, cells: Path) -> None:
    """Add the cells of a file, and the answers beside it to those of them that are finished."""
    records = read_cells(cells)
    finished = {cell_of(record).name for record in records if "run" in record}
    add_answers(output, [answer for answer in read_answers(cells.parent) if answer["cell"] in finished])
    add_cells(output, records)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the block; the lock ends with its process and leaves no file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def work(cell: Cell, config: CompareConfig, data: Record, output: Path, callback: TrainerCallback) -> None:
    """Run a cell in this process, and add its record and its answers to the output folder."""
    started = time.perf_counter()
    try:
        finished = before_fine_tuning(config) if cell == BEFORE else run(config, cell.system, cell.seed, [callback])[0]
    except Exception:
        raise RuntimeError(traceback.format_exc()[-3000:]) from None  # only the message reaches the parent process
    seconds = time.perf_counter() - started
    record = finished_record(cell, config, data, finished.run, seconds)
    add_answers(output, [{"cell": cell.name, **answer} for answer in finished.predictions])
    add_cells(output, [record])
    shutil.rmtree(run_folder(config, cell.system, cell.seed), ignore_errors=True)


def run_cells(options: argparse.Namespace) -> list[str]:
    """Run missing cells, `jobs` at once, until none is left, one was enough, or too little of the budget is left.

    Returns:
        The errors of the cells that failed.
    """
    deadline = time.monotonic() + options.budget
    # The server of the processes imports the comparison once, which takes seconds that no cell then pays.
    forkserver.set_forkserver_preload([run.__module__])
    forkserver.ensure_running()
    output = make_folder(options.output)
    failures: dict[Cell, str] = {}
    tried = set[Cell]()  # each is started once, whatever comes of it
    data: Record = {}
    steps = 0
    estimate = options.jobs * seconds_of_a_cell(known_cells(output))
    taken: list[float] = []  # seconds of each round of cells

    def waiting() -> list[Cell]:
        known = known_cells(output)
        cells = missing(scores_of(known), lambda cell: matches(cell, options.cells), tried)
        return sorted(cells, key=lambda cell: "error" in known.get(cell.name, {}))  # so that one stops no other

    while cells := waiting()[: options.jobs]:
        started = time.monotonic()
        try:
            configs = [config_of(cell, options) for cell in cells]
            if not data:
                data, steps = prepared(configs[0])
                check_same(known_cells(output).values(), data)
        except (OSError, RuntimeError, ValueError) as error:
            raise SystemExit(str(error)) from None
        calls = [(cell, config, data, output) for cell, config in zip(cells, configs, strict=True)]
        left = [steps - steps_done(run_folder(config, cell.system, cell.seed)) for cell, config, *_ in calls]
        expected = max(taken, default=estimate) * max(left) / steps
        if started + expected > deadline:
            if not tried:
                print(f"nothing was run: --budget is {options.budget:g} s, {cells[0].name} takes {expected:.0f} s")
            break
        tried.update(cells)
        label = cells[0].name if len(cells) == 1 else f"{len(cells)} cells from {cells[0].name}"
        errors = run_all(work, calls, steps=left, jobs=options.jobs, label=label)
        failed = {cell: error for cell, error in zip(cells, errors, strict=True) if error is not None}
        failures |= failed
        add_cells(output, [failed_record(cell, error) for cell, error in failed.items()])
        taken.append(time.monotonic() - started)
        if options.next:
            break
    if not tried and not waiting():
        print(f"nothing to run: no missing cell matches {options.cells or '*'}")
    return [f"{cell.name}: {error}" for cell, error in failures.items()]


def check_same(records: Iterable[Record], data: Record) -> None:
    """Raise a ValueError if finished cells were made with other facts or another model."""
    for record in records:
        for name in ("digest", "parameters"):
            got = record.get("data", {}).get(name, data[name])
            if got != data[name]:
                raise ValueError(
                    f"{cell_of(record).name} was made with another {'model' if name == 'parameters' else 'data set'} "
                    f"({name} {got}, now {data[name]}); use the same, or take the finished cells away"
                )


def prepared(config: CompareConfig) -> tuple[Record, int]:
    """Check the data, the model and the memory before any training.

    Returns:
        The description of the data, with the ceilings and the number of training tokens; and the number of optimizer
        steps of a cell.
    """
    config = dataclasses.replace(
        config, systems=list(dict.fromkeys(name for part in matrix.MATRIX for name in part.systems))
    )
    everything = load_facts(config.data)
    facts = select_facts(config, everything)
    check_facts(config, facts)
    parameters = checkpoints.count_parameters(config.model)
    check_memory(config, parameters, cast(int, config.jobs))
    make_folder(config.output_dir)
    check_disk(config, parameters, cast(int, config.jobs), cast(int, config.jobs))
    check_model(config, facts)
    data = reachable(facts)
    for task in data["tasks"].values():
        del task["templates"]
    _, tokenizer = checkpoints.load(config.model, device="cpu")
    tokens = sum(len(encode_text(tokenizer, example.text)) for example in facts.train)
    data |= {"digest": everything.digest(), "parameters": parameters, "tokens": tokens}
    return data, cast(int, with_steps(config, facts).steps)


def matches(cell: Cell, patterns: str | None) -> bool:
    return patterns is None or any(fnmatch.fnmatch(cell.name, pattern) for pattern in patterns.split(","))


def seconds_of_a_cell(records: Mapping[str, Record]) -> float:
    """Return the median of the finished cells' seconds, each run alone, on such a device as this one; 0 without any."""
    trained = [record for name, record in records.items() if "run" in record and name != BEFORE.name]
    here = [record for record in trained if (record["run"]["device"] == "cpu") != trains_on_gpu()]
    return median(record["seconds"] / record["jobs"] for record in here) if here else 0.0


def listing(patterns: str | None, output: Path) -> str:
    """Return one line per cell that is done, failed or can be run now, and an estimate of the time that is left."""
    records = known_cells(output)
    scores = scores_of(records)
    waiting = missing(scores, lambda cell: matches(cell, patterns))
    lines = [f"{'done' if 'run' in records[name] else 'failed':<8}{name}" for name in sorted(records)]
    lines += [f"missing {cell.name}" for cell in waiting]
    unchosen = sum(row.chosen is None for row in rows(scores))
    each = seconds_of_a_cell(records) or SECONDS
    lines.append(
        f"{len(scores)} done; {len(waiting)} can be run now, in {len(waiting) * each / 3600:.1f} hours one at a time, "
        f"at {each / 60:.0f} minutes each; the learning rate of {unchosen} systems is not chosen yet"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--next", action="store_true", help="run the next missing cell")
    action.add_argument("--all", action="store_true", help="run all missing cells; failures do not stop the others")
    action.add_argument("--list", action="store_true", help="say which cells are done, which are missing, how long")
    action.add_argument("--merge", type=Path, metavar="FILE", help="add the cells of FILE and its folder's answers")
    parser.add_argument("--model", help="the folder of SmolLM2-135M-Instruct as a Llama checkpoint")
    parser.add_argument("--data", help="the folder of the facts of Berglund et al.")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the cells (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints (default: %(default)s)")
    parser.add_argument("--cells", metavar="A,B", help="only cells that match a pattern, as in 'full/*/seed[234]'")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, with --all (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds in all, as far as can be foreseen")
    options = parser.parse_args(arguments)
    if options.list:
        print(listing(options.cells, options.output))
    elif options.merge:
        if not options.merge.is_file():
            parser.error(f"--merge needs a cells.jsonl, got {options.merge}: no such file")
        merge(make_folder(options.output), options.merge)
    elif not (options.model and options.data):
        parser.error("--next and --all need --model and --data")
    elif options.jobs < 1 or (options.next and options.jobs > 1):
        parser.error(f"--jobs must be at least 1, and 1 with --next, got {options.jobs}")
    elif failures := run_cells(options):
        raise SystemExit("\n".join([f"{len(failures)} cells failed:", *failures]))


if __name__ == "__main__":
    main()
