"""Triton body of `counting`: a hash table with open addressing, so that only the distinct keys are ever sorted.

Source: Knuth, The Art of Computer Programming, vol. 3, sec. 6.4, multiplicative hashing and linear probing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
PROBES = 64  # places tried for a key before the table counts as full
SMALLEST_TABLE = 2**12
EMPTY = tl.constexpr(-1)
IMPOSSIBLE = tl.constexpr(-2)
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)  # 2^64 divided by the golden ratio, odd, as a signed number


def count_keys(first: Tensor, second: Tensor, mixture: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """See counting.count_triples."""
    first, second, mixture = first.contiguous(), second.contiguous(), mixture.contiguous()
    places = max(SMALLEST_TABLE, triton.next_power_of_2(len(first) // 4))
    while (table := _filled_table(first, second, mixture, codes, places)) is None:
        places *= 4
    keys, counts = table
    used = keys != EMPTY.value
    keys, order = keys[used].sort()
    return keys, counts[used][order]


def _filled_table(
    first: Tensor, second: Tensor, mixture: Tensor, codes: int, places: int
) -> tuple[Tensor, Tensor] | None:
    """Return keys and counts int64 [places], or None where a key found no place."""
    keys = torch.full((places,), EMPTY.value, dtype=torch.long, device=first.device)
    counts = torch.zeros_like(keys)
    full = torch.zeros(1, dtype=torch.int32, device=first.device)
    _count[(triton.cdiv(len(first), BLOCK),)](
        first, second, mixture, keys, counts, full, len(first), codes, places, PROBES, BLOCK
    )
    return None if full.item() else (keys, counts)


@triton.jit
def _count(
    first, second, mixture, keys, counts, full, length, codes, places, PROBES: tl.constexpr, BLOCK: tl.constexpr
):
    """Count BLOCK triples. A place belongs to the key that first swaps itself in; places are never given back."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    key = tl.load(mixture + at, mask=inside, other=0).to(tl.int64) * codes + tl.load(first + at, mask=inside, other=0)
    key = key * codes + tl.load(second + at, mask=inside, other=0)
    place = ((key * GOLDEN) >> 32) & (places - 1)
    searching = inside
    probe = 0
    while (probe < PROBES) & (tl.max(searching.to(tl.int32), 0) > 0):
        # A swap has no mask: those that are done expect what no place holds, so that nothing changes.
        found = tl.atomic_cas(keys + place, tl.where(searching, EMPTY, IMPOSSIBLE).to(tl.int64), key)
        searching = searching & (found != EMPTY) & (found != key)
        place = tl.where(searching, (place + 1) & (places - 1), place)
        probe += 1
    tl.atomic_add(counts + place, tl.full([BLOCK], 1, tl.int64), mask=inside & ~searching)
    if tl.max(searching.to(tl.int32), 0) > 0:
        tl.store(full, 1)
