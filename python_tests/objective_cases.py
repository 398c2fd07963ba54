"""The objectives of the registry on small sequences, and a test of their documented probabilities."""

from collections import Counter

import torch
from torch import Generator, Tensor

from bico_ext.objectives import registry
from bico_ext.objectives.training_sequence import TrainingSequence

PAD, MASK, BOS, EOS, VOCABULARY = 0, 1, 2, 3, 16
SOP, EOP, REV = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2  # tokens that occur in no sequence
SPECIAL = (PAD, MASK, BOS, EOS)
SEQUENCE = [BOS, 7, 8, 9, EOS]


def apply(name: str, input_ids: Tensor, seed: int, mask_rate: float | str = 0.3, **options: object) -> TrainingSequence:
    available = {
        "placeholder_id": PAD,
        "mask_id": MASK,
        "sop_id": SOP,
        "eop_id": EOP,
        "separator_id": REV,
        "segment_length": 3,
        "special_ids": SPECIAL,
        "mask_rate": mask_rate,
        "word_starts": torch.ones(VOCABULARY, dtype=torch.bool),
        "word_parts": torch.zeros(VOCABULARY, dtype=torch.bool),
    }
    return registry.bind(name, **available | options)(input_ids, Generator().manual_seed(seed))


def chi_square(counts: Counter, probabilities: dict) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(probabilities)
    return sum((counts[key] - total * p) ** 2 / (total * p) for key, p in probabilities.items())
