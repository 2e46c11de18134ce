"""What no supervised network can: separate an instrument that came later, with a prior of its solo recordings alone.

The VQ-VAE and the priors of the first two sources stay. A third prior is trained on their codec's codes of a solo
instrument, and each pair with it is counted anew, from solo recordings that never sounded together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from baselines import network_separation, trained_tasnet, training_seconds
from study import Study, main

from hybridsep.core.profiles import VQVAEKind, method_spec
from hybridsep.data.minislakh.render import PARTS, make_minislakh
from hybridsep.evaluation.protocols import score_estimates
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline, Step

METHOD = "hybrid"
THIRD, THIRD_CLASS = "piano", "Piano"
CHUNKS = 12
KEPT_METRICS = ("sdr", "si_sdr_improvement", "log_evidence", "seconds")


class OtherPair(Pipeline):
    """A run of other sources with the VQ-VAE, and what priors there are, of the run that its folder lies in.

    Args:
        base: the run whose VQ-VAE serves.
        sources: source name -> Slakh instrument class.
        trained: source name -> the run that has its prior.
    """

    def __init__(self, base: Pipeline, sources: dict[str, str], trained: Mapping[str, Pipeline]):
        profile = base.profile.model_copy(update={"name": "-".join(sources), "sources": sources})
        super().__init__(profile, base.root, base.data, records=None)
        self.base, self.trained = base, trained

    def songs(self) -> Path:
        """Make the songs of the other run with the third instrument; stems of the first two are the same."""
        if self.data:
            return super().songs()
        settings, parts = self.profile.data, (*PARTS, THIRD)
        step = self.base.cache.step(f"songs-{THIRD}", settings, parts)

        def make() -> dict:
            """Compose and render."""
            size = (settings.tracks, settings.seconds, settings.seed, settings.sample_rate)
            make_minislakh(step.folder / "MiniSlakh", *size, parts=parts)
            return {"tracks": settings.tracks, "seconds": settings.seconds}

        self.base.cache.make(step, make)
        return step.folder / "MiniSlakh"

    def vqvae(self, kind: VQVAEKind) -> VQVAE:
        """Return the other run's: it never heard the third instrument."""
        return self.base.vqvae(kind)

    def vqvae_step(self, kind: VQVAEKind) -> Step:
        """Return where the other run keeps it."""
        return self.base.vqvae_step(kind)

    def prior(self, kind: VQVAEKind, source: str) -> Prior:
        """Return one that is there, or train one on solo recordings of a new source."""
        return self.trained[source].prior(kind, source) if source in self.trained else super().prior(kind, source)

    def prior_step(self, kind: VQVAEKind, source: str) -> Step:
        """Return where a prior is kept."""
        known = self.trained.get(source)
        return known.prior_step(kind, source) if known else super().prior_step(kind, source)


def third_instrument(study: Study) -> None:
    """Separate each of the first two sources and the third, by the Hybrid and by a network that knows the first two."""
    base = study.changed(evaluation={"chunks": CHUNKS})
    base.separator(METHOD)
    network, _ = trained_tasnet(base, training_seconds(base, METHOD))
    trained, rows = dict.fromkeys(base.profile.source_names, base), []
    for place, (source, inst_class) in enumerate(base.profile.sources.items()):
        pair = OtherPair(base, {source: inst_class, THIRD: THIRD_CLASS}, dict(trained))
        rows.append(scores(pair, network, [place, 1 - place]))
        trained.setdefault(THIRD, pair)
    rows.append(scores(base, network, [0, 1]))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS)])
    study.write("priors", pd.DataFrame([prior_row(run, source) for source, run in trained.items()]))


def scores(pipeline: Pipeline, network: torch.nn.Module, places: list[int]) -> pd.DataFrame:
    """Return scores of the Hybrid, of the references, and of the network, whose outputs are put in these places."""
    evaluation = Evaluation(pipeline)
    by_network = network_separation(network)(evaluation.chunks.mixture)[places]
    runs = [evaluation.blind_run(METHOD), score_estimates(evaluation.chunks, by_network, "convtasnet")]
    table = pd.concat([*runs, evaluation.references()], ignore_index=True)
    return table.assign(pair=" + ".join(pipeline.profile.source_names))


def prior_row(run: Pipeline, source: str) -> dict[str, object]:
    """Return validation nats per code of a source's prior and its seconds of training."""
    record = run.prior_step(method_spec(METHOD).vqvae, source).record
    nats = record["figures"]["validation_nats_per_code"]
    return {"source": source, "nats_per_code": nats, "seconds": record["seconds"]}


if __name__ == "__main__":
    main(third_instrument)
