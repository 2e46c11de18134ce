"""What each setting of the search and the likelihood does, on validation songs: settings are never chosen on test songs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import BLIND, interval_columns, permutation_p, song_values
from hybridsep.evaluation.statistics import holm
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.decoder import PriorStack
from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.inference.sums import SumLikelihood
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.studies import Study

CHUNKS = 12


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


def with_search(separator: Separator, **changes: float) -> Separator:
    """The same model with some settings of its profile's search changed."""
    other = copy.copy(separator)
    other.profile = separator.profile.model_copy(update={"search": separator.profile.search.model_copy(update=changes)})
    return other


def with_ess_threshold(separator: Separator, threshold: float) -> Separator:
    """Resampling when the effective sample size falls under this share of N."""
    return with_search(separator, ess_threshold=threshold)


def with_particles(separator: Separator, size: float) -> Separator:
    """So many particles in each filter, and as many filters as before."""
    filters, _ = filters_and_particles(separator)
    return with_search(separator, particles=filters * int(size), filter_particles=int(size))


def with_filters(separator: Separator, filters: float) -> Separator:
    """The mean of so many filters, each with as many particles as before."""
    _, size = filters_and_particles(separator)
    return with_search(separator, particles=int(filters) * size, filter_particles=size)


def filters_and_particles(separator: Separator) -> tuple[int, int]:
    """How many filters the particles of the separator's profile make, and how many particles each of them has."""
    total = separator.profile.search.particles
    filters = separator.filters(SearchOptions(particles=total))
    return filters, total // filters


@dataclass(frozen=True)
class Sweep:
    """One setting, changed alone.

    Attributes:
        setting: its name in the tables.
        method: whose.
        values: tried, beside the method's own.
        change: what makes a separator of such a value.
        comparable: whether evidence means the same at all values. At λ ≠ 1 the likelihood is no distribution over mixture codes any more,
            and its evidence none of the mixture.
    """

    setting: str
    method: str
    values: tuple[float, ...]
    change: Callable[[Separator, float], Separator]
    comparable: bool = True


SWEEPS = (
    Sweep("power", "hybrid", (0.5, 0.7, 1.5, 2.0), with_power, comparable=False),
    Sweep("smoothing", "hybrid", (0.3, 3.0, 30.0), with_smoothing),
    Sweep("sigma", "lqvae", (0.35, 0.7, 1.4, 2.0), with_sigma),
    Sweep("temperature", "hybrid", (0.8, 1.0, 1.2, 1.6, 2.0), with_temperature),
    *(Sweep("temperature", method, (1.0, 1.8), with_temperature) for method in METHODS if method != "hybrid"),
    Sweep("ess_threshold", "hybrid", (0.25, 0.9), with_ess_threshold),
    Sweep("particles", "hybrid", (8, 16, 64), with_particles),
    Sweep("filters", "hybrid", (2,), with_filters),
)
# More particles raise evidence and score alike: where they are among the settings, the one predicts the other.
NUMBERS = ("particles", "filters")
COMPARABLE, WITHOUT_N, ALL_SETTINGS = "comparable", "without N", "all"


def settings(study: Study) -> None:
    """Blind SDR and evidence of the particle filter against each setting, what changes it, and whether the one predicts the other."""
    evaluation = study.evaluation("validation", chunks=CHUNKS)
    rows = []
    for sweep in SWEEPS:
        own = own_values(evaluation, sweep.method)[sweep.setting]
        rows.append(
            evaluation.blind_run(sweep.method).rows.assign(setting=sweep.setting, tried=own, own=True, comparable=True)
        )
        tried = (value for value in sweep.values if value != own)
        rows += [
            _run(evaluation, sweep, value).assign(
                setting=sweep.setting, tried=value, own=False, comparable=sweep.comparable
            )
            for value in tried
        ]
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table[table.metric.isin(("sdr", "log_evidence", "seconds"))])
    study.write("differences", differences_table(table))
    study.write("correlation", correlation_table(table))


def own_values(evaluation: Evaluation, method: str) -> dict[str, float]:
    """What every setting of SWEEPS is without a change; σ as a factor of itself."""
    separator = evaluation.pipeline.separator(method)
    search, likelihood = separator.profile.search, separator.likelihood
    filters, size = filters_and_particles(separator)
    return {
        "power": getattr(likelihood, "power", 1.0), "smoothing": getattr(likelihood, "smoothing", float("nan")), "sigma": 1.0, "temperature": search.temperature,
        "ess_threshold": search.ess_threshold, "particles": size, "filters": filters,
    }  # fmt: skip


def _run(evaluation: Evaluation, sweep: Sweep, value: float) -> pd.DataFrame:
    changed = sweep.change(evaluation.pipeline.separator(sweep.method), value)
    return evaluation.blind_run(
        sweep.method,
        particles=changed.profile.search.particles,
        change=lambda *_, **__: changed,
        setting=sweep.setting,
        value=value,
    ).rows


def differences_table(table: pd.DataFrame) -> pd.DataFrame:
    """What each setting changes in the blind, refined SDR, mean of the sources, against the profile's own value on the same songs, dB.

    Args:
        table: rows in the columns of evaluation.csv with `setting`, `tried` and `own`.

    Returns:
        method, setting, tried, own (the profile's value), mean, low, high (95 % bootstrap interval over songs), std, n, p (paired
        permutation test) and p_holm, corrected for all rows.
    """
    rows = []
    for (method, setting), part in table.groupby(["method", "setting"], sort=False):
        scores = {tried: song_values(each, **BLIND, refine="wiener") for tried, each in part.groupby("tried")}
        own = part.tried[part.own].iloc[0]
        found = {tried: (values - scores[own]).to_numpy() for tried, values in scores.items() if tried != own}
        rows += [
            {
                "method": method,
                "setting": setting,
                "tried": tried,
                "own": own,
                **interval_columns(values),
                "p": permutation_p(values),
            }
            for tried, values in found.items()
        ]
    differences = pd.DataFrame(rows)
    return differences.assign(p_holm=holm(differences.p.to_numpy()))


def correlation_table(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of evidence and blind SDR over settings.

    Args:
        table: rows in the columns of evaluation.csv with `setting`, `tried` and `comparable`.

    Returns:
        method, refine, settings (COMPARABLE, WITHOUT_N: those of them that change no number of particles, or ALL_SETTINGS), rho of the means
        over songs, n (settings); rho_song: mean of every song's own correlation, with its 95 % interval over songs, low and high; songs.
        There is no p-value of rho: settings are picked by hand, and share their songs and all other settings.
    """
    rows = []
    for method, of_method in table.groupby("method", sort=False):
        comparable = of_method[of_method.comparable]
        for which, chosen in (
            (COMPARABLE, comparable),
            (WITHOUT_N, comparable[~comparable.setting.isin(NUMBERS)]),
            (ALL_SETTINGS, of_method),
        ):
            for refine in ("none", "wiener"):
                pairs = setting_means(chosen, refine)
                # The profile's own run stands once for each setting.
                distinct = pairs.drop_duplicates(["track", "evidence", "sdr"])
                each = [spearmanr(song.evidence, song.sdr).statistic for _, song in distinct.groupby("track")]
                means = pairs.groupby(["setting", "tried"])[["evidence", "sdr"]].mean().drop_duplicates()
                span = interval_columns(each)
                rows.append({
                    "method": method, "refine": refine, "settings": which, "rho": spearmanr(means.evidence, means.sdr).statistic, "n": len(means),
                    "rho_song": span["mean"], "low": span["low"], "high": span["high"], "songs": span["n"],
                })  # fmt: skip
    return pd.DataFrame(rows)


def setting_means(table: pd.DataFrame, refine: str) -> pd.DataFrame:
    """Evidence (nats per code) and SDR (dB, mean over sources) of every setting and song: columns setting, tried, track, evidence, sdr."""
    parts = []
    for (setting, tried), rows in table.groupby(["setting", "tried"], sort=False):
        both = pd.DataFrame(
            {"evidence": song_values(rows, metric="log_evidence"), "sdr": song_values(rows, **BLIND, refine=refine)}
        )
        parts.append(both.reset_index().assign(setting=setting, tried=tried))
    return pd.concat(parts, ignore_index=True)
