"""The 2 × 2: every cell by every search on a chunk of each of many test songs, and what each ingredient is worth."""

from __future__ import annotations

import pandas as pd
from study import Study, main

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.comparisons import effects_table
from hybridsep.pipeline.evaluate import Evaluation

CHUNKS = 60  # every test song of the profile cpu
SEARCHES = ("particle", "ancestral", "beam", "topk")
KEPT_METRICS = ("sdr", "si_sdr_improvement", "sir", "sar", "seconds", "log_evidence")


def two_by_two(study: Study) -> None:
    """Separate by every cell and every search, and compare the cells."""
    evaluation = study.evaluation(chunks=CHUNKS)
    table = pd.concat([evaluation.references(), all_runs(evaluation)], ignore_index=True)
    wanted = (table.metric == "sdr") | ~table.selection.isin(("oracle", "seed"))
    study.write("evaluation", table[wanted & table.metric.isin(KEPT_METRICS) & table.reference.isin(("real", ""))])
    study.write("effects", effects_table(table))


def all_runs(evaluation: Evaluation) -> pd.DataFrame:
    """Return the scores of every cell by every search."""
    runs = [evaluation.run(method, search).rows for search in SEARCHES for method in METHODS]
    return pd.concat(runs, ignore_index=True)


if __name__ == "__main__":
    main(two_by_two)
