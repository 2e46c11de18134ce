"""Window and trust of the Wiener filter that refines the stems, chosen on validation songs."""

from __future__ import annotations

from functools import partial

import pandas as pd
from study import Study, cached_rows, main, sdr_rows

from hybridsep.core.profiles import METHODS
from hybridsep.inference.separator import SearchOptions
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.evaluate import Evaluation

CHUNKS = 12
SIZES = (1024, 2048, 4096, 8192)
TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def refinement(study: Study) -> None:
    """Score every cell's particle filter after refinement with every window and trust; the separations are the same."""
    evaluation, tables = study.evaluation("validation", chunks=CHUNKS), []
    for method in METHODS:
        settings = [evaluation.pipeline.method_version(method), CHUNKS, SIZES, TRUSTS]
        rows = cached_rows(evaluation.pipeline, f"refined-{method}", settings, partial(refined, evaluation, method))
        tables.append(rows.assign(method=method))
    study.write("scores", pd.concat(tables, ignore_index=True))


def refined(evaluation: Evaluation, method: str) -> pd.DataFrame:
    """Return the SDR of one method's stems as they are (size 0) and after each refinement."""
    separator = evaluation.pipeline.separator(method)
    options = SearchOptions(seed=evaluation.settings.seed, label=method)
    found = separator.estimate(evaluation.chunks.mixture, options)
    stems, mixture = found.stems.cpu(), found.mixture.cpu()
    tables = [sdr_rows(evaluation.chunks, stems).assign(size=0, trust=float("nan"))]
    for size in SIZES:
        for trust in TRUSTS:
            estimates = wiener(stems, mixture, size, trust)
            tables.append(sdr_rows(evaluation.chunks, estimates).assign(size=size, trust=trust))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    main(refinement)
