"""The chapter on speed says what the recorded benchmarks say, and how to measure them again."""

import operator
import shlex

import matplotlib.pyplot as plt
import pytest

from hybridsep.bench.groups import GROUPS
from hybridsep.report import repository_root
from hybridsep.report.figures import number
from hybridsep.report.speed import (
    against_published,
    command_of,
    floors,
    goals,
    measured_on,
    posterior_figure,
    precision_lines,
    recorded_benchmarks,
    shared_past,
    show_training,
    step_figure,
    training_steps,
)


@pytest.fixture(scope="module")
def recorded():
    return recorded_benchmarks(repository_root())


def test_every_recorded_benchmark_can_be_measured_again_and_says_where_it_was(recorded):
    assert recorded
    for name, result in recorded.items():
        if name == "decode-shared":
            continue  # the code that it measured is gone
        program, bench, group, *options = shlex.split(command_of(name, result))
        chosen = dict(zip(options[::2], options[1::2], strict=True))
        assert (program, bench) == ("hybridsep", "bench") and chosen["--json"].endswith(f"{name}.json")
        assert chosen.get("--only", next(iter(GROUPS[group]))) in GROUPS[group]
        assert result["provenance"]["hardware"] in measured_on(result) and result["provenance"][
            "commit"
        ] in measured_on(result)


def test_ratios_beside_the_published_searches_are_those_of_the_times(recorded):
    table = against_published(recorded)
    rows = [
        row
        for name in ("decode-lass", "decode-lass-beam", "decode-lqvae")
        for row in recorded[name]["rows"]
        if row.get("reference_cache") != "shared heads once"
    ]
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
    assert list(shared_past(recorded["decode-shared"]).N) == sorted(
        {row["particles"] for row in recorded["decode-shared"]["rows"]}
    )
    dense, *_ = (posterior_figure(recorded["posterior"])).axes[0].lines
    sums = {
        row["codes"]: row["reference_seconds"]
        for row in recorded["posterior"]["rows"]
        if row["name"].startswith("sum-")
    }
    assert dict(zip(dense.get_xdata(), dense.get_ydata(), strict=True)) == pytest.approx(
        {codes: 1000 * seconds for codes, seconds in sums.items()}
    )
    plt.close("all")


def test_training_table_has_every_timed_part_with_the_ratio_of_its_times(recorded):
    timed = [row for row in recorded["training"]["rows"] if "share" not in row]
    table = training_steps(recorded["training"]).set_index(["model", "timed"])
    parts = ("whole step", "loading", "spectral loss", "nearest codes", "codebook update")
    assert {*(("VQ-VAE", part) for part in parts), ("prior", "whole step")} <= set(
        table.index
    ) and table.index.is_unique
    assert list(table["ours (ms)"]) == pytest.approx([1000 * row["ours_seconds"] for row in timed])
    compared = table[table.reference.notna()]
    assert list(compared.ratio) == pytest.approx(list(compared["reference (ms)"] / compared["ours (ms)"]))
    # No product can be faster in a step than alone, but for noise.
    rates, shares = (table[column].dropna() for column in ("their rate (%)", "products (% of the time)"))
    assert rates.between(1, 105).all() and shares.between(1, 99).all() and rates.index.equals(shares.index)
    shown = show_training(recorded).data
    assert shown.count("<tr>") == 1 + len(timed) and all(f">{number(ratio)}</td>" in shown for ratio in compared.ratio)
    assert "hybridsep bench training" in show_training({}).data


def test_precision_of_training_is_said_with_what_it_wins_and_what_it_costs(recorded):
    rows = {row["name"]: row for row in recorded["training"]["rows"] if row["name"].endswith("-precision")}
    codec, prior = precision_lines(recorded["training"])
    for line, row, default in (
        (codec, rows["codec-precision"], "float32"),
        (prior, rows["prior-precision"], "bfloat16"),
    ):
        assert (
            f"{number(row['ratio'])} times as fast" in line
            and f"after {row['steps']} steps" in line
            and line.endswith(f"is {default}.")
        )
        assert number(row["ours_loss"], 4) in line and number(row["reference_loss"], 4) in line
    assert codec in show_training(recorded).data
    slower = {**rows["prior-precision"], "ours_loss": 2.0, "reference_loss": 1.0, "ratio": 0.5}
    assert (
        "0.50 times" in precision_lines({"rows": [slower]})[0]
        and "+100.000 %" in precision_lines({"rows": [slower]})[0]
    )
