"""Scores that others published for the tasks of this study. Reports show them apart and never average them.

Tasks have this study's names. In the tables of Berglund et al., a reverse score stands with the facts that it asks for,
as here. SMDM's stands with the kind of question: its "NameToDescription, reverse" gives a name and asks for the
description of a description-first fact, which is D2N-reverse here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_BERGLUND = "Berglund et al., arXiv 2309.12288"
_BICO = "arXiv 2311.07468"
_IDENTITY_BRIDGE = "arXiv 2602.02470"
_CONTAINED = "names: contained; descriptions: BLEU"


@dataclass(frozen=True)
class Published:
    """The scores of one model in one publication.

    Attributes:
        model: the model and its training.
        source: the publication.
        metric: how its authors count an answer as right.
        scores: the share of right answers by task, 0 to 1; as text, because some are only described.
    """

    model: str
    source: str
    metric: str
    scores: Mapping[str, str]


PUBLISHED = (
    Published(
        "GPT-3 175B, NTP",
        _BERGLUND,
        '"exact match"; their script: starts with the target',
        {"N2D": "0.500", "D2N": "0.967", "N2D-reverse": "0.000", "D2N-reverse": "0.001"},
    ),
    Published("Llama, NTP", _BICO, _CONTAINED, {"N2D-reverse": "0"}),
    Published("Llama, BICO", _BICO, _CONTAINED, {"N2D-reverse": "about 0.70", "D2N-reverse": "hardly moves"}),
    Published("GLM, NTP", _BICO, _CONTAINED, {"N2D-reverse": "0"}),
    Published("GLM, ABI", _BICO, _CONTAINED, {"N2D-reverse": "about 0.80"}),
    Published(
        "SMDM 1.1B, masked diffusion",
        "arXiv 2410.18514",
        '"exact match"; their script: contains the target',
        {"N2D-reverse": "0.92", "D2N-reverse": "0.37"},
    ),
    Published(
        "Llama 3.2 3B, masked fine-tuning",
        "arXiv 2510.09885",
        "ROUGE-1",
        {"N2D": "0.887", "D2N": "0.992", "N2D-reverse": "0.932", "D2N-reverse": "0.933"},
    ),
    Published("Llama 3.2 1B Instruct, NTP", _IDENTITY_BRIDGE, "accuracy", {"husband-reverse": "about 0"}),
    Published(
        "Llama 3.2 1B Instruct, NTP with identity bridge",
        _IDENTITY_BRIDGE,
        "accuracy",
        {"husband-reverse": "about 0.50"},
    ),
)
