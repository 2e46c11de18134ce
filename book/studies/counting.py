"""How many counted pairs the likelihood needs, on validation songs, and how often one comes up that was not counted."""

from __future__ import annotations

import pandas as pd
import torch
from study import Study, main

from hybridsep.core.level import MIXTURE_RMS
from hybridsep.core.profiles import method_spec
from hybridsep.evaluation.chunks import Chunks
from hybridsep.inference.counts import CountLikelihood
from hybridsep.models.vqvae import VQVAE

METHOD = "hybrid"
CHUNKS = 8
# Source codes that sound together with their mixture's code, counted in whole batches: the first is a little more.
PAIRS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


def counting(study: Study) -> None:
    """Measure SDR, evidence and unseen pairs against the number of counted pairs, smoothed anew for each."""
    heard = {
        split: study.evaluation(split, chunks).chunks for split, chunks in (("validation", CHUNKS), ("test", None))
    }
    spec, profile, rows, unseen = method_spec(METHOD), study.pipeline.profile, [], []
    vqvae = study.pipeline.vqvae(spec.vqvae)
    for pairs in PAIRS:
        seconds = pairs * profile.vqvae.hop / profile.data.sample_rate
        evaluation = study.evaluation("validation", CHUNKS, likelihood={"counted_seconds": seconds})
        run = evaluation.blind_run(METHOD)
        likelihood = evaluation.pipeline.likelihood(spec.vqvae, spec.likelihood)
        counted = int(likelihood.counts.sum())
        rows.append(run[run.metric.isin(("sdr", "log_evidence"))].assign(pairs=counted))
        fitted = {"pairs": counted, "distinct_triples": len(likelihood.keys), "smoothing": likelihood.smoothing}
        for split, chunks in heard.items():
            unseen.append({**fitted, "split": split, **unseen_shares(likelihood, vqvae, chunks)})
    study.write("scores", pd.concat(rows, ignore_index=True))
    study.write("unseen", pd.DataFrame(unseen))


@torch.no_grad()
def unseen_shares(likelihood: CountLikelihood, vqvae: VQVAE, chunks: Chunks) -> dict[str, float]:
    """Return the share of the chunks' true pairs, and of triples with the mixture's code, that were never counted."""
    mixture = chunks.mixture
    level = MIXTURE_RMS / mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    signals = [(signal * level).to(vqvae.codebook.device) for signal in (*chunks.sources, mixture)]
    first, second, mixed = (torch.cat([vqvae.encode(part) for part in signal.split(4)]) for signal in signals)
    counted = torch.zeros(likelihood.codes**2, dtype=torch.bool, device=first.device)
    counted[likelihood.pairs] = True
    return {
        "unseen_pairs": 1 - float(counted[first * likelihood.codes + second].float().mean()),
        "unseen_triples": 1 - float(likelihood.seen(mixed, first, second).float().mean()),
    }


if __name__ == "__main__":
    main(counting)
