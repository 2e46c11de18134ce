"""The chapter on speed says what the recorded benchmarks say, and how to measure them again."""

import operator
import shlex

import matplotlib.pyplot as plt
import pytest

from hybridsep.bench.groups import GROUPS
from hybridsep.report import repository_root
from hybridsep.report.speed import against_published, command_of, floors, goals, measured_on, posterior_figure, recorded_benchmarks, shared_past, step_figure


@pytest.fixture(scope="module")
def recorded():
    return recorded_benchmarks(repository_root())


def test_every_recorded_benchmark_can_be_measured_again_and_says_where_it_was(recorded):
    assert recorded
    for name, result in recorded.items():
        program, bench, group, *options = shlex.split(command_of(name, result))
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        assert (program, bench) == ("hybridsep", "bench") and chosen["--json"].endswith(f"{name}.json")
        assert chosen.get("--only", next(iter(GROUPS[group]))) in GROUPS[group]
        assert result["provenance"]["hardware"] in measured_on(result) and result["provenance"]["commit"] in measured_on(result)


def test_ratios_beside_the_published_searches_are_those_of_the_times(recorded):
    table = against_published(recorded)
    rows = [row for name in ("decode-lass", "decode-lass-beam", "decode-lqvae") for row in recorded[name]["rows"] if row.get("reference_cache") != "shared heads once"]
    assert list(table.ratio) == pytest.approx([row["reference_seconds"] / row["ours_seconds"] for row in rows])


def test_goals_are_reached_exactly_when_the_figures_reach_them(recorded):
    for line in goals(recorded).to_dict("records"):
        _, comparison, wanted = line["goal"].split()
        reached = {"≥": operator.ge, "≤": operator.le}[comparison](line["measured"], float(wanted))
        assert line["reached"] == ("yes" if reached else "no"), line


def test_tables_and_figures_of_a_step_have_every_recorded_part(recorded):
    profile = recorded["decode-profile"]
    figure = step_figure(profile)
    assert len(figure.axes[0].patches) == sum("share" in row for row in profile["rows"]) > 3
    assert (floors(profile)["times its floor"] > 0.5).all()
    assert list(shared_past(recorded["decode-shared"]).N) == sorted({row["particles"] for row in recorded["decode-shared"]["rows"]})
    dense, *_ = (posterior_figure(recorded["posterior"])).axes[0].lines
    sums = {row["codes"]: row["reference_seconds"] for row in recorded["posterior"]["rows"] if row["name"].startswith("sum-")}
    assert dict(zip(dense.get_xdata(), dense.get_ydata(), strict=True)) == pytest.approx({codes: 1000 * seconds for codes, seconds in sums.items()})
    plt.close("all")
