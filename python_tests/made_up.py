"""Made-up results, small enough to work out by hand what a report must show."""

import copy

from bico_ext.files import write_json, write_json_lines
from bico_ext.reports.records import BEFORE, results_from_json

METRICS = ("contains", "exact_match", "bleu_char", "bleu")
CEILINGS = {"N2D": 0.8, "D2N": 1.0, "N2D-reverse": 1.0, "D2N-reverse": 0.5}
COUNTERPARTS = {"N2D-reverse": "D2N", "D2N-reverse": "N2D"}
# `contains` by system and task, for seeds 0 and 1.
SCORES = {
    "ntp": {"N2D": (0.4, 0.4), "D2N": (0.8, 1.0), "N2D-reverse": (0.0, 0.0), "D2N-reverse": (0.0, 0.0)},
    "bico": {"N2D": (0.4, 0.8), "D2N": (0.9, 0.9), "N2D-reverse": (0.3, 0.5), "D2N-reverse": (0.1, 0.3)},
}


def old_results(scores=SCORES):
    """Return results as version 1 wrote them: "objective" names the system; no data, no curves, no templates."""
    return {
        "environment": {"torch": "2.11.0"},
        "settings": {"data": "facts", "steps": 10},
        "runs": [
            {
                "objective": system,
                "seed": seed,
                "train_seconds": 1.5,
                "parameters": 1000,
                "losses": [{"step": 5, "loss_ntp": 2.0}, {"step": 10, "loss_ntp": 1.0, f"loss_{system}": 1.5}],
                "tasks": {
                    task: {
                        "n": 10,
                        **dict.fromkeys(METRICS, values[seed]),
                        "contains_interval": [0.05, 0.95],
                        "exact_match_interval": [0.05, 0.95],
                    }
                    for task, values in tasks.items()
                },
            }
            for system, tasks in scores.items()
            for seed in range(len(next(iter(tasks.values()))))
        ],
    }


def results(scores=SCORES):
    """Return results of version 2 with everything that a report can show."""
    made = old_results(scores) | {"schema_version": 2}
    made["data"] = {
        "name": "facts",
        "tasks": {
            task: {
                "answer": "name" if task in ("D2N", "N2D-reverse") else "description",
                "counterpart": COUNTERPARTS.get(task),
                "n": 10,
                "reachable": reachable,
                "templates": {
                    "Who is {}?": {"n": 6, "reachable": 1.0, "unseen_words": []},
                    "Behold <{}> | now": {"n": 4, "reachable": 0.25, "unseen_words": ["Behold", "now"]},
                },
            }
            for task, reachable in CEILINGS.items()
        },
    }
    for run in made["runs"]:
        run["system"] = run["objective"]
        run["curve"] = [{"step": 5, "tasks": dict.fromkeys(run["tasks"], 0.1)}]
        for values in run["tasks"].values():
            score = values["contains"]
            values["templates"] = {"Who is {}?": score, "Behold <{}> | now": score / 2}
            values["entities"] = {"Ada": score, "Eve": 0.0}
            values["likelihood"] = {
                "n": 10,
                "correct": -2.0,
                "distractor": -5.0,
                "difference": 3.0,
                "t": 4.0,
                "t_p": (0.01, 0.02)[run["seed"]],
                "ks": 0.5,
                "ks_p": 0.002,
                "preferred": 0.9,
            }
    return made


ANSWERS = {"The sky is": " blue.", "Two plus two is": " | four <b>"}


def with_fluency(made):
    """Add the run of the model before fine-tuning, and to each run of the seed s and the system i 10 + i + s."""
    before = copy.deepcopy(made["runs"][0]) | {"system": BEFORE, "objective": None, "seed": None, "losses": []}
    systems = [BEFORE, *dict.fromkeys(run["system"] for run in made["runs"])]
    runs = [before, *made["runs"]]
    for run in runs:
        run["fluency"] = {
            "perplexity": 10.0 + systems.index(run["system"]) + (run["seed"] or 0),
            "tokens": 4080,
            "text": "prose of Python 3.11.7",
            "digest": "0123456789abcdef",
            "answers": {prompt: answer + run["system"] for prompt, answer in ANSWERS.items()},
        }
    return made | {"runs": runs}


def typed(made):
    """Return the records of a file that holds these results."""
    return results_from_json(copy.deepcopy(made), "made up")


def predictions(made, completion=" Ada."):
    """Return four answers for each run and task; every second one is right."""
    return [
        {
            "system": run.get("system") or run["objective"],
            "seed": run["seed"],
            "task": task,
            "prompt": f"Who is number {number}?",
            "target": " Ada",
            "completion": completion,
            "contains": number % 2 == 0,
        }
        for run in made["runs"]
        for task in run["tasks"]
        for number in range(4)
    ]


def write(folder, made, answers=None):
    """Write the files that `bico compare` writes, and return the folder."""
    write_json(folder / "results.json", made)
    write_json_lines(folder / "predictions.jsonl", predictions(made) if answers is None else answers)
    return str(folder)
