"""Scores that others published for the name/description tasks. Reports show them apart and never average them."""

from collections.abc import Mapping
from dataclasses import dataclass

_BERGLUND = "Berglund et al., arXiv 2309.12288"
_BICO = "arXiv 2311.07468"


@dataclass(frozen=True)
class Published:
    """The scores of one model in one publication.

    Attributes:
        model: the model and its training.
        source: the publication.
        scores: the share of right answers by task, 0 to 1; as text, because some are only described.
    """

    model: str
    source: str
    scores: Mapping[str, str]


PUBLISHED = (
    Published(
        "GPT-3 175B, NTP",
        _BERGLUND,
        {"N2D": "0.500", "D2N": "0.967", "N2D-reverse": "0.000", "D2N-reverse": "0.001"},
    ),
    Published("Llama, NTP", _BICO, {"N2D-reverse": "0"}),
    Published("Llama, BICO", _BICO, {"N2D-reverse": "about 0.70", "D2N-reverse": "hardly moves"}),
    Published("GLM, NTP", _BICO, {"N2D-reverse": "0"}),
    Published("GLM, ABI", _BICO, {"N2D-reverse": "about 0.80"}),
)
