"""What a supervised network cannot do: separate an instrument that came later, with a prior trained on solo recordings of it alone.

The VQ-VAE and the priors of the first two sources stay as they are. A third prior is trained on their codec's codes of a solo instrument, and
each pair with it needs counts of its own, from pairs of solo recordings that never sounded together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from hybridsep.core.profiles import VQVAEKind, method_spec
from hybridsep.data.minislakh.render import PARTS, make_minislakh
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step, StepCache
from hybridsep.studies import Study
from hybridsep.studies.baselines import separate_by, trained_tasnet, training_seconds

METHOD = "hybrid"
THIRD, THIRD_CLASS = "piano", "Piano"
CHUNKS = 12
KEPT_METRICS = ("sdr", "si_sdr_improvement", "log_evidence", "seconds")


class OtherPair(Pipeline):
    """A run of other sources with the VQ-VAE, and what priors there are, of the run it belongs to, in a folder inside that one's.

    Args:
        base: the run whose VQ-VAE serves.
        sources: source name -> Slakh instrument class.
        trained: source name -> the run that has its prior.
    """

    def __init__(self, base: Pipeline, sources: dict[str, str], trained: Mapping[str, Pipeline]):
        super().__init__(
            base.profile.model_copy(update={"sources": sources}), base.root.parent, base.data, records=base.records
        )
        self.base, self.trained = base, trained
        record = base.cache.record and base.cache.record / "-".join(sources)
        self.cache = StepCache(base.root / "-".join(sources), self.device, base.cache.deadline, self.ranks, record)

    def songs(self) -> Path:
        """The songs of the other run, with the third instrument; stems of the first two are the same."""
        if self.data:
            return super().songs()
        settings, parts = self.profile.data, (*PARTS, THIRD)
        step = self.base.cache.step(f"songs-{THIRD}", settings, parts)

        def make() -> dict:
            make_minislakh(
                step.folder / "MiniSlakh",
                settings.tracks,
                settings.seconds,
                settings.seed,
                settings.sample_rate,
                parts=parts,
            )
            return {"tracks": settings.tracks, "seconds": settings.seconds}

        self.base.cache.make(step, make)
        return step.folder / "MiniSlakh"

    def vqvae(self, kind: VQVAEKind) -> VQVAE:
        """Of the other run: it never heard the third instrument."""
        return self.base.vqvae(kind)

    def vqvae_step(self, kind: VQVAEKind) -> Step:
        """Of the other run."""
        return self.base.vqvae_step(kind)

    def prior(self, kind: VQVAEKind, source: str) -> Prior:
        """One that is there, or one trained on solo recordings of a new source."""
        return self.trained[source].prior(kind, source) if source in self.trained else super().prior(kind, source)

    def prior_step(self, kind: VQVAEKind, source: str) -> Step:
        """Where it is kept."""
        return (
            self.trained[source].prior_step(kind, source)
            if source in self.trained
            else super().prior_step(kind, source)
        )


def third_instrument(study: Study) -> None:
    """Each of the first two sources beside the third, separated by the Hybrid and by a network trained on mixtures of the first two."""
    base = study.changed_pipeline(evaluation={"chunks": CHUNKS})
    base.separator(METHOD)
    network = trained_tasnet(base, base.stems("train"), training_seconds(base, METHOD))
    trained: dict[str, Pipeline] = dict.fromkeys(base.profile.source_names, base)
    rows, nats = [], []
    for place, (source, inst_class) in enumerate(base.profile.sources.items()):
        pair = OtherPair(base, {source: inst_class, THIRD: THIRD_CLASS}, dict(trained))
        evaluation = Evaluation(pair)
        runs = [evaluation.blind_run(METHOD).rows, _by_network(evaluation, network, place), evaluation.references()]
        rows.append(pd.concat(runs, ignore_index=True).assign(pair=f"{source} + {THIRD}"))
        trained.setdefault(THIRD, pair)
    rows.append(_first_pair(base, network))
    kind = method_spec(METHOD).vqvae
    for source, run in trained.items():
        figures = run.prior_step(kind, source).record["figures"]
        nats.append(
            {
                "source": source,
                "nats_per_code": figures["validation_nats_per_code"],
                "seconds": run.prior_step(kind, source).record["seconds"],
            }
        )
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(KEPT_METRICS)])
    study.write("priors", pd.DataFrame(nats))


def _first_pair(base: Pipeline, network: torch.nn.Module) -> pd.DataFrame:
    """The pair that both methods were trained for."""
    evaluation = Evaluation(base)
    runs = [
        evaluation.blind_run(METHOD).rows,
        evaluation.score_estimates("convtasnet", _separated(evaluation, network)),
        evaluation.references(),
    ]
    return pd.concat(runs, ignore_index=True).assign(pair=" + ".join(base.profile.source_names))


def _by_network(evaluation: Evaluation, network: torch.nn.Module, place: int) -> pd.DataFrame:
    """The network's output for the source that it knows, in that source's place, and its other output as the third instrument."""
    outputs = _separated(evaluation, network)
    return evaluation.score_estimates("convtasnet", torch.stack([outputs[place], outputs[1 - place]]))


@torch.no_grad()
def _separated(evaluation: Evaluation, network: torch.nn.Module) -> torch.Tensor:
    return separate_by(network, evaluation.chunks.mixture)
