"""What each step that was taken to raise the score was worth: the Hybrid from its first settings to the present ones, on the same test songs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from hybridsep.core.profiles import Profile, method_spec
from hybridsep.evaluation.comparisons import BLIND, SOURCES_MEAN, interval_columns, permutation_p, song_values
from hybridsep.evaluation.metrics import sdr
from hybridsep.evaluation.rows import rows_where
from hybridsep.evaluation.statistics import holm
from hybridsep.inference.wiener import STFT_SIZE, wiener
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.studies import Study

METHOD = "hybrid"
CODEC = f"codec-{method_spec(METHOD).vqvae}"
CHUNKS = 16
FIRST_SHARE = 0.25  # of the present steps of the priors
START, REFINED, LONGER, TEMPERED, VARIED, MORE, AVERAGED = (
    "start",
    "refinement",
    "longer",
    "temperature",
    "effects",
    "particles",
    "filters",
)
STEPS = (START, REFINED, LONGER, TEMPERED, VARIED, MORE, AVERAGED)
TOGETHER = "together"
# Window and trust of the filter that refines the stems in place of the present ones, each pair alone. Its first form was plain masks, of a shorter window.
FIRST_MASKS, MASKS, FULL_TRUST = "first masks", "masks", "full trust"
ASIDE = {FIRST_MASKS: (2048, 0.0), MASKS: (STFT_SIZE, 0.0), FULL_TRUST: (STFT_SIZE, 1.0)}
BEFORE_ASIDE = VARIED  # the step that they change


@dataclass(frozen=True)
class Stage:
    """The Hybrid at one step.

    Attributes:
        step: its name in the tables.
        changes: settings that are not the profile's own, block = {setting: value}.
        particles: N.
    """

    step: str
    particles: int
    changes: Mapping[str, dict[str, object]] = field(default_factory=dict)


def stages(profile: Profile) -> tuple[Stage, ...]:
    """The steps that search anew, from the first settings of the profile to its own."""
    few, many, training = profile.search.particles, profile.evaluation.many_particles, profile.prior.training
    without_effects = {"data": {"effects": 0.0}}
    untempered = {"search": {"temperature": 1.0, "filter_particles": 0}}
    one_filter = {"search": {"filter_particles": 0}}
    short = {"prior": {"training": training.model_copy(update={"steps": max(1, round(FIRST_SHARE * training.steps))})}}
    return (
        Stage(START, few, {**without_effects, **untempered, **short}),
        Stage(LONGER, few, {**without_effects, **untempered}),
        Stage(TEMPERED, few, {**without_effects, **one_filter}),
        Stage(VARIED, few, one_filter),
        Stage(MORE, many, one_filter),
        Stage(AVERAGED, many),
    )


def improvements(study: Study) -> None:
    """Scores at every step and beside it, and what each step gained on the same songs."""
    rows, ceilings = [], {}
    # The model that users load is the last one that was asked for: it is made before the others, and put back whatever becomes of them.
    study.changed_pipeline().separator(METHOD)
    try:
        for stage in stages(study.pipeline.profile):
            evaluation = Evaluation(study.changed_pipeline(evaluation={"chunks": CHUNKS}, **stage.changes))
            run = evaluation.blind_run(METHOD, particles=stage.particles).rows
            codec = _codec_name(evaluation.pipeline)
            if codec not in ceilings:
                scored = evaluation.score_estimates(CODEC, evaluation.codec(method_spec(METHOD).vqvae))
                ceilings[codec] = scored[scored.refine == "none"]
            rows += [part.assign(step=step) for step, part in _by_step(stage.step, run, ceilings[codec])]
            if stage.step == BEFORE_ASIDE:
                rows += [part.assign(step=step) for step, part in _beside(evaluation, run)]
    finally:
        study.changed_pipeline().separator(METHOD)
    table = pd.concat(rows, ignore_index=True)
    table = table[table.metric == "sdr"]
    study.write("scores", table)
    study.write("gains", gains_table(table))


def _codec_name(pipeline: Pipeline) -> str:
    return pipeline.vqvae_step(method_spec(METHOD).vqvae).folder.name


def _by_step(step: str, run: pd.DataFrame, ceiling: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of a run by the step they belong to: the first settings refined are a step of their own."""
    if step == START:
        yield START, pd.concat([run[run.refine == "none"], ceiling])
        yield REFINED, pd.concat([run[run.refine == "wiener"], ceiling])
    else:
        yield step, pd.concat([run, ceiling])


def _beside(evaluation: Evaluation, run: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The same estimates refined in the ways of ASIDE: rows like those of the run, with other scores."""
    separator, settings = evaluation.pipeline.separator(METHOD), evaluation.settings
    found = separator.estimate(evaluation.chunks.mixture, seed=settings.seed, label=f"{METHOD}, refined otherwise")
    refined = rows_where(run, **BLIND, refine="wiener")
    for name, (size, trust) in ASIDE.items():
        values = _scores(evaluation, wiener(found.stems.cpu(), found.mixture.cpu(), size, trust))
        yield name, refined.assign(value=[values[row.source, row.track] for row in refined.itertuples()])


def _scores(evaluation: Evaluation, stems: Tensor) -> dict[tuple[str, str], float]:
    """SDR in dB of stems [P, B, T], by source and song."""
    chunks = evaluation.chunks
    values = sdr(stems.numpy(), chunks.sources[..., : stems.shape[-1]].numpy(), chunks.sample_rate)
    return {
        (source, track): float(values[p, b])
        for p, source in enumerate(chunks.names)
        for b, track in enumerate(chunks.tracks)
    }


def gains_table(table: pd.DataFrame) -> pd.DataFrame:
    """What each step gained over the one before it, paired by song, dB.

    Args:
        table: rows in the columns of evaluation.csv with `step`: blind SDR of the Hybrid and of its codec.

    Returns:
        step (of STEPS but the first, TOGETHER: the last one over the first, or of ASIDE: over BEFORE_ASIDE), refine, source (or their mean),
        mean, low, high (95 % bootstrap interval over songs), std, n, p (paired permutation test), score (mean at the step), ceiling (of the
        codec at the step), remaining (ceiling minus score), and p_holm, corrected for the rows of that refine and source. The first
        refined score is compared with the same estimates as decoded.
    """
    compared = [(step, STEPS[k - 1]) for k, step in enumerate(STEPS) if k] + [(name, BEFORE_ASIDE) for name in ASIDE]
    rows = []
    for source in (SOURCES_MEAN, *dict.fromkeys(table.source)):
        score = _scorer(table, source)
        for step, before in compared:
            # Of the steps that both sides have as decoded and refined, both; as decoded, REFINED is what START is.
            rows.append(_gain(score, step, "wiener", before, "none" if step == REFINED else "wiener", source))
            if step not in (REFINED, *ASIDE):
                rows.append(_gain(score, step, "none", START if before == REFINED else before, "none", source))
        rows.append(_gain(score, STEPS[-1], "wiener", START, "none", source) | {"step": TOGETHER})
    gains = pd.DataFrame(rows)
    return gains.assign(p_holm=gains.groupby(["refine", "source"]).p.transform(lambda p: holm(p.to_numpy())))


Scorer = Callable[[str, str, str], pd.Series]


def _scorer(table: pd.DataFrame, source: str) -> Scorer:
    """Blind SDR of a method at a step, with a refinement, one value per song."""
    only = {} if source == SOURCES_MEAN else {"source": source}
    return lambda method, step, refine: song_values(table, **BLIND, **only, method=method, step=step, refine=refine)


def _gain(score: Scorer, step: str, refine: str, before: str, before_refine: str, source: str) -> dict[str, object]:
    now, then = score(METHOD, step, refine), score(METHOD, before, before_refine)
    ceiling = score(CODEC, BEFORE_ASIDE if step in ASIDE else step, "none").mean()
    found = (now - then).to_numpy()
    figures = {"score": now.mean(), "ceiling": ceiling, "remaining": ceiling - now.mean()}
    return {
        "step": step,
        "refine": refine,
        "source": source,
        **interval_columns(found),
        "p": permutation_p(found),
        **figures,
    }
