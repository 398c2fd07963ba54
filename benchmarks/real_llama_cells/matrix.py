"""The matrix of the experiment on a real Llama: which systems, learning rates and seeds, and how a rate is chosen.

A *cell* is one run: a way of training (full fine-tuning or LoRA), a system, a peak learning rate, a seed and, if its
part of the matrix changes settings, these changes. For each way and system there are two sets of cells:

* the grid: every learning rate with the seeds 0 and 1, which serve for choices only;
* the final cells: the chosen learning rate with the seeds 2, 3 and 4, whose scores are reported.

The chosen learning rate is the one with the highest mean score of its grid cells, and the lowest of several such rates.
The score of a cell is the mean over the tasks of `contains`. Until all grid cells of a system are done, `STAND_IN`
takes the place of the chosen rate. Cells are run in the order of this file: system after system, the grid first. The
first cell of all is the model before fine-tuning.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

# Options of `bico_ext.comparison.config.CompareConfig` that cells have unless their part changes them.
SETTINGS: dict[str, Any] = {
    "facts": "one-order",
    "epochs": 8,
    "batch_size": 32,
    "mask_rate": 0.15,
    "warmup_steps": 20,
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "bf16": True,
    "eval_bf16": True,
    "max_new_tokens": 40,
    "curve_points": 3,
}
GRID_SEEDS = (0, 1)
FINAL_SEEDS = (2, 3, 4)
STAND_IN = 3e-4
SHARED = ("facts", "epochs", "batch_size")  # they decide the data and the number of steps, which all cells share

Changes = tuple[tuple[str, bool | int | float | str], ...]  # options, and values that JSON gives back unchanged


@dataclass(frozen=True)
class Part:
    """A way of training with its systems and learning rates.

    Attributes:
        training: "full" or "lora".
        systems: keys of `bico_ext.comparison.systems.SYSTEMS`, in the order of their importance.
        learning_rates: the grid, or a single rate, which then needs no choice.
        label: what a table adds to the system's name to tell this part's row from those of other parts.
        changes: options of `CompareConfig` and their values, instead of those of `SETTINGS` or the defaults; not those
            in `SHARED`.

    Raises:
        ValueError: changes has an option that all cells share.
    """

    training: str
    systems: tuple[str, ...]
    learning_rates: tuple[float, ...]
    label: str = ""
    changes: Changes = ()

    def __post_init__(self) -> None:
        if shared := [name for name, _ in self.changes if name in SHARED]:
            raise ValueError(f"changes must leave {', '.join(SHARED)} to SETTINGS, got {', '.join(shared)}")


MATRIX = (
    Part("full", ("ntp", "bico", "permute", "infill", "naive"), (1e-4, 3e-4, 6e-4)),
    # Between infill and permute: what makes the difference?
    Part("full", ("infill-end", "infill-end-causal", "infill-naive", "infill-causal"), (STAND_IN,)),
    Part("full", ("reverse-segments", "both-orders"), (1e-4, 3e-4, 6e-4)),
    # permute trains its objective in 2/3 of the steps, infill-causal in 1/2: does that make the rest of the difference?
    Part("full", ("infill-causal",), (STAND_IN,), "2/3 of the steps", (("mixing_probability", 2 / 3),)),
    # bico and naive, each also at the rate chosen for the other: what does the flip do?
    Part("full", ("naive",), (STAND_IN,), "bico's learning rate"),
    Part("full", ("bico",), (6e-4,), "naive's learning rate"),
    # infill hides half of a text on average, in one piece, bico 15 % of it in many: which makes the difference?
    Part("full", ("bico",), (STAND_IN,), "uniform mask rate", (("mask_rate", "uniform"),)),
    Part("full", ("infill",), (STAND_IN,), "8 spans", (("infill_spans", 8),)),
    # The rate with the best exact match in D2N-reverse and the lowest perplexity on the seeds 0 and 1.
    Part("full", ("permute",), (1e-4,), "low rate"),
    Part("lora", ("ntp", "bico"), (3e-4, 1e-3, 2e-3), "LoRA"),
)


@dataclass(frozen=True)
class Cell:
    """One run of the matrix; `changes` are those of its part."""

    training: str
    system: str
    learning_rate: float
    seed: int
    changes: Changes = ()

    @property
    def name(self) -> str:
        """The name of the cell, as in "full/bico/0.0003/seed2" or "full/bico/0.0003/mask_rate=0.3/seed2"."""
        changes = [f"{name}={value}" for name, value in self.changes]
        return "/".join([self.training, self.system, f"{self.learning_rate:g}", *changes, f"seed{self.seed}"])

    @property
    def settings(self) -> dict[str, Any]:
        """`SETTINGS` with the changes."""
        return {**SETTINGS, **dict(self.changes)}


BEFORE = Cell("none", "before", 0.0, 0)  # the model as it is


@dataclass(frozen=True)
class Row:
    """A way of training with a system: one row of the result.

    Attributes:
        part: the way of training.
        system: a key of `bico_ext.comparison.systems.SYSTEMS`.
        scores: the scores of the cells that are done.
    """

    part: Part
    system: str
    scores: Mapping[Cell, float]

    @property
    def name(self) -> str:
        """The name of the row in a table."""
        return ", ".join(filter(None, (self.system, self.part.label)))

    @property
    def grid(self) -> list[Cell]:
        """The cells that choose the learning rate; none if there is no choice."""
        if len(self.part.learning_rates) == 1:
            return []
        return [self.cell(rate, seed) for rate in self.part.learning_rates for seed in GRID_SEEDS]

    def cell(self, learning_rate: float, seed: int) -> Cell:
        return Cell(self.part.training, self.system, learning_rate, seed, self.part.changes)

    def score(self, learning_rate: float) -> float | None:
        """Return the mean score of a learning rate's grid cells, or None if one is missing."""
        cells = [self.cell(learning_rate, seed) for seed in GRID_SEEDS]
        return mean(self.scores[cell] for cell in cells) if all(cell in self.scores for cell in cells) else None

    @property
    def chosen(self) -> float | None:
        """The learning rate with the highest score, or None if a grid cell is missing."""
        if len(self.part.learning_rates) == 1:
            return self.part.learning_rates[0]
        scores = {rate: score for rate in self.part.learning_rates if (score := self.score(rate)) is not None}
        return max(scores, key=lambda rate: scores[rate]) if len(scores) == len(self.part.learning_rates) else None

    @property
    def final(self) -> list[Cell]:
        """The cells whose scores are reported."""
        return [self.cell(self.chosen or STAND_IN, seed) for seed in FINAL_SEEDS]


def rows(scores: Mapping[Cell, float]) -> Iterator[Row]:
    """Yield the rows of the matrix in the order of their importance; `scores` are those of the cells that are done."""
    for part in MATRIX:
        for system in part.systems:
            yield Row(part, system, scores)


def missing(scores: Mapping[Cell, float], selected: Callable[[Cell], bool], tried: Collection[Cell] = ()) -> list[Cell]:
    """Return the selected cells that are not done and can be run now, in order, without those that were tried.

    The final cells of a row wait for the grid cells that are missing and selected, because these choose the rate; also
    for those that were tried and failed.
    """
    cells = [BEFORE] if BEFORE not in scores and selected(BEFORE) else []
    for row in rows(scores):
        grid, final = ([cell for cell in of if cell not in scores and selected(cell)] for of in (row.grid, row.final))
        cells += grid or final
    return [cell for cell in dict.fromkeys(cells) if cell not in tried]  # two rows may share a cell
