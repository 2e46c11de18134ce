"""The command line: one line for a person, never a traceback."""

import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from command import lines_of, run
from tiny import tiny_separator


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_separator().save(folder)
    return folder


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal((11025, 2)), 22050)
    return path


def one_line(result, *words):
    status, _, err = result
    assert status == 1
    lines = lines_of(err)
    assert len(lines) == 1 and lines[0].startswith("hybridsep: ") and "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_help_of_every_command():
    status, out, _ = run("--help")
    assert status == 0
    for command in ("data", "train", "separate", "evaluate", "book"):
        assert command in out
        assert run(command, "--help")[0] == 0


def test_installed_command_answers_and_fails_in_one_line(tmp_path):
    """The one real process: entry point, exit status and standard error."""
    command = [sys.executable, "-m", "hybridsep.cli", "train", "lass", "--profile", "smok", "--runs", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.splitlines() == [
        "hybridsep: unknown profile 'smok': choose one of cpu, paper, quick, smoke, t4 or give a .yml file"
    ]


def test_help_does_not_wait_for_torch():
    code = "import sys, hybridsep.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_unknown_profile_method_and_file_are_named(tmp_path):
    one_line(run("train", "lass", "--profile", "smok"), "smok", "smoke")
    one_line(run("evaluate", "--profile", "smok"), "smok")
    one_line(run("train", "lasso", "--profile", "smoke", "--runs", tmp_path), "lasso", "lass")
    one_line(run("evaluate", "--profile", tmp_path / "mine.yml"), "mine.yml")
    one_line(run("train", "lass", "--profile", "smoke", "--runs", tmp_path, "--data", tmp_path / "nowhere"), "nowhere")
    assert not list(tmp_path.rglob("done.json"))


def test_data_folder_that_holds_no_songs_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    one_line(run("train", "lass", "--profile", "smoke", "--runs", tmp_path, "--data", tmp_path / "empty"), "empty")


def test_synth_into_a_folder_of_other_songs_is_refused(tmp_path):
    assert run("data", "synth", tmp_path / "songs", "--tracks", 1, "--seconds", 2)[0] == 0
    assert (tmp_path / "songs" / "train").is_dir()
    one_line(run("data", "synth", tmp_path / "songs", "--tracks", 1, "--seconds", 3), "songs")


def test_separate_writes_stems_and_one_summary(song, model, tmp_path):
    status, out, _ = run("separate", song, tmp_path / "out", "--model", model, "--particles", 2, "--seed", 4)
    assert status == 0 and len(out.splitlines()) == 1 and "bass.wav" in out
    assert re.search(r": 0\.5 s in \d+\.\d s, evidence -?\d+\.\d{3} nats per code$", out.strip())
    stems = [soundfile.read(tmp_path / "out" / f"{n}.wav") for n in ("bass", "drums")]
    mixture = soundfile.read(song)[0]
    assert all(rate == 22050 and s.shape == mixture.shape for s, rate in stems)
    assert np.abs(sum(s for s, _ in stems) - mixture).max() < 1e-3
    one_line(run("separate", song, tmp_path / "out", "--model", model, "--particles", 2), "bass.wav", "--overwrite")
    assert (
        run("separate", song, tmp_path / "out", "--model", model, "--particles", 2, "--overwrite", "--no-refine")[0]
        == 0
    )


def test_bad_input_of_separate_is_named(song, model, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "text.wav").write_text("no music")
    (tmp_path / "empty.wav").touch()
    for bad in ("missing.wav", "text.wav", "empty.wav", "."):
        one_line(run("separate", tmp_path / bad, out, "--model", model), str(tmp_path / bad))
    one_line(run("separate", song, out, "--model", tmp_path), "is no model")
    one_line(run("separate", song, out, "--model", model, "--search", "best"), "best", "particle")
    one_line(run("separate", song, out, "--model", model, "--particles", 1, "--format", "xyz"), "xyz")
    one_line(run("separate", song, song, "--model", model, "--particles", 1), "song.wav")
    assert not out.exists() or not list(out.iterdir())
    assert run("separate", song, out, "--model", model, "--particles", 0)[0] == 2


def test_damaged_model_is_named(song, tmp_path):
    tiny_separator().save(tmp_path / "model")
    path = tmp_path / "model" / "prior-drums.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    one_line(run("separate", song, tmp_path / "out", "--model", tmp_path / "model"), "prior-drums.safetensors")


def test_silent_recording_warns_in_one_line(model, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(22050), 22050)
    status, _, err = run("separate", tmp_path / "silent.wav", tmp_path / "out", "--model", model)
    assert status == 0 and err.splitlines() == ["warning: the recording is silent throughout; so are its stems"]


def test_ctrl_c_exits_with_130_and_no_traceback(song, model, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybridsep.inference.separator.Separator.separate_blocks", interrupted)
    status, _, err = run("separate", song, tmp_path / "out", "--model", model)
    assert status == 130 and "Traceback" not in err and not (tmp_path / "out").exists()


def test_same_command_gives_the_same_bytes(song, model, tmp_path):
    for name in ("a", "b"):
        assert run("separate", song, tmp_path / name, "--model", model, "--particles", 2)[0] == 0
    first, second = ((tmp_path / name / "bass.wav").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first[first.find(b"PEAK") + 12 :][:4] == bytes(4)  # there the time would be
    assert torch.get_num_threads() >= 1
