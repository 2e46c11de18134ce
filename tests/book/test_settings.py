"""Tuning of every cell: grids that grow past their edges, one budget for all, and values written into a profile."""

import numpy as np
import pandas as pd
import pytest
import settings
import yaml
from settings import GRIDS

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile


def bowl(**optimum):
    """Scores that are best at these values, each by itself."""
    return lambda values: {"sdr": -sum(abs(np.log(values[name] / best)) for name, best in optimum.items())}


def test_tuning_extends_a_grid_past_its_edge_and_stops_at_a_limit(monkeypatch):
    monkeypatch.setattr(settings, "ROUNDS", 2)
    grid = settings.Grid((1.0, 2.0, 4.0), (0.2, 16.0))
    rows, best = settings.tune(
        bowl(inside=2.0, below=0.5, beyond=100.0), dict.fromkeys(("inside", "below", "beyond"), grid)
    )
    assert best == {"inside": 2.0, "below": 0.5, "beyond": 16.0}
    tried = pd.DataFrame(rows).groupby(["round", "setting"]).value.agg(list)
    assert tried[1, "inside"] == [1, 2, 4] and tried[1, "below"] == [0.25, 0.5, 1, 2, 4]
    assert tried[1, "beyond"] == tried[2, "beyond"] == [1, 2, 4, 8, 16]
    assert sum(row["best"] for row in rows) == 2 * 3


def test_every_cell_has_the_same_budget_of_tuning():
    sizes = {kind: [len(grid.values) for grid in grids.values()] for kind, grids in GRIDS.items()}
    assert sizes["sum"] == sizes["counts"]
    for grid in (grid for grids in GRIDS.values() for grid in grids.values()):
        ratios = np.array(grid.values[1:]) / grid.values[:-1]
        assert (
            ratios.max() / ratios.min() < 1.15 and grid.limits[0] <= grid.values[0] < grid.values[-1] <= grid.limits[1]
        )


def test_chosen_values_are_written_into_the_block_search_of_a_profile(tmp_path):
    file, values = tmp_path / "own.yml", {"temperature": 1.2, "sigma_scale": 0.5}
    for text in (
        "# Mine.\nbase: smoke\nsearch: {particles: 3}  # few\nseed: 1\n",
        "# Mine.\nsearch:\n  particles: 3\nseed: 1\nbase: smoke\n",
        "# Mine.\nbase: smoke\nseed: 1",
    ):
        file.write_text(text)
        settings.write_settings(file, {"plain-sum": values})
        written = yaml.safe_load(file.read_text())
        assert written["search"]["plain-sum"] == values and written["seed"] == 1
        assert written["search"].get("particles") == (3 if "particles" in text else None)
        assert file.read_text().startswith("# Mine.\n")
    assert load_profile(file).tuning("plain", "sum").sigma_scale == 0.5
    before = file.read_text()
    with pytest.raises(HybridsepError, match="profile"):
        settings.write_settings(file, {"nonsense": {"temperature": 1.2}})
    assert file.read_text() == before
