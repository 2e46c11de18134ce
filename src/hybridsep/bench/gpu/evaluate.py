"""The trained models under the instrument, their weights in small files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from hybridsep.bench.gpu.session import Part, Session, peak_gib
from hybridsep.bench.gpu.train import trained_profile
from hybridsep.bench.gpu.weights import export_weights, exported, model_steps
from hybridsep.core.files import write_atomically
from hybridsep.core.profiles import METHODS, method_spec
from hybridsep.evaluation.chunks import Evaluation, read_rows
from hybridsep.pipeline.pipeline import Pipeline, Step

METRICS = ("sdr", "si_sdr_improvement", "seconds", "log_evidence")
SCORES = "evaluation.csv"


def parts(session: Session) -> Iterator[Part]:
    """Every method by every search, the scores of what is no separation, and the weights of all models."""
    pipeline = Pipeline(trained_profile(session), session.runs, records=None)
    for method in METHODS:
        for search in pipeline.profile.evaluation.searches:
            yield Part(f"{method}/{search}", partial(_run, session, pipeline, method, search), 2.0)
    yield Part("references", partial(_references, session, pipeline))
    yield Part("weights", partial(_weights, session, pipeline))


def _weights(session: Session, pipeline: Pipeline) -> list[dict]:
    folder, steps = session.out / "weights", model_steps(pipeline)
    done = [step for step in steps if step.done]
    for step in done:
        if not exported(step, folder):
            export_weights(step, folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return [{"name": "weights", "models": [step.label for step in done], "bytes": size, "left": _left(steps)}]


def _references(session: Session, pipeline: Pipeline) -> list[dict]:
    left = _left([step for step in model_steps(pipeline) if step.label.startswith("vqvae")])
    if not left:
        _keep_scores(session, Evaluation(pipeline).references())
    return [{"name": "references", "left": left}]


def _run(session: Session, pipeline: Pipeline, method: str, search: str) -> list[dict]:
    """One method and search: scores into evaluation.csv, time and memory as a row."""
    spec = method_spec(method)
    priors = (pipeline.prior_step(spec.vqvae, name) for name in pipeline.profile.source_names)
    if left := _left([pipeline.vqvae_step(spec.vqvae), *priors, pipeline.likelihood_step(spec.vqvae, spec.likelihood)]):
        return [{"name": f"{method}/{search}", "left": left}]
    run = Evaluation(pipeline).run(method, search)
    _keep_scores(session, run.rows)
    seconds = float(run.rows[run.rows.metric == "seconds"].value.mean())
    measured = {
        "particles": run.particles,
        "seconds_per_chunk": seconds,
        "nats_per_code": float(run.log_evidence.mean()),
    }
    return [{"name": f"{method}/{search}", **measured, **peak_gib(session.device)}]


def _keep_scores(session: Session, rows: pd.DataFrame) -> None:
    """Add the figures that are shown to evaluation.csv, in the place of what an earlier call found for the same methods and searches."""
    path = session.out / SCORES
    fresh = rows[rows.metric.isin(METRICS) & rows.reference.isin(("real", ""))]
    if path.is_file():
        before, keys = read_rows(path), ["method", "search"]
        again = pd.MultiIndex.from_frame(before[keys]).isin(pd.MultiIndex.from_frame(fresh[keys]))
        fresh = pd.concat([before[~again], fresh], ignore_index=True)
    session.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, fresh.to_csv(index=False, float_format="%.5g", na_rep="nan").encode())


def _left(steps: list[Step]) -> str:
    missing = [step.label for step in steps if not step.done]
    return f"{', '.join(missing)} not trained yet (stage train)" if missing else ""
