"""The systems that `bico compare` can train: an objective with the model, data and generation that go with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bico_ext.objectives.registry import check_objective, option_names


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes:
        objective: a key of `bico_ext.objectives.registry.OBJECTIVES`.
        summary: a short description for the command line.
        family: architecture of the tiny model, "llama" or "glm".
        mixing_probability: probability that an optimizer step trains the objective instead of next-token prediction,
            unless the comparison sets another one. 1 means that every step trains the objective.
        entities: whether the objective is told the names that the questions are about, to keep them whole.
        other_order: whether training also reads the facts restated in the other order.
        blank_generation: whether the model answers as GLM does, by filling a blank after the prompt. The same model is
            then also evaluated by plain causal generation, as a system of its own.
    """

    objective: str
    summary: str
    family: str = "llama"
    mixing_probability: float = 0.5
    entities: bool = False
    other_order: bool = False
    blank_generation: bool = False

    def __post_init__(self) -> None:
        check_objective(self.objective)
        if self.entities and "entities" not in option_names(self.objective):
            raise ValueError(f"entities must be False, as objective {self.objective!r} does not use them, got True")


SYSTEMS: dict[str, System] = {
    "ntp": System("ntp", "next-token prediction alone: shows the reversal curse"),
    "bico": System("bico", "the paper's mask denoising with split-triangle attention"),
    "infill": System("infill", "in-place span infilling with split-triangle attention"),
    "permute": System(
        "permute", "next-token prediction of the text's pieces in another order", mixing_probability=2 / 3
    ),
    "abi": System("abi", "GLM's blank infilling, on Llama"),
    # Controls: each changes one part of bico.
    "naive": System("naive", "bico without the sine flip"),
    "bert": System("bert", "bico that predicts a hidden token at its own position"),
    "attended-pad": System("attended-pad", "bico whose placeholder is visible as a key"),
    "new-token": System("new-token", "attended-pad with a new [MASK] token"),
    # Controls of infill; the last two lie between it and permute.
    "infill-naive": System("infill-naive", "infill without the sine flip"),
    "infill-causal": System("infill-causal", "infill with a context that is read causally"),
    "infill-end": System("infill-end", "infill with the span moved to the end of the text"),
    "infill-end-causal": System("infill-end-causal", "infill-end with a context that is read causally"),
    # Methods of other authors, which change the data.
    "reverse": System("reverse", "reverse training by words"),
    "reverse-entities": System(
        "reverse", "reverse training that keeps the names in the questions whole", entities=True
    ),
    "reverse-segments": System("reverse-segments", "reverse training by random segments, with [REV] between them"),
    "both-orders": System(
        "ntp", "next-token prediction of the facts in both orders: data augmentation", other_order=True
    ),
    # GLM without and with its own blank infilling, which trains all steps, as in GLM's pre-training.
    "glm-ntp": System("ntp", "next-token prediction alone, on GLM", family="glm"),
    "glm-abi": System(
        "abi",
        "blank infilling alone, on GLM, which answers by filling blanks",
        family="glm",
        mixing_probability=1.0,
        blank_generation=True,
    ),
}


def listing() -> str:
    """Return the names and summaries of all systems, one per line."""
    return "\n".join(f"  {name:<19}{system.summary}" for name, system in SYSTEMS.items())


def select_systems(names: Sequence[str]) -> list[str]:
    """Return the system names that a command line asks for: `names`, or all systems for ["all"].

    Raises:
        ValueError: a name is unknown or repeated, or there is none.
    """
    names = list(SYSTEMS) if list(names) == ["all"] else list(names)
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise ValueError(
            f"systems must be 'all' or names from this list, got {', '.join(map(repr, unknown))}\n{listing()}"
        )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"systems must be one or more, each once, got {names}")
    return names
