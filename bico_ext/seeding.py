"""Random seeds that are hashes of a key, such as (purpose, run seed, step).

A random draw depends on its key alone, so a resumed run needs no saved generator state.
"""

import hashlib


def stream_seed(*key: int | str) -> int:
    """Hash `key` to a seed for `torch.Generator.manual_seed`.

    The seed is the blake2b hash of the key's repr. It is the same on every machine, in every process and in every
    Python version (unlike `hash`), and neighbouring keys give unrelated seeds (unlike seed + step). torch's CPU
    generator uses only its low 32 bits.

    Args:
        key: identifies the draws, for example ("masks", run seed, step, row).

    Returns:
        An integer in [0, 2 ** 64).

    Example:
        >>> stream_seed("masks", 42, 0, 7) == stream_seed("masks", 42, 0, 7) != stream_seed("masks", 42, 1, 7)
        True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def happens(probability: float, *key: int | str) -> bool:
    """Return True with the given probability, as decided by `stream_seed(*key)`.

    The same key always gives the same result.

    Args:
        probability: in [0, 1]; 0 means never and 1 means always.
        key: identifies the draw, for example ("objective", run seed, step).
    """
    return stream_seed(*key) < probability * 2.0**64
