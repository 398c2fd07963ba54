"""Random draws without a state: a draw's seed is a hash of what it belongs to, so that no generator has to be saved."""

import hashlib


def stream_seed(*key: int | str) -> int:
    """A seed for `torch.Generator.manual_seed` that depends on nothing but `key`.

    It is the blake2b hash of the key's repr: the same on every machine, in every process and Python version (unlike
    `hash`), and unrelated between neighbouring keys (unlike seed + step). torch's CPU generator keeps its low 32 bits.

    Args:
        key: what the draws belong to, for example ("masks", run seed, step, row).

    Returns:
        An integer in [0, 2 ** 64).

    Example:
        >>> stream_seed("masks", 42, 0, 7) == stream_seed("masks", 42, 0, 7) != stream_seed("masks", 42, 1, 7)
        True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def happens(probability: float, *key: int | str) -> bool:
    """A coin with the given probability of True, thrown by `stream_seed(*key)`: the same key, the same side.

    Args:
        probability: in [0, 1]; 0 is never and 1 is always.
        key: what the draw belongs to, for example ("objective", run seed, step).
    """
    return stream_seed(*key) < probability * 2.0**64
