"""Scores that others have published on the name/description tasks, shown beside ours and never averaged with them."""

from collections.abc import Mapping
from dataclasses import dataclass

_BERGLUND = "Berglund et al., arXiv 2309.12288"
_BICO = "arXiv 2311.07468"


@dataclass(frozen=True)
class Published:
    """What one publication says of one model.

    Attributes:
        model: the model and how it was trained.
        source: where it is published.
        scores: by task, as a share from 0 to 1; text, because some are only described.
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
