"""What each choice of a protocol is worth in dB, on the same separations; and published scores beside ours under the protocol they were made with."""

from __future__ import annotations

import pandas as pd

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import SOURCES_MEAN, interval_columns, song_values
from hybridsep.studies import Study
from hybridsep.studies.comparison import CHUNKS, all_runs
from hybridsep.studies.published import PUBLISHED

_BLIND = {"selection": "blind", "metric": "sdr", "refine": "none", "reference": "real"}
_ORACLE, _SEED = {**_BLIND, "selection": "oracle"}, {**_BLIND, "selection": "seed"}

# Choice -> what it changes to and from; all else is equal.
CHOICES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "oracle": (_ORACLE, _BLIND),
    "each source by itself": ({**_SEED, "metric": "sdr_1s"}, _ORACLE),
    "default window, blind": ({**_BLIND, "metric": "sdr_44100"}, _BLIND),
    "default window, seed": (_SEED, {**_SEED, "metric": "sdr_1s"}),
    "codec reference": ({**_BLIND, "reference": "codec"}, _BLIND),
    "refinement": ({**_BLIND, "refine": "wiener"}, _BLIND),
    "seed protocol": (_SEED, _BLIND),
    "seed protocol, codec reference": ({**_SEED, "reference": "codec"}, _BLIND),
}
ALL_CELLS = "all"


def protocols(study: Study) -> None:
    """Every choice on the separations of the 2 × 2, which are made if they are not there, and the published scores."""
    table = all_runs(study.evaluation(chunks=CHUNKS))
    study.write("choices", choices_table(table))
    study.write("published", published_table(table))


def choices_table(table: pd.DataFrame) -> pd.DataFrame:
    """Paired differences that each of CHOICES makes, dB.

    Args:
        table: rows in the columns of evaluation.csv, of all protocols.

    Returns:
        choice, search, method (ALL_CELLS: mean over the cells), source (or their mean), mean, low, high (95 % bootstrap interval over
        songs), std, n.
    """
    rows = []
    for choice, (to, origin) in CHOICES.items():
        for search in dict.fromkeys(table.search):
            for source in (SOURCES_MEAN, *dict.fromkeys(s for s in table.source if s)):
                where = {"search": search, **({} if source == SOURCES_MEAN else {"source": source})}
                each = {
                    m: song_values(table, method=m, **where, **to) - song_values(table, method=m, **where, **origin)
                    for m in METHODS
                }
                each[ALL_CELLS] = sum(each.values()) / len(METHODS)
                rows += [
                    {"choice": choice, "search": search, "method": m, "source": source, **interval_columns(values)}
                    for m, values in each.items()
                ]
    return pd.DataFrame(rows)


def published_table(table: pd.DataFrame) -> pd.DataFrame:
    """Published SDR and ours under the seed's protocol, of the same method and search, one row per source.

    Returns:
        who, method, search, source, published (dB), published_seconds, ours, std (dB), n, ours_seconds.
    """
    rows = []
    for score in PUBLISHED:
        search = score.search or "ancestral"
        seconds = song_values(table, method=score.method, search=search, metric="seconds").mean()
        for source, published in score.sdr.items():
            own = interval_columns(
                song_values(table, method=score.method, search=search, source=source, **_SEED).to_numpy()
            )
            rows.append({
                "who": score.who, "method": score.method, "search": score.search, "source": source, "published": published, "published_seconds": score.seconds,
                "ours": own["mean"], "std": own["std"], "n": own["n"], "ours_seconds": seconds,
            })  # fmt: skip
    return pd.DataFrame(rows)
