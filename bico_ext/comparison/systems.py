"""What `bico compare` can train: each system is an objective with the model, data and generation that go with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bico_ext.objectives.registry import check_objective, option_names


@dataclass(frozen=True)
class System:
    """A row of the comparison.

    Attributes:
        objective: a key of `bico_ext.objectives.registry.OBJECTIVES`.
        summary: half a line on what it is, for the command line.
        family: of the tiny model, "llama" or "glm".
        mixing_probability: of the objective at each optimizer step, where the comparison names no other; 1: always.
        entities: whether the objective is told the names that the questions are about, to keep them whole.
        other_order: whether the facts stated in one order are also trained in the other one.
        blank_generation: whether the model answers as GLM does, by filling a blank after the prompt. It is then also
            asked by plain causal generation, as a system of its own.
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
            raise ValueError(f"entities must be False, as objective {self.objective!r} has no use for them, got True")


SYSTEMS: dict[str, System] = {
    "ntp": System("ntp", "next-token prediction alone: shows the reversal curse"),
    "bico": System("bico", "the paper's mask denoising with split-triangle attention"),
    "infill": System("infill", "in-place span infilling with split-triangle attention"),
    "permute": System(
        "permute", "next-token prediction of the text's pieces in another order", mixing_probability=2 / 3
    ),
    "abi": System("abi", "GLM's blank infilling, on Llama"),
    # Controls: each changes one thing in bico.
    "naive": System("naive", "bico without the sine flip"),
    "bert": System("bert", "bico that predicts a hidden token at its own position"),
    "attended-pad": System("attended-pad", "bico whose placeholder is visible as a key"),
    "new-token": System("new-token", "attended-pad with a new [MASK] token"),
    # Other people's ways with the data.
    "reverse": System("reverse", "reverse training by words"),
    "reverse-entities": System("reverse", "reverse training that keeps the asked names whole", entities=True),
    "both-orders": System(
        "ntp", "next-token prediction of the facts in both orders: data augmentation", other_order=True
    ),
    # GLM, with its own blank infilling (all of the steps, as it was pre-trained) and without.
    "glm-ntp": System("ntp", "ntp on GLM", family="glm"),
    "glm-abi": System(
        "abi",
        "blank infilling alone on GLM, asked by filling blanks",
        family="glm",
        mixing_probability=1.0,
        blank_generation=True,
    ),
}


def listing() -> str:
    """Every system with half a line on what it is, one per line."""
    return "\n".join(f"  {name:<17}{system.summary}" for name, system in SYSTEMS.items())


def named(names: Sequence[str]) -> list[str]:
    """The systems that a command line asks for: their names, or all of them for "all".

    Raises:
        ValueError: an unknown name, a name twice, or none.
    """
    names = list(SYSTEMS) if list(names) == ["all"] else list(names)
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise ValueError(f"systems must be 'all' or names of this list, got {', '.join(unknown)}\n{listing()}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"systems must be one or more, each once, got {names}")
    return names
