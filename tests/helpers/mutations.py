"""Random damage to files: bits, bytes, blocks, cuts and repetitions, decided by a seed."""

import random
from typing import Sequence


def mutate(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Damage a content in one of nine ways; the result differs from it.

    Args:
        content: of a file.
        rng: decides everything.
        others: contents of which parts are taken.
    """
    for _ in range(100):
        found = _mutate(content, rng, others)
        if found != content:
            return found
    return content + b"\0"


def _mutate(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    size = len(content)
    at, held = rng.randrange(size + 1), bytearray(content)
    stop = min(size, at + rng.choice((1, 2, 4, 8, 16, 64, 512)))
    kind = rng.randrange(9)
    if kind == 0 and at < size:  # a bit
        held[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < size:  # a byte
        held[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 2:  # zeros, as a disk gives that has lost a block
        held[at:stop] = bytes(stop - at)
    elif kind == 3:  # cut short
        del held[at:]
    elif kind == 4:  # a part is missing
        del held[at:stop]
    elif kind == 5:  # a part is there twice
        held[at:at] = held[at:stop]
    elif kind == 6:  # something follows
        held += rng.randbytes(rng.choice((1, 8, 100)))
    elif kind == 7:  # a part of another file
        other = rng.choice(list(others) or [content])
        start = rng.randrange(len(other) + 1)
        held[at:stop] = other[start : start + stop - at]
    else:  # a number becomes another
        digits = [place for place, byte in enumerate(content[:65536]) if 48 <= byte <= 57]
        if digits:
            place = rng.choice(digits)
            held[place : place + 1] = rng.choice((b"9", b"-1", b"1e9", b"99999999999", b"null"))
    return bytes(held)
