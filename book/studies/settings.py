"""Settings of every cell, tuned alike: the same grids, the same validation songs, and never a test song.

Coordinate by coordinate the value of highest blind, refined SDR of the particle filter, mean over songs and sources, is
kept. A grid whose best value lies at its edge is extended by the same ratio until it does not, or a limit is reached.

    python book/studies/settings.py --profile P [--write FILE.yml]

`--write` puts the chosen values into a profile, as search.<codec>-<likelihood>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import yaml
from study import Study, cached_rows, main, sdr_rows

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.profiles import METHODS, LikelihoodKind, Tuning, load_profile, method_spec
from hybridsep.evaluation.comparisons import interval_columns
from hybridsep.inference.separator import SearchOptions
from hybridsep.inference.wiener import wiener

CHUNKS = 12
ROUNDS = 1

Values = dict[str, float]


@dataclass(frozen=True)
class Grid:
    """Values of one setting.

    Attributes:
        values: rising, in the same ratio; search starts from the middle one.
        limits: of what the grid is extended to.
    """

    values: tuple[float, ...]
    limits: tuple[float, float]

    @property
    def start(self) -> float:
        """Return the middle value."""
        return self.values[len(self.values) // 2]

    def extended(self, best: float) -> Grid:
        """Return the grid with one more value beyond `best`, if that is an edge and the value within the limits."""
        low, high = self.values[0], self.values[-1]
        beyond = {low: low**2 / self.values[1], high: high**2 / self.values[-2]}.get(best)
        if beyond is None or not self.limits[0] <= beyond <= self.limits[1]:
            return self
        return Grid(tuple(sorted((*self.values, float(f"{beyond:.4g}")))), self.limits)


TEMPERATURE = Grid((1.0, 1.44, 2.07), (0.5, 4.0))
GRIDS: dict[LikelihoodKind, dict[str, Grid]] = {
    "sum": {
        "temperature": TEMPERATURE,
        "sigma_scale": Grid((0.25, 0.5, 1.0), (0.05, 4.0)),
        "floor": Grid((0.01, 0.03, 0.1), (1e-5, 0.9)),
    },
    "counts": {
        "temperature": TEMPERATURE,
        "smoothing": Grid((1.0, 3.0, 9.0), (1e-3, 1e4)),
        "power": Grid((0.5, 1.0, 2.0), (0.1, 8.0)),
    },
}


def settings(study: Study, write: str | None = None) -> None:
    """Tune each cell by the same grids and songs, and keep the score of every value tried."""
    tried, chosen, cells = [], [], {}
    for method, spec in METHODS.items():
        grids, cell = GRIDS[spec.likelihood], f"{spec.vqvae}-{spec.likelihood}"
        rows, cells[cell] = tune(partial(scores, study, method), grids)
        tried.append(pd.DataFrame(rows).assign(cell=cell))
        best, middle = (song_scores(study, method, values).sdr for values in (cells[cell], start(grids)))
        chosen.append({"cell": cell, **cells[cell], "sdr": best.mean(), **interval_columns((best - middle).to_numpy())})
        # A killed study leaves the cells that are done.
        study.write("tried", pd.concat(tried, ignore_index=True))
        study.write("chosen", pd.DataFrame(chosen))
    if write:
        write_settings(Path(write), cells)


def tune(scores: Callable[[Values], Mapping[str, float]], grids: Mapping[str, Grid]) -> tuple[list[dict], Values]:
    """Maximise scores(values)["sdr"] one setting after the other.

    Returns:
        A row for every value looked at: round, setting, value, best (whether it was kept), all settings, scores; and
        the values kept in the end.
    """
    rows, best, grids = [], start(grids), dict(grids)
    for number in range(1, ROUNDS + 1):
        for setting in grids:
            found: dict[float, Mapping[str, float]] = {}
            while missing := [value for value in grids[setting].values if value not in found]:
                found |= {value: scores({**best, setting: value}) for value in missing}
                kept = max(found, key=lambda value: found[value]["sdr"])
                grids[setting] = grids[setting].extended(kept)
            rows += [
                {
                    "round": number,
                    "setting": setting,
                    "value": value,
                    "best": value == kept,
                    **best,
                    setting: value,
                    **row,
                }
                for value, row in sorted(found.items())
            ]
            best = {**best, setting: kept}
    return rows, best


def start(grids: Mapping[str, Grid]) -> Values:
    """Return the middle of every grid."""
    return {setting: grid.start for setting, grid in grids.items()}


def scores(study: Study, method: str, values: Values) -> dict[str, float]:
    """Return the blind, refined SDR (dB) and the evidence (nats per code) of one method under these values."""
    songs = song_scores(study, method, values)
    return {"sdr": songs.sdr.mean(), "log_evidence": songs.log_evidence.mean()}


def song_scores(study: Study, method: str, values: Values) -> pd.DataFrame:
    """Return what `scores` is the mean of, for each validation song: track, sdr, log_evidence."""
    # What the profile says of the other cells makes no difference, and no new run.
    tuning = {f"{spec.vqvae}_{spec.likelihood}": Tuning() for spec in METHODS.values()}
    spec = method_spec(method)
    tuning[f"{spec.vqvae}_{spec.likelihood}"] = Tuning(**values)
    evaluation = study.evaluation("validation", CHUNKS, search=tuning)
    pipeline, chunks, seed = evaluation.pipeline, evaluation.chunks, evaluation.settings.seed

    def make() -> pd.DataFrame:
        options = SearchOptions(seed=seed, label=f"{method}, {values}")
        found = pipeline.separator(method).estimate(chunks.mixture, options)
        refined = wiener(found.stems.cpu(), found.mixture.cpu())
        nats = (found.search.log_evidence / found.search.codes.shape[-1]).tolist()
        sdr = sdr_rows(chunks, refined).groupby("track", sort=False).sdr.mean()
        return sdr.reset_index().assign(log_evidence=nats)

    return cached_rows(pipeline, f"tuned-{method}", [pipeline.method_version(method), chunks.digest, seed], make)


def write_settings(file: Path, chosen: Mapping[str, Values]) -> None:
    """Put values into a profile as search.<cell>, and leave everything outside its block `search` as it is.

    Raises:
        HybridsepError: the profile is not valid with them.
    """
    text = file.read_text(encoding="utf-8")
    search = (yaml.safe_load(text) or {}).get("search", {}) | dict(chosen)
    block = yaml.safe_dump({"search": search}, sort_keys=False, default_flow_style=None, width=120)
    old = re.compile(r"^search:.*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
    changed = old.sub(lambda _: block, text, count=1) if old.search(text) else f"{text.rstrip()}\n{block}"
    write_atomically(file, changed.encode())
    try:
        load_profile(file)
    except HybridsepError:
        write_atomically(file, text.encode())
        raise


if __name__ == "__main__":
    main(settings, write="a profile (.yml) that gets the chosen values")
