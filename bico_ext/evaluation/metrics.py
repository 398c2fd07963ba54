"""Metrics: scores of a completion against its target.

`contains` and `bleu_char` are the metrics of the paper (arXiv 2311.07468): the first for names, the second for
descriptions. `exact_match` and `bleu` are additions. Scores of different metrics must not be compared with each other,
nor with the ROUGE or prefix scores of other papers.
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
    """Tell whether the completion contains the target, ignoring case.

    The paper scores names this way. Using it for descriptions is our extension. The final full stop of a description is
    dropped first, because a model that continues with ", ..." has given the description, too.

    Args:
        completion: the model's answer.
        target: the expected answer. Surrounding white space is ignored.
        answer: the kind of answer, "name" or "description".

    Raises:
        ValueError: the target has no text, so that every completion contains it, or `answer` is something else.

    Example:
        >>> contains(" it was URIAH Hawthorne.", " Uriah Hawthorne", "name")
        True
        >>> contains(" the first, and the last", " The first.", "description")
        True
    """
    return normalised_target(target, answer) in normalised(completion)


def normalised(text: str) -> str:
    """Return the text in the form in which `contains` searches it: in lower case.

    Example:
        >>> normalised(" URIAH Hawthorne")
        ' uriah hawthorne'
    """
    return text.lower()


def normalised_target(target: str, answer: Literal["name", "description"]) -> str:
    """Return the target in the form that `contains` searches for.

    This is the target in lower case, without surrounding white space and without the full stop of a description.

    Args:
        target: the expected answer.
        answer: the kind of answer, "name" or "description".

    Raises:
        ValueError: as in `contains`.

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


def echoes(completion: str, target: str, given: str) -> bool:
    """Tell whether the completion merely repeats the name that the question gives: it has that name, not the target.

    Args:
        completion: the model's answer.
        target: the expected answer, a name.
        given: the name in the question.

    Raises:
        ValueError: the target or the given name has no text.

    Example:
        >>> echoes(" Bo.", " Ada", "Bo"), echoes(" Bo's wife is Ada.", " Ada", "Bo")
        (True, False)
    """
    return contains(completion, given, "name") and not contains(completion, target, "name")


def exact_match(completion: str, target: str) -> bool:
    """Tell whether completion and target are equal, apart from surrounding white space.

    Args:
        completion: the model's whole answer.
        target: the expected answer.

    Example:
        >>> exact_match(" Uriah Hawthorne", "Uriah Hawthorne"), exact_match(" Uriah Hawthorne.", "Uriah Hawthorne")
        (True, False)
    """
    return completion.strip() == target.strip()


def bleu_char(completion: str, target: str) -> float:
    """Return the paper's score for descriptions: BLEU-4 over characters, 0 to 1.

    The paper passes raw strings to NLTK's `sentence_bleu([target], completion)`, which treats them as sequences of
    characters. Nothing is stripped, lowered or smoothed. Without a common sequence of four characters the score is
    practically 0 (1e-77 or less), even for two identical texts of three characters.

    Args:
        completion: the model's answer. Anything after the expected text lowers the score.
        target: the expected answer.

    Returns:
        The value that NLTK computes.

    Example:
        >>> round(bleu_char(" the composer", " the composers"), 4)
        0.926
    """
    log_precisions = []
    for order in range(1, _BLEU_ORDER + 1):
        written, wanted = _ngrams(completion, order), _ngrams(target, order)
        matches = (written & wanted).total()
        if order == 1 and matches == 0:
            return 0.0
        # NLTK's stand-in for a precision of 0, whose logarithm it could not take.
        log_precisions.append(math.log(matches / written.total() if matches else sys.float_info.min))
    brevity_penalty = min(1.0, math.exp(1 - len(target) / len(completion)))
    return brevity_penalty * math.exp(math.fsum(log / _BLEU_ORDER for log in log_precisions))


def bleu(completion: str, target: str) -> float:
    """Return word-level BLEU-4 as sacrebleu computes it for one sentence, 0 to 1.

    It uses sacrebleu's defaults ("13a" tokens, case-sensitive, exponential smoothing) and `effective_order=True`, which
    leaves out n-grams longer than the texts. So two identical texts of one word score 1.

    Args:
        completion: the model's answer.
        target: the expected answer.

    Example:
        >>> round(bleu("the composer of a symphony", "the composer of the symphony"), 4)
        0.4273
    """
    # Because of rounding, sacrebleu gives a perfect match 100.00000000000004.
    return min(1.0, _sacrebleu().sentence_score(completion, [target]).score / 100)


def _ngrams(text: str, length: int) -> Counter[str]:
    """Count the sequences of the given number of characters; a shorter text has none."""
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))


@functools.cache
def _sacrebleu() -> "BLEU":
    # Imported here because it takes 0.13 s, which training can do without.
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
