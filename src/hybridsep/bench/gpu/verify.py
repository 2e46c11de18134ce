"""Every kernel against its definition in float64 on fresh random inputs of ragged sizes, the distribution of the draws, and replayed steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from scipy.stats import chi2
from torch import Tensor

from hybridsep.bench import references
from hybridsep.bench.gpu.session import Part, Session
from hybridsep.bench.models import random_likelihood, song_codes, untrained_separator
from hybridsep.bench.references import DEVICE, counted_rows, log_priors, rand, randint, randn, sum_tables
from hybridsep.core.device import seeded_generator
from hybridsep.core.profiles import LikelihoodKind, load_profile
from hybridsep.inference import decoder as decoding
from hybridsep.inference import search
from hybridsep.inference.search import SearchResult, particle_filter, stay_in_place, systematic_resampling
from hybridsep.inference.separator import Separator
from hybridsep.kernels.cache import AncestryTable, attend_by_ancestry, reorder_cache
from hybridsep.kernels.counting import count_triples
from hybridsep.kernels.counts import draw_pairs_counts, top_pairs_counts
from hybridsep.kernels.nearest import nearest_code
from hybridsep.kernels.sums import draw_from_marginal, draw_pairs_sum, log_marginal_sum, marginal_sum

ROUNDING, HALF_ROUNDING, INVERSION, EXACT = 1e-4, 5e-3, 1e-5, 0.0
DEVIATIONS = 5.0
"""Standard deviations that a chi-square may lie above its mean."""


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    Attributes:
        codes: K, one part for each.
        longest: counted pairs of the longest rows.
        particles: N, ragged.
        best: pairs asked for.
        triples, vectors: numbers of them, ragged.
        window: positions of the cache.
        drawn_codes, drawn_entries, draws: of the chi-square tests.
        song_seconds: of the search whose steps are replayed.
    """

    codes: tuple[int, ...] = (512, 2048)
    longest: int = 100_000
    particles: tuple[int, ...] = (1, 5, 33)
    best: tuple[int, ...] = (1, 40, 128)
    triples: tuple[int, ...] = (0, 1, 3001, 1_000_003)
    vectors: tuple[int, ...] = (0, 1, 131, 65_537)
    window: int = 512
    drawn_codes: int = 64
    drawn_entries: int = 4000
    draws: int = 200_000
    song_seconds: float = 3.0


QUICK = Sizes((16, 37), 200, (1, 5), (3,), (0, 1, 301), (0, 1, 67), 9, 12, 140, 20_000, 0.2)


@dataclass(frozen=True)
class Case:
    """One comparison: how many numbers, and by how much they differ at most from what they should be."""

    compared: int
    error: float


Check = Callable[[int, Sizes, int], Iterator[Case]]


def parts(session: Session) -> Iterator[Part]:
    """One part for each kernel, codebook size and body; then draws and replays."""
    sizes = QUICK if session.quick else Sizes()
    for body in references.bodies_here():
        for codes in sizes.codes:
            for name, (check, tolerance) in CHECKS.items():
                if codes == sizes.codes[0] or not name.startswith("attend"):
                    yield Part(
                        f"{name}/{codes}/{body}",
                        partial(_checked, name, check, tolerance, codes, sizes, body, session.seed),
                    )
        for name, draw in DRAWS.items():
            yield Part(f"{name} draws/{body}", partial(_draws, name, draw, sizes, body, session.seed))
    for kind in ("sum", "counts"):
        yield Part(f"replay/{kind}", partial(_replay, kind, session, sizes))


def largest_error(found: Tensor, expected: Tensor) -> Case:
    """Largest |found − expected| / (1 + |expected|), infinite where one is finite and the other not, or not a number."""
    found, expected = found.double().cpu(), expected.double().cpu()
    close = (found - expected).abs() / (1 + expected.abs())
    error = torch.where(found == expected, 0.0, close).nan_to_num(torch.inf, torch.inf)
    return Case(found.numel(), float(error.max()) if error.numel() else 0.0)


def differing(found: Tensor, expected: Tensor) -> Case:
    """How many numbers differ."""
    same_shape = found.shape == expected.shape
    return Case(found.numel(), float((found.cpu() != expected.cpu()).sum()) if same_shape else torch.inf)


def check_nearest(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """The distance to the code found is the least; among equals the lowest is found."""
    for rows in sizes.vectors:
        for width in (1, 16, 64, 100, 128):
            vectors, codebook = randn(rows, width, seed=seed), randn(codes, width, seed=seed + 1)
            found = nearest_code(vectors, codebook)
            own = (vectors.double() - codebook.double()[found]).norm(dim=1)
            yield largest_error(own, torch.cdist(vectors.double(), codebook.double()).amin(1) if rows else own)
    vectors, codebook = randint(5, 97, 3, seed=seed).float() / 2, randint(3, codes, 3, seed=seed + 1).float()
    distances = (vectors[:, None] - codebook).square().sum(-1)
    lowest = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
    yield differing(nearest_code(vectors, codebook), lowest)


def check_counts(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Evidence, the best pairs, and draws of particles that can draw one pair only, from rows of 0, 1, some and very many counted pairs."""
    rows = _rows_of(codes, (0, 1, 3, 1100, sizes.longest), seed)
    mixture = torch.arange(5, device=DEVICE)
    for particles, impossible in zip(sizes.particles, (0.0, 0.5, 0.0)):
        log_p = log_priors(5, particles, codes, seed, impossible=impossible)
        drawn, log_evidence = draw_pairs_counts(log_p, mixture, *rows, seed)
        top = {k: top_pairs_counts(log_p, mixture, *rows, k)[2] for k in sizes.best}
        # One mixture at a time: K² numbers in float64 for each particle.
        for b in range(5):
            scores = references.dense_scores(log_p[:, b : b + 1], mixture[b : b + 1], rows)[0].flatten(1)
            yield largest_error(log_evidence[b], scores.logsumexp(-1))
            own = scores.gather(1, (drawn[0, b] * codes + drawn[1, b])[:, None])[:, 0]
            yield differing(own > -torch.inf, log_evidence[b] > -torch.inf)
            for k, found in top.items():
                best = scores.topk(min(k, codes**2), 1).values
                yield largest_error(found[b, :, : best.shape[1]], best)
    certain, first, second, ancestors = _certain(codes, 2, sizes.particles[-1], seed)
    found, _ = draw_pairs_counts(
        certain, torch.tensor([0, 1], device=DEVICE), *_rows_of(codes, (codes**2,) * 2, seed), seed, ancestors
    )
    yield differing(found, torch.stack([first.gather(1, ancestors), second.gather(1, ancestors)]))


def check_sums(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """The marginal of the first code, with and without shares, for both types of the table of sums."""
    mixture = torch.tensor([0, codes - 1], device=DEVICE)
    for particles, small, impossible in zip(sizes.particles, (torch.int16, torch.int32, torch.int16), (0.0, 0.6, 0.0)):
        log_p, (sums, table, share) = (
            log_priors(2, particles, codes, seed, impossible=impossible),
            sum_tables(codes, seed, small),
        )
        for part in (None, share):
            yield largest_error(
                log_marginal_sum(log_p, mixture, sums, table, part),
                references.log_marginal(log_p, mixture, sums, table, part),
            )


def check_inversion(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Pairs drawn by given uniform numbers lie where exact inversion puts them, in the posterior of the particle's ancestor."""
    mixture, particles = torch.tensor([codes - 1], device=DEVICE), sizes.particles[-1]
    log_p, (sums, table, share) = log_priors(1, particles, codes, seed, impossible=0.3), sum_tables(codes, seed)
    ancestors, uniforms = randint(particles, 1, particles, seed=seed), rand(2, 1, particles, seed=seed)
    marginal = marginal_sum(log_p, mixture, sums, table, share)
    drawn = draw_from_marginal(marginal, log_p, mixture, sums, table, share, uniforms, ancestors)
    for n in range(particles):
        parent = ancestors[0, n]
        weights = references.dense_sum_scores(log_p[:, :, parent, None], mixture, sums, table, share)[0, 0].exp()
        yield Case(1, references.outside_interval(weights.sum(1), uniforms[0, 0, n], drawn[0, 0, n]))
        yield Case(1, references.outside_interval(weights[drawn[0, 0, n]], uniforms[1, 0, n], drawn[1, 0, n]))
    certain, first, second, ancestors = _certain(codes, 2, particles, seed)
    found, _ = draw_pairs_sum(certain, torch.tensor([0, 1], device=DEVICE), sums, table, share, seed, ancestors)
    yield differing(found, torch.stack([first.gather(1, ancestors), second.gather(1, ancestors)]))


def check_counting(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Counted triples are those of a sorted list, whether all differ or many repeat."""
    for triples in sizes.triples:
        for high, dtype in ((codes, torch.int16), (min(codes, 40), torch.int64)):
            first, second, mixture = randint(high, 3, triples, seed=seed).to(dtype)
            keys, times = count_triples(first, second, mixture, codes)
            every = ((mixture.long() * codes + first) * codes + second).sort().values
            yield differing(torch.repeat_interleave(keys, times), every)


def check_reorder(codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Rows of keys and values of every type and of odd widths are those of their ancestors."""
    for rows, dtype, width in zip(
        (1, 13, 64, 1000), (torch.float32, torch.float16, torch.bfloat16, torch.float16), (5, 3, 1300, codes)
    ):
        kept = randn(6, rows, width, seed=seed).to(dtype)
        weights = (2 * randn(1, rows, seed=seed)).softmax(-1)
        ancestors = stay_in_place(systematic_resampling(weights, rand(1, seed=seed)))[0]
        expected = kept[:, ancestors].clone()
        reorder_cache(kept, ancestors)
        yield differing(kept.view(torch.uint8), expected.view(torch.uint8))


def check_attention(dtype: torch.dtype, codes: int, sizes: Sizes, seed: int) -> Iterator[Case]:
    """Attention through the table of ancestors is that to a cache which was copied at every resampling. There are no codes in it."""
    for rows, window, heads, width in ((1, 4, 1, 2), (7, 5, 3, 6), (64, sizes.window, 8, 64)):
        keys, values = torch.full((2, window, rows, width), 1e4, device=DEVICE, dtype=dtype)
        copied, table = (
            torch.zeros(2, window, rows, width, device=DEVICE, dtype=dtype),
            AncestryTable(rows, window, DEVICE),
        )
        last = window + 3
        for step in range(last):
            if step % 3 == 2:
                ancestors = randint(rows, rows, seed=seed + step)
                table.reorder(ancestors)
                copied = copied.index_select(2, ancestors)
            fresh = randn(2, rows, width, seed=seed + step).to(dtype)
            table.write(step % window)
            keys[step % window], values[step % window] = fresh
            copied[:, step % window] = fresh
            if step in (0, window // 2, window - 1, last - 1):
                filled = min(step + 1, window)
                query = (width**-0.5 * randn(rows, heads, width, seed=seed + step)).to(dtype)
                own = (x[:filled].transpose(0, 1) for x in copied)
                yield largest_error(
                    attend_by_ancestry(query, keys, values, table.rows, filled), references.attention(query, *own)
                )


CHECKS: dict[str, tuple[Check, float]] = {
    "nearest_code": (check_nearest, ROUNDING),
    "draw_pairs_counts, top_pairs_counts": (check_counts, ROUNDING),
    "log_marginal_sum": (check_sums, ROUNDING),
    "draw_pairs_sum": (check_inversion, INVERSION),
    "count_triples": (check_counting, EXACT),
    "reorder_cache": (check_reorder, EXACT),
    "attend_by_ancestry": (partial(check_attention, torch.float32), ROUNDING),
    "attend_by_ancestry, float16": (partial(check_attention, torch.float16), HALF_ROUNDING),
}


def draw_counted(sizes: Sizes, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs [2, draws] by `draw_pairs_counts` over several chunks of entries, and the weights [K, K] that they should follow."""
    mixture, rows = torch.tensor([2], device=DEVICE), counted_rows(sizes.drawn_codes, [1, 5, sizes.drawn_entries], seed)
    log_p = log_priors(1, 1, sizes.drawn_codes, seed, sharpness=0.5)
    drawn, _ = draw_pairs_counts(log_p.expand(-1, -1, sizes.draws, -1), mixture, *rows, seed)
    return drawn[:, 0], references.dense_scores(log_p, mixture, rows)[0, 0].exp()


def draw_summed(sizes: Sizes, seed: int) -> tuple[Tensor, Tensor]:
    """The same by `draw_pairs_sum`."""
    mixture, tables = torch.tensor([4], device=DEVICE), sum_tables(sizes.drawn_codes, seed)
    log_p = log_priors(1, 1, sizes.drawn_codes, seed, sharpness=0.5)
    drawn, _ = draw_pairs_sum(log_p.expand(-1, -1, sizes.draws, -1), mixture, *tables, seed)
    return drawn[:, 0], references.dense_sum_scores(log_p, mixture, *tables)[0, 0].exp()


def draw_posterior(kind: LikelihoodKind, sizes: Sizes, seed: int) -> tuple[Tensor, Tensor]:
    """The same by a whole likelihood, whose draw is one from its sum or from its counts."""
    model, mixture = random_likelihood(sizes.drawn_codes, 4, kind, DEVICE, seed), torch.tensor([3], device=DEVICE)
    log_p = log_priors(1, 1, sizes.drawn_codes, seed, sharpness=0.5)
    many = log_p.expand(-1, -1, sizes.draws, -1).contiguous()
    drawn = model.draw_pairs(mixture, many, seeded_generator(seed, device=DEVICE)).codes
    weights = log_p[0, 0, 0].double().exp()[:, None] * log_p[1, 0, 0].double().exp() * model.matrix(3).double()
    return drawn[:, 0], weights


DRAWS: dict[str, Callable[[Sizes, int], tuple[Tensor, Tensor]]] = {
    "draw_pairs_counts": draw_counted,
    "draw_pairs_sum": draw_summed,
    "posterior of sum": partial(draw_posterior, "sum"),
    "posterior of counts": partial(draw_posterior, "counts"),
}


def _rows_of(codes: int, lengths: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counted pairs of the first mixture codes, none of the others."""
    return counted_rows(codes, [*lengths, *[0] * (codes - len(lengths))], seed)


def _certain(codes: int, batch: int, particles: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Particles that can draw one pair only: log-probabilities, both codes [B, N], ancestors [B, N]."""
    first, second = randint(codes, 2, batch, particles, seed=seed)
    return (
        references.certain_priors(first, second, codes),
        first,
        second,
        randint(particles, batch, particles, seed=seed + 1),
    )


def _checked(name: str, check: Check, tolerance: float, codes: int, sizes: Sizes, body: str, seed: int) -> list[dict]:
    with references.chosen_body(body):
        cases = list(check(codes, sizes, seed))
    error = max(case.error for case in cases)
    counts = {"codes": codes, "cases": len(cases), "compared": sum(case.compared for case in cases)}
    return [
        {
            "kernel": name,
            "body": body,
            **counts,
            "largest_error": _finite(error),
            "tolerance": tolerance,
            "passed": error <= tolerance,
            "seed": seed,
        }
    ]


def _draws(
    name: str, draw: Callable[[Sizes, int], tuple[Tensor, Tensor]], sizes: Sizes, body: str, seed: int
) -> list[dict]:
    """`largest_error`: of chi-square from its mean, in standard deviations."""
    with references.chosen_body(body):
        drawn, weights = draw(sizes, seed)
    statistic, freedom = references.chi_square(drawn, weights)
    deviation = (statistic - freedom) / max(1, 2 * freedom) ** 0.5
    measured = {
        "chi_square": _finite(statistic),
        "freedom": freedom,
        "p_value": float(chi2.sf(statistic, max(1, freedom))),
    }
    counts = {"codes": sizes.drawn_codes, "cases": 1, "compared": drawn.shape[1]}
    passed = freedom > 20 and deviation < DEVIATIONS
    common = {
        "kernel": f"{name}, chi-square",
        "body": body,
        **counts,
        "largest_error": _finite(deviation),
        "tolerance": DEVIATIONS,
    }
    return [common | {"passed": passed, "seed": seed} | measured]


def _replay(kind: LikelihoodKind, session: Session, sizes: Sizes) -> list[dict]:
    """A search whose steps are replayed from a CUDA graph finds what the steps one by one find; elsewhere nothing is recorded, and that is said."""
    separator = untrained_separator(load_profile("smoke" if session.quick else "cpu"), kind, session.seed)
    particles, graph, recordings = separator.profile.search.particles, torch.cuda.graph, []
    codes = song_codes(separator, sizes.song_seconds, 3)
    with patch.object(torch.cuda, "graph", lambda *args, **options: recordings.append(1) or graph(*args, **options)):
        replayed = _searched(separator, codes, particles, session.seed)
    with ExitStack() as stack:
        for module in (search, decoding):
            stack.enter_context(patch.object(module, "Replayed", lambda step, device: step))
        one_by_one = _searched(separator, codes, particles, session.seed)
    cases = [
        differing(getattr(replayed, name), getattr(one_by_one, name))
        for name in ("codes", "log_weights", "log_evidence", "ancestors")
    ]
    error = sum(case.error for case in cases)
    counts = {
        "codes": separator.likelihood.codes,
        "cases": len(cases),
        "compared": sum(case.compared for case in cases),
        "recordings": len(recordings),
    }
    passed = error == 0 and bool(recordings) == (session.device.type == "cuda")
    common = {
        "kernel": f"replayed step, {kind}",
        "body": references.bodies_here()[-1],
        **counts,
        "largest_error": error,
        "tolerance": EXACT,
    }
    return [common | {"passed": passed, "seed": session.seed}]


def _searched(separator: Separator, codes: Tensor, particles: int, seed: int) -> SearchResult:
    return particle_filter(separator.stack, separator.likelihood, codes, particles, seeded_generator(seed))


def _finite(number: float) -> float:
    """JSON has no infinity."""
    return min(number, 1e300)
