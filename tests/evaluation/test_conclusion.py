"""The sentence that answers the book's question follows from the numbers, chance and corrections included."""

import numpy as np
import pandas as pd
import pytest

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation import chunks as evaluation
from hybridsep.evaluation.statistics import holm
from hybridsep.report.chapter import p_relation, p_value
from hybridsep.report.conclusion import (
    answer,
    comparisons,
    effect_sentence,
    ingredient_effects,
    over_oracle,
    to_ceiling,
)
from hybridsep.report.verdicts import (
    gap_verdict,
    improvements_verdict,
    knees,
    out_of_domain_verdict,
    particles_verdict,
    protocols_verdict,
    settings_verdict,
    third_instrument_verdict,
    tuning_verdict,
)
from hybridsep.studies.baselines import baseline_differences
from hybridsep.studies.comparison import averaging_gains
from hybridsep.studies.improvements import ASIDE, BEFORE_ASIDE, CODEC, STEPS, gains_table
from hybridsep.studies.out_of_domain import falls_table
from hybridsep.studies.settings import correlation_table, differences_table


def scores(gain_over_lass, gain_over_lqvae, songs=14, noise=0.2):
    """SDR of every cell on songs of very different levels, dB."""
    rng = np.random.default_rng(0)
    level = rng.normal(6, 4, songs)
    wanted = {
        "hybrid": 0.0,
        "lass": -gain_over_lass,
        "lqvae": -gain_over_lqvae,
        "plain-sum": -gain_over_lass - gain_over_lqvae,
    }
    return pd.DataFrame({method: level + wanted[method] + rng.normal(0, noise, songs) for method in METHODS})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (scores(1.0, 1.0), "Yes: the Hybrid"),
        (scores(0.0, 1.0), "In part: the Hybrid separates better than LQ-VAE; against LASS chance cannot be ruled out"),
        (scores(-1.0, 1.0), "No: the Hybrid separates worse than LASS"),
        (scores(0.0, 0.0), "Not shown: no difference"),
        (scores(1.0, 1.0, songs=3), "too small to answer"),
    ],
)
def test_the_answer_is_what_the_songs_show(table, said):
    assert said in answer(table)
    assert f"{len(table)} songs" in answer(table)


def test_an_interval_without_zero_is_not_enough_when_many_differences_are_looked_at():
    table = scores(0.0, 1.0)
    rows = comparisons(table)
    assert (rows.p_holm >= rows.p).all() and (rows.n == len(table)).all()
    for seed in range(200):
        noisy = scores(0.0, 1.0)
        noisy["hybrid"] += np.random.default_rng(seed).normal(0.25, 0.5, len(noisy))
        row = comparisons(noisy).loc["LASS"]
        if row.low > 0 and row.p_holm > 0.05:
            assert answer(noisy).startswith("In part")
            return
    pytest.fail("no such table among these")


def test_effects_are_told_with_their_chance():
    table = scores(1.0, 0.0)
    rows = comparisons(table)
    linear, counts, _ = (effect_sentence(what, rows.loc[what]) for what in ingredient_effects(table))
    assert "raises the SDR" in linear and "no difference" in counts
    small = comparisons(table.head(3))
    assert "too few" in effect_sentence("It", small.iloc[0])


def rows_of(values, source="bass", refine="wiener", metric="sdr", **more):
    """Rows of one run on songs with these values."""
    blind = ("blind", refine, source, "real") if metric == "sdr" else ("", "", "", "")
    rows = [(f"song{song}", 0.0, "hybrid", "particle", *blind, metric, value) for song, value in enumerate(values)]
    return pd.DataFrame(rows, columns=evaluation.COLUMNS).assign(**more)


def settings_changes(gains, songs=16):
    """Differences of powers that are worth so many dB, tried = gain, beside the profile's own at 1."""
    rng = np.random.default_rng(0)
    level = rng.normal(6, 3, songs)
    runs = [rows_of(level, setting="power", tried=1.0, own=True)]
    noise = rng.normal(0, 0.3, (len(gains), songs))
    noise -= noise.mean(1, keepdims=True)
    runs += [
        rows_of(level + gain + noise[index], setting="power", tried=2.0 + index, own=False)
        for index, gain in enumerate(gains)
    ]
    return differences_table(pd.concat(runs, ignore_index=True))


@pytest.mark.parametrize(
    ("gains", "said", "not_said"),
    [
        ((0.0, 0.0), "No setting changes the refined SDR beyond chance: no value tried can be told", "instead of"),
        (
            (1.0, 0.0),
            "Better than the profile's own beyond chance: power of the counts, λ 2 instead of 1, Hybrid (+",
            "worse",
        ),
        ((1.0, -1.0), "; worse: power of the counts, λ 3 instead of 1, Hybrid (−", "cannot be told"),
        (
            (-1.0, 0.0),
            "No value tried is better than the profile's own beyond chance; worse: power of the counts, λ 2",
            "Better",
        ),
        ((-1.0, 0.0), "; 1 cannot be told from it (paired on the same 16 validation songs", "Better"),
    ],
)
def test_settings_that_matter_are_those_beyond_chance(gains, said, not_said):
    sentence = settings_verdict(settings_changes(gains))
    assert said in sentence and not_said not in sentence and "corrected for all 2 values tried" in sentence
    assert (
        settings_verdict(settings_changes(gains, songs=5))
        == "2 changes of one setting were tried, but 5 songs are too few to say anything."
    )


def correlations(*slopes, songs=16):
    """Correlations where SDR follows evidence by `slopes`, one for each of the first methods, over temperatures; more particles always raise both.

    At slope 0 it rises in every other song and falls in the rest.
    """
    rng = np.random.default_rng(0)
    runs = []
    for method, slope in zip(METHODS, slopes, strict=False):
        for setting, count, own in (("temperature", 5, slope), ("particles", 20, 100.0)):
            for tried in range(count):
                kind = {"setting": setting, "tried": float(tried), "comparable": True}
                evidence = tried + rng.normal(0, 0.1, songs)
                for refine in ("none", "wiener"):
                    runs.append(
                        rows_of(
                            (own or 3.0 * (-1) ** np.arange(songs)) * tried + rng.normal(0, 1, songs),
                            refine=refine,
                            **kind,
                        ).assign(method=method)
                    )
                runs.append(rows_of(evidence, metric="log_evidence", **kind).assign(method=method))
    return correlation_table(pd.concat(runs, ignore_index=True))


@pytest.mark.parametrize(
    ("slopes", "said"),
    [
        ((3.0, 3.0), "Yes: settings of higher evidence also score higher, with every method. "),
        (
            (3.0, 0.0),
            "In part: settings of higher evidence also score higher with {0}; with {1} chance cannot be ruled out. ",
        ),
        ((0.0, 0.0), "Not shown: that settings of higher evidence also score higher cannot be told from chance. "),
        ((3.0, -3.0), "No: with {1} settings of higher evidence score lower. "),
    ],
)
def test_evidence_predicts_the_score_where_the_songs_say_so_and_not_because_of_the_particles(slopes, said):
    table = correlations(*slopes)
    sentence = tuning_verdict(table)
    labels = [
        {"plain-sum": "plain-sum", "lass": "LASS", "lqvae": "LQ-VAE", "hybrid": "Hybrid"}[m] for m in list(METHODS)[:2]
    ]
    assert sentence.startswith(said.format(*labels)) and "16 songs" in sentence and "5 settings" in sentence
    # Particles alone would make any table say yes.
    assert (table[table.settings == "comparable"].low > 0).all()
    assert "5 songs are too few" in tuning_verdict(correlations(*slopes, songs=5))


def choices(total=(0.5, 0.9), with_codec=(0.3, 0.9), songs=30, **single):
    """Choices with these 95 % intervals, alike by both searches."""
    spans = {
        "oracle": (-0.1, 0.1),
        "each source by itself": (-0.1, 0.1),
        "default window, seed": (-0.1, 0.1),
        "codec reference": (-0.1, 0.1),
    }
    spans |= {name.replace("_", " "): span for name, span in single.items()} | {
        "seed protocol": total,
        "seed protocol, codec reference": with_codec,
    }
    rows = [
        {
            "choice": choice,
            "search": search,
            "method": "all",
            "source": "mean",
            "mean": sum(span) / 2,
            "low": span[0],
            "high": span[1],
            "n": songs,
        }
        for choice, span in spans.items()
        for search in ("ancestral", "particle")
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (choices(oracle=(0.5, 0.7)), "by ancestral together +0.70 dB, +0.50 to +0.90, with the codec's reconstruction as reference +0.60 dB, +0.30 to +0.90; the largest by itself is the best sample by the truth (+0.60 dB"),
        (choices(total=(-0.2, 0.2)), "by particle filter together nothing beyond chance (0.00 dB, −0.20 to +0.20)"),
        (choices(codec_reference=(-0.9, -0.7)), "the largest by itself is the codec's reconstruction as reference (−0.80 dB, −0.90 to −0.70)"),
        (choices(oracle=(0.5, 0.7), codec_reference=(-0.6, -0.3)), "the largest by itself, the best sample by the truth (+0.60 dB, +0.50 to +0.70), cannot be told in size from the codec's reconstruction as reference (−0.45 dB)"),
        (choices(oracle=(-0.2, 0.4)), "no choice by itself can be told from none, the largest being the best sample by the truth (+0.10 dB"),
        (choices(songs=5), "cannot be said: 5 songs are too few"),
    ],
)  # fmt: skip
def test_worth_of_a_protocol_follows_from_the_intervals_of_its_choices(table, said):
    assert said in protocols_verdict(table)


def particle_scores(one, averaged, songs=12):
    """Refined scores of one filter and of filters of 32 averaged, N = so many dB."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 3, songs)
    kinds = [(0, one), (32, averaged)]
    runs = [
        rows_of(level - level.mean() + dB + noise - noise.mean(), filter_particles=size, particles=n)
        for size, kind in kinds
        for n, dB in kind.items()
        for noise in (rng.normal(0, 0.1, songs),)
    ]
    return pd.concat(runs, ignore_index=True)


@pytest.mark.parametrize(
    ("averaged", "said"),
    [
        (
            {32: 8.0, 64: 9.3, 128: 9.6},
            "one filter: N = 64 (8.70 dB, best 9.00 dB); the mean of filters of 32: N = 64 (9.30 dB, best 9.60 dB).",
        ),
        ({32: 8.0, 64: 9.3, 128: 9.6}, "instead of one filter is better beyond chance at N = 64, 128: +0.60 dB, "),
        ({32: 8.0, 64: 8.7, 128: 9.6}, "is better beyond chance at N = 128: "),
        (
            {32: 8.0, 64: 8.0, 128: 9.6},
            "is better beyond chance at N = 128 and worse beyond chance at N = 64: −0.70 dB, ",
        ),
        (
            {32: 8.0, 64: 8.0, 128: 9.6},
            "the mean of filters of 32: no knee up to N = 128, the best score lies there (9.60 dB, best 9.60 dB)",
        ),
        ({32: 8.0, 64: 8.7, 128: 9.0}, "instead of one filter makes no difference beyond chance at any N: "),
    ],
)
def test_knee_and_gain_of_averaged_filters_follow_from_the_scores(averaged, said):
    one = {16: 7.0, 32: 8.0, 64: 8.7, 128: 9.0}
    table = particle_scores(one, averaged)
    gains = averaging_gains(table)
    assert gains.particles.tolist() == [64, 128] and gains.p_holm.tolist() == pytest.approx(holm(gains.p))
    sentence = particles_verdict(table, gains)
    assert said in sentence and "12 songs" in sentence
    few = particle_scores(one, averaged, songs=5)
    assert "5 songs are too few" in particles_verdict(few, averaging_gains(few))


def test_the_knee_is_the_first_number_within_half_a_decibel_of_the_best():
    found = knees(particle_scores({1: 2.0, 8: 8.6, 32: 8.4, 128: 9.0}, {32: 8.4, 64: 8.6}))
    assert found.particles.to_dict() == {0: 8, 32: 32} and found.most.to_dict() == {0: 128, 32: 64}
    assert found.loc[0, ["sdr", "best"]].tolist() == pytest.approx([8.6, 9.0])


def improvements_of(beside=0.0, songs=24, **gains):
    """Gains of a table in which steps are worth so many dB, all others nothing, other refinements `beside`, under a ceiling of 20 dB on the bass, 15 on the drums."""
    rng = np.random.default_rng(0)
    rows = []
    for source, ceiling in (("bass", 20.0), ("drums", 15.0)):
        level = rng.normal(5, 3, songs)
        level -= level.mean() - 5

        def scores(mean, source=source, level=level):
            noise = rng.normal(0, 0.1, songs)
            return level + mean + noise - noise.mean()

        reached = 0.0
        for step in STEPS:
            reached += gains.get(step, 0.0)
            rows.append(rows_of(np.full(songs, ceiling), source, "none", step=step).assign(method=CODEC))
            rows += [
                rows_of(scores(reached), source, refine, step=step)
                for refine in ("none", "wiener")
                if (step, refine) not in (("start", "wiener"), ("refinement", "none"))
            ]
            if step == BEFORE_ASIDE:
                rows += [rows_of(scores(reached + beside), source, "wiener", step=name) for name in ASIDE]
    return gains_table(pd.concat(rows, ignore_index=True))


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"refinement": 2.0, "filters": 1.0}, "Raised beyond chance by Wiener refinement (+2.00 dB, "),
        ({"refinement": 2.0, "filters": 1.0}, "as many in several filters (+1.00 dB, "),
        ({"refinement": 2.0, "filters": 1.0}, "not to be told from chance: priors trained longer ("),
        ({"refinement": 2.0, "filters": 1.0}, "all steps together are worth +3.00 dB, "),
        ({"refinement": 2.0, "filters": 1.0}, "remain bass 12.00 dB, drums 7.00 dB (24 test songs"),
        ({}, "No single step raised the refined SDR beyond chance; not to be told from chance: Wiener refinement ("),
        ({}, ", which cannot be told from chance. "),
        ({"temperature": -1.0}, "; lowered by temperature of the priors (−1.00 dB, "),
        ({"beside": -0.5}, ": worse by plain masks of the first window (−0.50 dB, "),
        ({"beside": 0.5}, ": better by plain masks of the first window (+0.50 dB, "),
        ({"songs": 5, "refinement": 2.0}, "What the steps were worth cannot be said: 5 songs are too few."),
    ],
)
def test_what_raised_the_scores_is_told_with_its_chance(planted, said):
    assert said in improvements_verdict(improvements_of(**planted))


def test_gains_of_steps_are_corrected_and_measured_to_the_ceiling_of_their_source():
    table = improvements_of(refinement=2.0, particles=1.0)
    found = table.set_index(["source", "refine", "step"]).sort_index()
    assert found.loc[
        ("drums", "none", "particles"), ["mean", "score", "ceiling", "remaining"]
    ].tolist() == pytest.approx([1, 8, 15, 7], abs=1e-6)
    assert found.loc[("mean", "wiener", "together"), ["mean", "remaining"]].tolist() == pytest.approx(
        [3, 9.5], abs=1e-6
    )
    # As decoded, the priors trained longer are compared with the first settings as decoded; "refinement" has no such row.
    assert (
        found.loc[("bass", "none", "longer"), "mean"] == pytest.approx(2.0, abs=1e-6)
        and ("bass", "none", "refinement") not in found.index
    )
    family = found.loc["mean", "wiener"]
    assert len(family) == len(STEPS) + len(ASIDE) and family.p_holm.to_numpy() == pytest.approx(
        holm(family.p.to_numpy())
    )


def test_targets_are_paired_differences_of_one_method():
    songs, level = 5, np.linspace(0, 4, 5)
    ceiling = [
        rows_of(level + 10, source, "none").assign(method="codec-linear", search="", selection="")
        for source in ("bass", "drums")
    ]
    ours = [
        rows_of(level + 9 - k, source, "wiener").assign(method="hybrid", search="particle")
        for k, source in enumerate(("bass", "drums"))
    ]
    decoded = [rows_of(level + 7, "bass", "none").assign(method="hybrid", search="particle")]
    oracle = [rows_of(level + 4, "bass", "none").assign(method="hybrid", search="ancestral", selection="oracle")]
    chosen = [rows_of(level + 20, "bass", "none").assign(method="hybrid", search="ancestral")]
    table = pd.concat([*ceiling, *ours, *decoded, *oracle, *chosen], ignore_index=True)
    found = to_ceiling(table, "hybrid")
    assert (
        list(found) == ["bass", "drums"]
        and found["bass"] == pytest.approx([-1.0] * songs)
        and found["drums"] == pytest.approx([-2.0] * songs)
    )
    assert over_oracle(table, "hybrid") == pytest.approx([3.0] * songs)


def falls_of(songs=12, **changes):
    """Falls of the Hybrid and of the codec's ceiling in each condition, dB, with little noise."""
    rng = np.random.default_rng(0)
    level, rows = rng.normal(8, 3, songs), []
    for condition, both in {"as_rendered": (0.0, 0.0), **changes}.items():
        for (method, refine), change in zip((("hybrid", "wiener"), ("codec-linear", "none")), both, strict=True):
            for source in ("bass", "drums"):
                values = level + change + (rng.normal(0, 0.1, songs) if change else 0.0)
                rows.append(
                    rows_of(values, source, refine).assign(method=method, condition=condition.replace("_", " "))
                )
    return falls_table(pd.concat(rows, ignore_index=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filtered": (-3.0, -3.0), "detuned": (-1.0, 0.0)}, "most for the worse in the condition filtered, by −3."),
        ({"filtered": (-3.0, -3.0), "detuned": (-1.0, 0.0)}, "the codec may be to blame for all of it"),
        ({"filtered": (-3.0, -3.0), "detuned": (-1.0, 0.0)}, "The others: detuned, −"),
        (
            {"detuned": (-3.0, 0.0)},
            "the priors and the likelihood are to blame, since the ceiling does not fall beyond chance. (",
        ),
        ({"other_SoundFont": (-6.0, -2.0)}, "condition other SoundFont, by −6."),
        (
            {"other_SoundFont": (-6.0, -2.0)},
            "the codec is to blame in part, and the priors and the likelihood for the rest",
        ),
        ({"filtered": (-3.0, -3.0), "saturated": (1.0, 0.0)}, "dB: no fall beyond chance ("),
        ({"saturated": (1.0, 0.0)}, "In no other sound do the separations fall beyond chance; saturated changes"),
        ({"filtered": (-3.0, -3.0), "songs": 5}, "cannot be said: 5 songs are too few."),
    ],
)
def test_who_is_to_blame_for_a_fall_is_told_by_both_intervals(changes, said):
    assert said in out_of_domain_verdict(falls_of(**changes))


def third_of(pair, over_mixture, over_network, songs=12):
    """Scores of a pair in which the Hybrid lies so far above the mixture and the network, dB."""
    rng = np.random.default_rng(0)
    level, rows = rng.normal(5, 3, songs), []
    for source in pair.split(" + "):
        for method, refine, value in (
            ("hybrid", "wiener", 0.0),
            ("mixture", "none", -over_mixture),
            ("convtasnet", "none", -over_network),
        ):
            noise = rng.normal(0, 0.1, songs)
            row = rows_of(level + value + noise - noise.mean(), source, refine).assign(method=method, pair=pair)
            rows.append(row.assign(selection="", search="") if method == "mixture" else row)
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    ("pair", "gains", "said"),
    [
        ("bass + piano", (4.0, 2.0), "beats the unseparated mixture (+4.00 dB, "),
        ("bass + piano", (4.0, 2.0), "and beats the network of the first pair (+2.00 dB, "),
        ("bass + piano", (0.0, -1.0), "cannot be told from the unseparated mixture (0.00 dB, "),
        ("bass + piano", (0.0, -1.0), "is worse than the network of the first pair (−1.00 dB, "),
        ("bass + drums", (4.0, -3.0), "is worse than the network trained for this pair (−3.00 dB, "),
        ("bass + piano", (4.0, 2.0, 7), "bass + piano: 7 songs are too few to say anything."),
    ],
)
def test_a_third_instrument_is_compared_with_no_separation_and_with_the_network(pair, gains, said):
    (sentence,) = third_instrument_verdict(third_of(pair, *gains))
    assert sentence.startswith(f"{pair}: ") and said in sentence


def test_every_pair_gets_its_own_sentence():
    both = pd.concat([third_of("bass + piano", 4.0, 2.0), third_of("bass + drums", 4.0, -3.0)])
    assert ["piano" in sentence for sentence in third_instrument_verdict(both)] == [True, False]


def differences_of(hybrid, network, songs=12):
    """Paired differences where the Hybrid and the network lie so far above the codec's ceiling, dB."""
    rng = np.random.default_rng(0)
    level, rows = rng.normal(8, 3, songs), []
    levels = {"hybrid": hybrid, "convtasnet": network, "codec-linear": 0.0, "hpss": -9.0, "nmf": -8.0, "mixture": -10.0}
    for method, above in levels.items():
        for source in ("bass", "drums"):
            noise = rng.normal(0, 0.1, songs)
            rows.append(
                rows_of(
                    level + above + noise - noise.mean(), source, "wiener" if method == "hybrid" else "none"
                ).assign(method=method)
            )
    return baseline_differences(pd.concat(rows, ignore_index=True))


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((-3.0, 2.0), "worse (−5.00 dB, "),
        (
            (-3.0, 2.0),
            "the codec's ceiling explains 2.00 dB of it, by which Conv-TasNet lies above the ceiling (+2.00 dB, ",
        ),
        ((-3.0, 2.0), "the search and its models the rest, by which the Hybrid lies below (−3.00 dB, "),
        ((1.0, 2.0), "worse (−1.00 dB, "),
        ((1.0, 2.0), "all of that may be the codec's ceiling, above which Conv-TasNet lies (+2.00 dB, "),
        ((1.0, 2.0), "while the Hybrid lies above the ceiling too (+1.00 dB, "),
        ((0.01, 2.0), "while the Hybrid cannot be told from the ceiling (+0.01 dB, "),
        ((-4.0, -1.0), "none of that is the codec's ceiling, below which Conv-TasNet lies as well (−1.00 dB, "),
        (
            (-4.0, 0.01),
            "none of that is shown to be the codec's ceiling, from which Conv-TasNet cannot be told (+0.01 dB, ",
        ),
        ((-2.0, -2.01), "cannot be told from it (+0.01 dB, "),
        ((-2.0, -4.0), "better (+2.00 dB, "),
        ((-3.0, 2.0, 7), "cannot be said: 7 songs are too few."),
    ],
)
def test_the_gap_to_the_network_is_shared_out_by_its_intervals(levels, said):
    sentence = gap_verdict(differences_of(*levels))
    assert said in sentence
    assert "too few" in said or (sentence.count(said) == 2 and "bass: " in sentence and "drums: " in sentence)


def test_small_p_values_are_not_printed_as_zero():
    assert [p_relation(p) for p in (0.0004, 0.001, 0.25)] == ["p < 0.001", "p = 0.001", "p = 0.250"] and p_value(
        0.0004, 4
    ) == "0.0004"
