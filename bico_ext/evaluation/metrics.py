"""Scores of one completion against one target, and the uncertainty of a rate.

`contains` and `bleu_char` are the metrics of the paper (arXiv 2311.07468): the first for names, the second for
descriptions. `exact_match` and `bleu` stand beside them. No two of these may be compared with each other, nor with the
ROUGE or prefix scores of other papers.
"""

import functools
import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

_BLEU_ORDER = 4


def contains(completion: str, target: str, answer: Literal["name", "description"]) -> bool:
    """Whether the completion contains the target, whatever the case of letters.

    The paper scores names this way. For descriptions it is our extension: there the target's final full stop is
    dropped first, since a model that goes on with ", ..." has given the description too.

    Args:
        completion: what the model wrote.
        target: what it should have written; surrounding white space does not count.
        answer: what the target is, "name" or "description".

    Raises:
        ValueError: the target has no text, and every completion would contain it; or answer is something else.

    Example:
        >>> contains(" it was URIAH Hawthorne.", " Uriah Hawthorne", "name")
        True
        >>> contains(" the first, and the last", " The first.", "description")
        True
    """
    return normalised_target(target, answer) in normalised(completion)


def normalised(text: str) -> str:
    """What `contains` searches: the text without its case.

    Example:
        >>> normalised(" URIAH Hawthorne")
        ' uriah hawthorne'
    """
    return text.lower()


def normalised_target(target: str, answer: Literal["name", "description"]) -> str:
    """What `contains` searches for: the target without surrounding white space, a description's full stop, its case.

    Args:
        target: the expected answer.
        answer: what it is, "name" or "description".

    Raises:
        ValueError: as `contains`.

    Example:
        >>> normalised_target(" The first.", "description")
        'the first'
    """
    if answer not in ("name", "description"):
        raise ValueError(f"answer must be 'name' or 'description', got {answer!r}")
    wanted = target.strip()
    if answer == "description":
        wanted = wanted.removesuffix(".")
    if not wanted:
        raise ValueError(f"target must hold text, got {target!r}, which every completion contains")
    return normalised(wanted)


def exact_match(completion: str, target: str) -> bool:
    """Whether the two are equal but for surrounding white space.

    Args:
        completion: what the model wrote, to its end.
        target: what it should have written.

    Example:
        >>> exact_match(" Uriah Hawthorne", "Uriah Hawthorne"), exact_match(" Uriah Hawthorne.", "Uriah Hawthorne")
        (True, False)
    """
    return completion.strip() == target.strip()


def bleu_char(completion: str, target: str) -> float:
    """The paper's score for descriptions: BLEU-4 over characters, 0 to 1.

    The paper hands raw strings to NLTK's `sentence_bleu([target], completion)`, which takes them as sequences of
    characters. Nothing is stripped, lowered or smoothed. Without a common run of four characters the score is
    practically 0 (1e-77 or less), so also for an identical pair of three characters.

    Args:
        completion: what the model wrote; anything after the answer lowers the score.
        target: what it should have written.

    Returns:
        NLTK's value.

    Example:
        >>> round(bleu_char(" the composer", " the composers"), 4)
        0.926
    """
    log_precisions = []
    for order in range(1, _BLEU_ORDER + 1):
        written, wanted = _runs(completion, order), _runs(target, order)
        matches = (written & wanted).total()
        if order == 1 and matches == 0:
            return 0.0
        # NLTK's stand-in for a precision of 0, whose logarithm it could not take.
        log_precisions.append(math.log(matches / written.total() if matches else sys.float_info.min))
    brevity_penalty = min(1.0, math.exp(1 - len(target) / len(completion)))
    return brevity_penalty * math.exp(math.fsum(log / _BLEU_ORDER for log in log_precisions))


def bleu(completion: str, target: str) -> float:
    """Word-level BLEU-4 as sacrebleu computes it for one sentence, 0 to 1.

    Its defaults ("13a" tokens, letter case counts, exponential smoothing) with `effective_order=True`, so that n-grams
    longer than the texts are left out: an identical pair of one word scores 1.

    Args:
        completion: what the model wrote.
        target: what it should have written.

    Example:
        >>> round(bleu("the composer of a symphony", "the composer of the symphony"), 4)
        0.4273
    """
    # Rounding puts perfect scores at 100.00000000000004.
    return min(1.0, _sacrebleu().sentence_score(completion, [target]).score / 100)


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a rate seen in n independent trials.

    Args:
        successes: trials that succeeded, 0 to n.
        n: trials, at least 1.
        z: half-width in standard deviations of a normal distribution; the default gives 95 %.

    Returns:
        Lower and upper bound, within [0, 1].

    Raises:
        ValueError: there are no trials, or successes lie outside 0 to n.

    Example:
        >>> low, high = wilson_interval(5, 10)
        >>> round(low, 4), round(high, 4)
        (0.2366, 0.7634)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: no trials give no interval")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, got {successes}")
    centre = successes + z * z / 2
    half_width = z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low = (centre - half_width) / (n + z * z)  # exactly 0 without successes
    high = 1.0 if successes == n else (centre + half_width) / (n + z * z)  # rounding could give more than 1
    return low, high


def _runs(text: str, length: int) -> Counter[str]:
    """How often each run of that many characters occurs; empty for a shorter text."""
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))


@functools.cache
def _sacrebleu() -> "BLEU":
    from sacrebleu.metrics import BLEU  # here: the import takes 0.13 s, which training need not wait for

    return BLEU(effective_order=True)
