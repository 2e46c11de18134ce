"""What each part contributes: Hybrid and LASS with their priors replaced by poorer ones, down to codes at random."""

from __future__ import annotations

import pandas as pd
import torch
from study import Study, main
from two_by_two import KEPT_METRICS

from hybridsep.core.device import seeded_generator
from hybridsep.core.profiles import method_spec
from hybridsep.inference.markov import MarkovPriors, bigram_priors, uniform_priors, unigram_priors
from hybridsep.inference.separator import Separator
from hybridsep.pipeline.evaluate import Evaluation

CHUNKS = 12
COMPARED = ("hybrid", "lass")


def contributions(study: Study) -> None:
    """Separate by both methods with every kind of prior, on the same chunks."""
    evaluation = study.evaluation(chunks=CHUNKS)
    rows, nats = [], []
    for method in COMPARED:
        known = chains(evaluation, method)

        def with_chain(separator: Separator, priors: str, known: dict[str, MarkovPriors] = known) -> Separator:
            return separator.with_priors(known[priors])

        for name, chain in known.items():
            run = evaluation.blind_run(method, change=with_chain, priors=name)
            rows.append(run.rows.assign(priors=name))
            nats += [{"method": method, "priors": name, **row} for row in held_out_nats(evaluation, method, chain)]
        rows.append(evaluation.blind_run(method).rows.assign(priors="transformer"))
        rows.append(random_codes(evaluation, method).assign(priors="random codes"))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("nats", pd.DataFrame(nats))


def chains(evaluation: Evaluation, method: str) -> dict[str, MarkovPriors]:
    """Return Markov priors of a method's codes, from the poorest on."""
    pipeline, size = evaluation.pipeline, evaluation.pipeline.profile.vqvae.codes
    train, validation = (pipeline.codes(method_spec(method).vqvae, split) for split in ("train", "validation"))
    return {
        "uniform": uniform_priors(len(evaluation.chunks.names), size),
        "unigram": unigram_priors(train, size),
        "bigram": bigram_priors(train, validation, size),
    }


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
    return evaluation.score_estimates(method, noise * level)


if __name__ == "__main__":
    main(contributions)
