"""What each choice of a protocol is worth in dB on the same separations, and published scores under their protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from study import Study, main, sources_of

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import interval_columns, song_values

CHUNKS = 60  # every test song of the profile cpu
SEARCHES = ("particle", "ancestral", "beam", "topk")
BLIND = {"selection": "blind", "metric": "sdr", "refine": "none", "reference": "real"}
ORACLE, SEED = {**BLIND, "selection": "oracle"}, {**BLIND, "selection": "seed"}

# Choice -> what it changes to and from; all else is equal.
CHOICES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "oracle": (ORACLE, BLIND),
    "each source by itself": ({**SEED, "metric": "sdr_1s"}, ORACLE),
    "default window, blind": ({**BLIND, "metric": "sdr_44100"}, BLIND),
    "default window, seed": (SEED, {**SEED, "metric": "sdr_1s"}),
    "codec reference": ({**BLIND, "reference": "codec"}, BLIND),
    "refinement": ({**BLIND, "refine": "wiener"}, BLIND),
    "seed protocol": (SEED, BLIND),
    "seed protocol, codec reference": ({**SEED, "reference": "codec"}, BLIND),
}
ALL_CELLS = "all"

# Who, method, search ("" where it is not said), SDR of bass and of drums in dB, seconds for a chunk of three seconds.
# Both student projects separated bass and drums of Slakh2100. The seed project: 300 tracks at 22 050 Hz, 210 of them for
# training, 30 test chunks of 3 s, a Colab T4; the best sample of each source, museval's own window.
PUBLISHED = (
    ("seed project", "lqvae", "ancestral", 3.41, 5.41, 254.77),
    ("seed project", "lass", "ancestral", 3.22, 4.78, 148.57),
    ("seed project", "hybrid", "ancestral", 4.72, 5.15, 148.4),
    ("second student project", "lass", "beam", 0.12, 0.66, None),
    ("second student project", "hybrid", "beam", 1.16, 1.79, None),
    ("second student project", "lass", "topk", 1.69, 1.75, None),
    ("second student project", "hybrid", "topk", 2.87, 3.23, None),
    ("second student project", "lqvae", "", 2.80, 2.90, None),
)


def protocols(study: Study) -> None:
    """Compare protocols on the separations of every cell by every search."""
    evaluation = study.evaluation(chunks=CHUNKS)
    table = pd.concat([evaluation.run(m, search).rows for search in SEARCHES for m in METHODS], ignore_index=True)
    study.write("choices", choices_table(table))
    study.write("published", pd.DataFrame(published_rows(table)))


def choices_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the paired differences that each of CHOICES makes, dB, of every cell and of their mean (ALL_CELLS)."""
    rows = []
    for choice, (to, origin) in CHOICES.items():
        for search in dict.fromkeys(table.search):
            for source, only in sources_of(table).items():
                each = {}
                for method in METHODS:
                    where = {"method": method, "search": search, **only}
                    each[method] = song_values(table, **where, **to) - song_values(table, **where, **origin)
                each[ALL_CELLS] = sum(each.values()) / len(METHODS)
                labels = {"choice": choice, "search": search}
                rows += [{**labels, "method": m, "source": source, **interval_columns(v)} for m, v in each.items()]
    return pd.DataFrame(rows)


def published_rows(table: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield each published SDR beside ours of the same method and search under the seed's protocol, dB and seconds."""
    for who, method, search, bass, drums, seconds in PUBLISHED:
        run = {"method": method, "search": search or "ancestral"}
        labels = {"who": who, "method": method, "search": search}
        ours_seconds = song_values(table, **run, metric="seconds").mean()
        for source, value in (("bass", bass), ("drums", drums)):
            own = interval_columns(song_values(table, **run, source=source, **SEED).to_numpy())
            theirs = {"source": source, "published": value, "published_seconds": seconds}
            ours = {"ours": own["mean"], "std": own["std"], "n": own["n"], "ours_seconds": ours_seconds}
            yield {**labels, **theirs, **ours}


if __name__ == "__main__":
    main(protocols)
