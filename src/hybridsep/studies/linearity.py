"""Does L_lin buy linearity, and does linearity buy separation? Its weight against both, everything trained anew at each, on validation songs."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from hybridsep.core.profiles import METHODS, TrainingSettings, method_spec
from hybridsep.evaluation.linearity import measure_linearity
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study

WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
CHUNKS = 8
SHARE = 0.25
"""Of the profile's training steps and counted pairs, the same for every weight."""


def linearity(study: Study) -> None:
    """Hit rate and distance of the codebook, ceiling of the codec, and scores of both methods on it, against the weight of L_lin."""
    profile = study.pipeline.profile
    codec, prior = (_shortened(block.training) for block in (profile.vqvae, profile.prior))
    figures, scores = [], []
    for weight in WEIGHTS:
        pipeline = study.changed_pipeline(
            vqvae={"linear_weight": weight, "training": codec},
            prior={"training": prior},
            likelihood={"counted_seconds": SHARE * profile.likelihood.counted_seconds},
            evaluation={"chunks": CHUNKS},
        )
        evaluation = Evaluation(pipeline, "validation")
        of_codebook = measure_linearity(
            pipeline.vqvae("linear").codebook.cpu(), pipeline.triples("linear", "validation")
        )
        ceiling = evaluation.score_estimates("codec-linear", evaluation.codec("linear"))
        runs = [evaluation.blind_run(method).rows for method in METHODS if method_spec(method).vqvae == "linear"]
        records = {f"nats_{source}": pipeline.prior_step("linear", source).record for source in profile.source_names}
        nats = {name: record["figures"]["validation_nats_per_code"] for name, record in records.items()}
        figures.append({"weight": weight, **asdict(of_codebook), **nats})
        scores += [rows.assign(weight=weight) for rows in (ceiling[ceiling.refine == "none"], *runs)]
    study.write("figures", pd.DataFrame(figures))
    table = pd.concat(scores, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence"))])


def _shortened(training: TrainingSettings) -> TrainingSettings:
    return training.model_copy(update={"steps": max(1, round(SHARE * training.steps))})
