"""What each setting of the search and the likelihood does, on validation songs: settings are never chosen on test songs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from hybridsep.decoding import PriorStack
from hybridsep.evaluation import Evaluation
from hybridsep.likelihood import CountLikelihood, Likelihood, SumLikelihood
from hybridsep.profiles import METHODS
from hybridsep.separation import Separator
from hybridsep.studies import Study
from hybridsep.studies.effects import BLIND, interval_columns, song_values

CHUNKS = 8


def with_likelihood(separator: Separator, likelihood: Likelihood) -> Separator:
    """The same model searching with another likelihood, in the precision of its own."""
    other = copy.copy(separator)
    likelihood.precision = separator.likelihood.precision
    other.likelihood = likelihood
    return other


def with_power(separator: Separator, power: float) -> Separator:
    """Counts raised to λ."""
    own: CountLikelihood = separator.likelihood
    return with_likelihood(separator, CountLikelihood(own.keys, own.counts, own.backoff, own.smoothing, power))


def with_smoothing(separator: Separator, smoothing: float) -> Separator:
    """So many pseudo-counts α."""
    own: CountLikelihood = separator.likelihood
    return with_likelihood(separator, CountLikelihood(own.keys, own.counts, own.backoff, smoothing, own.power))


def with_sigma(separator: Separator, factor: float) -> Separator:
    """σ of the summed codebook times a factor."""
    own: SumLikelihood = separator.likelihood
    return with_likelihood(separator, SumLikelihood(own.codebook, own.sigma_squared * factor**2, own.floor))


def with_temperature(separator: Separator, temperature: float) -> Separator:
    """Priors of another temperature."""
    return separator.with_priors(PriorStack(separator.priors, separator.stack.dtype, temperature))


def with_ess_threshold(separator: Separator, threshold: float) -> Separator:
    """Resampling when the effective sample size falls under this share of N."""
    other = copy.copy(separator)
    other.profile = separator.profile.model_copy(update={"search": separator.profile.search.model_copy(update={"ess_threshold": threshold})})
    return other


@dataclass(frozen=True)
class Sweep:
    """One setting, changed alone.

    Attributes:
        setting: its name in the tables.
        method: whose.
        values: tried, beside the method's own.
        change: what makes a separator of such a value; None: the value is N.
        comparable: whether evidence means the same at all values. At λ ≠ 1 the likelihood is no distribution over mixture codes any more,
            and its evidence none of the mixture.
    """

    setting: str
    method: str
    values: tuple[float, ...]
    change: Callable[[Separator, float], Separator] | None = None
    comparable: bool = True


SWEEPS = (
    Sweep("power", "hybrid", (0.5, 0.7, 1.5, 2.0, 3.0), with_power, comparable=False),
    Sweep("smoothing", "hybrid", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), with_smoothing),
    Sweep("sigma", "lqvae", (0.25, 0.5, 0.7, 1.4, 2.0, 4.0), with_sigma),
    *(Sweep("temperature", method, (0.8, 1.0, 1.2, 1.6, 2.0), with_temperature) for method in METHODS),
    Sweep("ess_threshold", "hybrid", (0.1, 0.25, 0.75, 0.9, 1.0), with_ess_threshold),
    Sweep("particles", "hybrid", (8, 16, 64, 128)),
)


def settings(study: Study) -> None:
    """Blind SDR and evidence of the particle filter against each setting, and whether the one predicts the other."""
    evaluation = study.evaluation("validation", chunks=CHUNKS)
    rows = []
    for sweep in SWEEPS:
        own = own_values(evaluation, sweep.method)[sweep.setting]
        rows.append(evaluation.blind_run(sweep.method).rows.assign(setting=sweep.setting, tried=own, comparable=True))
        tried = (value for value in sweep.values if value != own)
        rows += [_run(evaluation, sweep, value).assign(setting=sweep.setting, tried=value, comparable=sweep.comparable) for value in tried]
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence", "seconds"))])
    study.write("correlation", correlation_table(table))


def own_values(evaluation: Evaluation, method: str) -> dict[str, float]:
    """What every setting of SWEEPS is without a change; σ as a factor of itself."""
    separator = evaluation.pipeline.separator(method)
    search, likelihood = separator.profile.search, separator.likelihood
    return {
        "power": getattr(likelihood, "power", 1.0), "smoothing": getattr(likelihood, "smoothing", float("nan")), "sigma": 1.0, "temperature": search.temperature,
        "ess_threshold": search.ess_threshold, "particles": search.particles,
    }  # fmt: skip


def _run(evaluation: Evaluation, sweep: Sweep, value: float) -> pd.DataFrame:
    if sweep.change is None:
        return evaluation.blind_run(sweep.method, particles=int(value)).rows
    return evaluation.blind_run(sweep.method, variant=f"{sweep.setting}-{value:g}", change=lambda separator: sweep.change(separator, value)).rows


def correlation_table(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of evidence and blind SDR over settings.

    Args:
        table: rows in the columns of evaluation.csv with `setting`, `tried` and `comparable`.

    Returns:
        method, refine, settings ("comparable" or "all"), rho of the means over songs, p, n (settings); rho_song: mean of every song's own
        correlation, with its 95 % interval over songs, low and high.
    """
    rows = []
    for method, of_method in table.groupby("method", sort=False):
        for which, chosen in (("comparable", of_method[of_method.comparable]), ("all", of_method)):
            for refine in ("none", "wiener"):
                pairs = setting_means(chosen, refine)
                each = [spearmanr(song.evidence, song.sdr).statistic for _, song in pairs.groupby("track")]
                means = pairs.groupby(["setting", "tried"])[["evidence", "sdr"]].mean().drop_duplicates()
                result = spearmanr(means.evidence, means.sdr)
                span = interval_columns(each)
                rows.append({
                    "method": method, "refine": refine, "settings": which, "rho": result.statistic, "p": result.pvalue, "n": len(means),
                    "rho_song": span["mean"], "low": span["low"], "high": span["high"],
                })  # fmt: skip
    return pd.DataFrame(rows)


def setting_means(table: pd.DataFrame, refine: str) -> pd.DataFrame:
    """Evidence (nats per code) and SDR (dB, mean over sources) of every setting and song: columns setting, tried, track, evidence, sdr."""
    parts = []
    for (setting, tried), rows in table.groupby(["setting", "tried"], sort=False):
        both = pd.DataFrame({"evidence": song_values(rows, metric="log_evidence"), "sdr": song_values(rows, **BLIND, refine=refine)})
        parts.append(both.reset_index().assign(setting=setting, tried=tried))
    return pd.concat(parts, ignore_index=True)
