"""What each part contributes: Hybrid and LASS with their priors replaced by poorer ones, down to codes at random."""

from __future__ import annotations

import pandas as pd
import torch
from study import Study, main
from torch import Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.core.profiles import method_spec
from hybridsep.data.codes import CodeSet
from hybridsep.evaluation.protocols import score_estimates
from hybridsep.inference.markov import MarkovPriors
from hybridsep.inference.separator import Separator
from hybridsep.pipeline.evaluate import Evaluation

CHUNKS = 12
COMPARED = ("hybrid", "lass")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "seconds", "log_evidence")
PSEUDO_COUNTS = (1.0, 10.0, 100.0, 1000.0)


def contributions(study: Study) -> None:
    """Separate by both methods with every kind of prior, on the same chunks."""
    evaluation = study.evaluation(chunks=CHUNKS)
    rows, nats = [], []
    for method in COMPARED:
        kind, size = method_spec(method).vqvae, evaluation.pipeline.profile.vqvae.codes
        known = chains(*(evaluation.pipeline.codes(kind, split) for split in ("train", "validation")), size)

        def with_chain(separator: Separator, priors: str, known: dict[str, MarkovPriors] = known) -> Separator:
            return separator.with_priors(known[priors])

        for name, chain in known.items():
            run = evaluation.blind_run(method, change=with_chain, priors=name)
            rows.append(run.assign(priors=name))
            nats += [{"method": method, "priors": name, **row} for row in held_out_nats(evaluation, method, chain)]
        rows.append(evaluation.blind_run(method).assign(priors="transformer"))
        rows.append(random_codes(evaluation, method).assign(priors="random codes"))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("nats", pd.DataFrame(nats))


def chains(train: CodeSet, validation: CodeSet, size: int) -> dict[str, MarkovPriors]:
    """Return Markov priors over K = `size` codes of every source, from the poorest on."""
    unigram = frequencies(train, size)
    uniform = torch.full_like(unigram, 1 / size)
    independent = {"uniform": uniform, "unigram": unigram}
    found = {name: MarkovPriors(first, first[:, None].expand(-1, size, -1)) for name, first in independent.items()}
    return found | {"bigram": MarkovPriors(unigram, transitions(train, validation, unigram))}


def frequencies(codes: CodeSet, size: int) -> Tensor:
    """Return how frequent each code of each source is in the songs, with one pseudo-count a code: float32 [P, K]."""
    counts = torch.stack([torch.bincount(source, minlength=size) for source in torch.cat(codes.songs, 1).long()])
    return (counts + 1.0) / (counts + 1.0).sum(1, keepdim=True)


def transitions(codes: CodeSet, validation: CodeSet, unigram: Tensor) -> Tensor:
    """Return each code's distribution given the one before it: counted pairs, and pseudo-counts shared out by the unigram.

    The number of pseudo-counts of each source is the one of PSEUDO_COUNTS under which `validation` is likeliest.

    Returns:
        float32 [P, K, K].
    """
    size, chains = unigram.shape[1], []
    for source, (first, held_out) in enumerate(zip(unigram, torch.cat(validation.songs, 1).long(), strict=True)):
        pairs = torch.cat([song[source, :-1].long() * size + song[source, 1:].long() for song in codes.songs])
        counts = torch.bincount(pairs, minlength=size * size).view(size, size).float()
        options = [(counts + alpha * first) / (counts.sum(1, keepdim=True) + alpha) for alpha in PSEUDO_COUNTS]
        chains.append(max(options, key=lambda chain: float(chain[held_out[:-1], held_out[1:]].log().mean())))
    return torch.stack(chains)


def held_out_nats(evaluation: Evaluation, method: str, chain: MarkovPriors) -> list[dict[str, object]]:
    """Return nats per code of each source's validation songs."""
    validation = evaluation.pipeline.codes(method_spec(method).vqvae, "validation")
    length, rows = evaluation.pipeline.profile.prior.crop_codes, []
    for p, source in enumerate(evaluation.chunks.names):
        crops = validation.random_crops(p, 32, length, seeded_generator(0, p))
        rows.append({"source": source, "nats_per_code": chain.nats_per_code(crops, p)})
    return rows


def random_codes(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Return the scores of codes that know nothing of the mixture, at the mixture's level."""
    vqvae, chunks = evaluation.pipeline.vqvae(method_spec(method).vqvae), evaluation.chunks
    shape = (len(chunks.names) * len(chunks), chunks.sources.shape[-1] // vqvae.hop)
    codes = torch.randint(len(vqvae.codebook), shape, generator=seeded_generator(0))
    noise = vqvae.decode(codes).view(chunks.sources.shape)
    level = chunks.mixture.square().mean(-1, keepdim=True).sqrt() / noise.square().mean(-1, keepdim=True).sqrt()
    return score_estimates(evaluation.chunks, noise * level, method)


if __name__ == "__main__":
    main(contributions)
