"""Promises of the book's players, figures and tables that need no browser."""

import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from hybridsep.report.figures import number, plot_spectrograms, results_table, show
from hybridsep.report.players import PEAK, chooser, common_gain, listening_test, mp3_bytes, player_table, stem_player

RATE = 22050


def tone(seconds=1.0, hz=220.0, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def decoded(html):
    """Waveforms of every MP3 in a piece of HTML, in order."""
    found = re.findall(r'(?:base64,|data-mp3=")([A-Za-z0-9+/=]+)"', html)
    return [soundfile.read(io.BytesIO(base64.b64decode(data)))[0] for data in found]


@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_mp3_lasts_as_long_as_the_waveform(seconds, rate):
    waveform = np.zeros(int(seconds * rate), dtype=np.float32)
    sound, read_rate = soundfile.read(io.BytesIO(mp3_bytes(waveform, rate)))
    assert read_rate == rate
    assert len(sound) == pytest.approx(len(waveform), rel=0.01)


def test_mp3_keeps_the_sound():
    waveform = tone()
    (sound,) = decoded(player_table([{"n": "tone", "s": torch.from_numpy(waveform)[None]}], RATE, "c").data)
    error = sound[: len(waveform)] - waveform
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(error**2)) > 15


def test_stems_of_one_player_keep_their_relative_levels():
    loud, quiet = tone(level=2.0), tone(level=0.5)
    louder, quieter = decoded(stem_player({"a": loud, "b": quiet}, RATE, "t").data)
    assert np.abs(louder).max() <= 1.0
    assert np.std(louder) / np.std(quieter) == pytest.approx(4.0, rel=0.02)


def test_the_sum_of_a_group_does_not_clip():
    sounds = decoded(stem_player({"a": tone(level=0.9), "b": tone(level=0.9)}, RATE, "t").data)
    assert np.abs(np.sum(sounds, axis=0)).max() <= 1.0


def test_common_gain_never_raises_a_level():
    assert common_gain([tone(level=0.1)]) == 1.0
    assert common_gain([tone(level=0.1), tone(level=1.9)]) == pytest.approx(PEAK / 1.9, rel=1e-3)
    assert common_gain([np.zeros(9)]) == 1.0


@pytest.mark.parametrize("bad", [np.array([0.0, np.nan]), np.array([np.inf]), np.zeros((2, 8)), np.zeros(0)])
def test_what_cannot_be_heard_is_refused(bad):
    for make in (
        lambda: player_table([{"n": "a", "s": bad}], RATE, "c"),
        lambda: stem_player({"a": bad}, RATE, "t"),
    ):
        with pytest.raises(ValueError):
            make()


def test_a_sample_rate_mp3_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="22000 Hz"):
        mp3_bytes(tone(), 22000)


def test_stems_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        stem_player({"a": tone(1.0), "b": tone(1.1)}, RATE, "t")


def test_groups_must_name_every_stem_once():
    for groups in ({"g": ["a"]}, {"g": ["a", "b"], "h": ["b"]}, {"g": ["a", "b", "c"]}):
        with pytest.raises(ValueError, match="every stem once"):
            stem_player({"a": tone(), "b": tone()}, RATE, "t", groups=groups)


def test_rows_with_other_columns_are_refused():
    with pytest.raises(ValueError, match="row 1"):
        player_table([{"n": "a", "s": tone()}, {"n": "b", "t": tone()}], RATE, "c")


def test_rows_of_one_name_are_refused():
    with pytest.raises(ValueError, match="name each row"):
        player_table([{"n": "a", "s": tone()}, {"n": "a", "s": tone()}], RATE, "c")


def test_a_listening_test_needs_a_reference_and_something_beside_it():
    for clips in ({}, {"clip": {"reference": tone()}}, {"clip": {"LASS": tone(), "Hybrid": tone()}}):
        with pytest.raises(ValueError, match="'reference'"):
            listening_test(clips, RATE, "t")


def test_sounds_of_a_clip_keep_their_relative_levels():
    html = listening_test({"clip": {"reference": tone(level=2.0), "other": tone(level=0.5)}}, RATE, "t").data
    sounds = json.loads(re.search(r"hs-clips\">(.*?)</script>", html)[1])[0]["sounds"]
    loud, quiet = (soundfile.read(io.BytesIO(base64.b64decode(sounds[n])))[0] for n in ("reference", "other"))
    assert np.abs(loud).max() <= 1.0 and np.std(loud) / np.std(quiet) == pytest.approx(4.0, rel=0.02)


def test_every_text_is_escaped():
    evil = '<script>alert("1")</script>\'"'
    figure, _ = plt.subplots()
    pieces = [
        player_table([{evil: evil, evil + "2": tone(), "x": evil}], RATE, evil),
        stem_player({evil: tone(), "b": tone()}, RATE, evil, groups={evil: [evil, "b"]}, notes={"b": evil}),
        listening_test({evil: {"reference": tone(), evil: tone()}}, RATE, evil),
        chooser({(evil,): stem_player({"b": tone()}, RATE, evil)}, [evil]),
        show(figure, evil, evil),
        results_table(pd.DataFrame({evil: [evil]}), evil, evil),
    ]
    for piece in pieces:
        assert "<script>alert" not in piece.data
        assert 'alert("1")' not in piece.data


def test_two_stem_players_have_different_ids():
    ids = [re.search(r'id="([^"]+)"', stem_player({"a": tone()}, RATE, "t").data)[1] for _ in range(2)]
    assert ids[0] != ids[1]


def test_a_silent_stem_is_drawn_and_encoded():
    (sound,) = decoded(stem_player({"a": np.zeros(RATE)}, RATE, "t").data)
    assert np.abs(sound).max() < 1e-3


def test_three_seconds_weigh_less_than_forty_kilobytes():
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE)
    assert len(mp3_bytes(noise, RATE)) < 29_000  # and a third more as text


def test_spectrogram_axes_are_labelled_and_the_tone_is_where_it_sounds():
    figure = plot_spectrograms({"low": tone(hz=220), "high": tone(hz=3520, level=0.05)}, RATE)
    assert "Hz" in figure.get_supylabel() and "s" in figure.get_supxlabel()
    low, high = figure.axes[:2]
    assert low.get_yscale() == "log" and low.get_title() == "low"
    meshes = [axis.collections[0].get_array().reshape(-1, 87) for axis in (low, high)]
    assert meshes[0].max() == pytest.approx(0.0, abs=0.1)
    assert meshes[1].max() == pytest.approx(-20.0, abs=1.0)
    plt.close(figure)


def test_show_closes_the_figure_and_demands_words():
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="alt"):
        show(figure, "caption", " ")
    shown = show(figure, "caption", "an empty frame", "profile cpu").data
    assert 'alt="an empty frame"' in shown and shown.index("caption</figcaption>") < shown.index("profile cpu")
    assert not plt.fignum_exists(figure.number)


def test_panels_stand_side_by_side_and_each_has_words():
    shown = show([plt.figure(figsize=(2, 2)) for _ in range(3)], "caption", "three empty frames").data
    assert shown.count("<img") == shown.count("<figure") * 3 == 3 and "flex-wrap:wrap" in shown
    assert 'alt="three empty frames"' in shown and 'alt=""' not in shown and not plt.get_fignums()


def test_a_stem_is_shown_without_the_name_of_its_group():
    html = stem_player(
        {"m": tone(), "bass (LASS)": tone()}, RATE, "t", groups={"Mixture": ["m"], "LASS": ["bass (LASS)"]}
    ).data
    assert "</kbd> bass</span>" in html and 'aria-label="Solo LASS: bass"' in html and 'data-stem="bass (LASS)"' in html


def test_doubt_shades_the_place_it_belongs_to():
    html = stem_player({"a": tone(), "b": tone()}, RATE, "t", doubts={"b": [0.0, 2.0, 0.5]}).data
    assert html.count("linear-gradient") == 1
    assert "rgba(213,94,0,0.00),rgba(213,94,0,0.70),rgba(213,94,0,0.35)" in html[html.index('data-stem="b"') :]


def test_numbers_read_as_people_write_them():
    assert [number(v) for v in (-0.001, -1.5, 1234.5, float("inf"))] == [
        "0.00",
        "−1.50",
        "1\N{NARROW NO-BREAK SPACE}234.50",
        "undefined",
    ]
    assert number(-12345) == "−12\N{NARROW NO-BREAK SPACE}345"


def test_results_table_formats_numbers_and_missing_values():
    table = pd.DataFrame({"method": ["lass", "hybrid"], "SDR (dB)": [-1.234, np.nan], "n": [3, 4]})
    html = results_table(table, "caption", "cpu profile, 2 cores").data
    for expected in ("−1.23", "–", ">3<", "lass", "cpu profile, 2 cores"):
        assert expected in html
    with pytest.raises(ValueError, match="without rows"):
        results_table(table.iloc[:0], "caption", "p")
