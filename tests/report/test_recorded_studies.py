"""Numbers and intervals of recorded studies read as people write them, and say when a study is older than the models."""

import pandas as pd
import pytest

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile
from hybridsep.report.chapter import p_relation, p_value
from hybridsep.report.studies import Study, footer, interval, one_row, paired, read_study, spans


def scores(**by_method):
    rows = [
        {"track": f"song{n}", "start_s": 0.0, "method": method, "source": source, "value": value + (source == "drums")}
        for method, values in by_method.items()
        for n, value in enumerate(values)
        for source in ("bass", "drums")
    ]
    return pd.DataFrame(rows)


def test_differences_are_taken_song_by_song_over_the_mean_of_the_sources():
    table = scores(ours=(1.0, 5.0, 12.0), theirs=(0.0, 4.0, 11.0))
    found = paired(table, {"method": "ours"}, {"method": "theirs"})
    assert found[["mean", "low", "high", "n"]].tolist() == pytest.approx([1, 1, 1, 3])
    assert interval(found) == "+1.00\N{NO-BREAK SPACE}dB [+1.00 to +1.00]"
    assert spans(table, "method", source="drums")["mean"].to_dict() == pytest.approx({"ours": 7, "theirs": 6})


def test_a_row_that_is_not_the_only_one_is_refused():
    table = scores(ours=(1.0, 2.0))
    with pytest.raises(ValueError, match="4 rows have"):
        one_row(table, method="ours")
    assert one_row(table, track="song1", source="bass").value == 2


def test_a_study_says_which_settings_have_changed_since():
    profile = load_profile("cpu").model_dump(mode="json")
    kept = Study("precision", {}, {"profile": profile, "commit": "abc", "hardware": "a machine"})
    assert not kept.changed_settings() and "others today" not in kept.line()
    other = {**profile, "search": {**profile["search"], "temperature": 9.0}, "evaluation": {}}
    older = Study("precision", {}, {**kept.provenance, "profile": other})
    assert older.changed_settings() == ["search.temperature"]
    assert "settings that are others today: search.temperature;" in older.line("n = 8 songs")
    unknown = Study("precision", {}, {**kept.provenance, "profile": {**other, "name": "a file of somebody"}})
    assert not unknown.changed_settings()


def test_a_page_ends_with_what_made_each_study_that_was_read_for_it():
    read = [read_study(name) for name in ("rungs", "linearity")]
    said = footer().data
    for study in read:
        assert said.count(f"Study {study.name}: profile cpu, commit {study.provenance['commit']}") == 1
        assert study.provenance["commit"] not in study.line("n = 3 songs")


def test_a_study_that_was_never_recorded_is_said_in_one_line():
    with pytest.raises(HybridsepError, match="no recorded study in .*nowhere"):
        read_study("nowhere")


def test_p_values_never_read_as_zero():
    assert (p_value(0.0123), p_value(1e-5)) == ("0.012", "< 0.001")
    assert (p_relation(0.0123), p_relation(1e-5)) == ("p = 0.012", "p < 0.001")
