"""Freedoom's songs out of WADs and wheels: what is broken is named in one line, and the rest is kept."""

import csv
import hashlib
import zipfile

import pytest
from command import run
from midi_files import song_bytes, wad

from hybridsep.data import people
from hybridsep.data.people import VIZDOOM, WADS, read_wad
from hybridsep.data.soundfont import own_soundfont

SONGS = [
    ("D_ONE", song_bytes(30)),
    ("D_TWO", song_bytes(35)),
    ("D_SAME", song_bytes(30)),
    ("D_OLD", b"MUS\x1a1234"),
    ("WALL", b"stone"),
]


def make(out, source, *args):
    fonts = ("--soundfont", own_soundfont(), "--seconds", 6, "--variants", 1, "--sample-rate", 8000)
    status, said, err = run("data", "people", out, "--source", source, *fonts, *args)
    return status, said, [line for line in err.splitlines() if line.startswith("hybridsep")]


def test_songs_of_a_wad_are_rendered_and_the_rest_is_listed(tmp_path):
    (tmp_path / "wads").mkdir()
    (tmp_path / "wads/freedoom1.wad").write_bytes(wad(SONGS, beyond=True))
    (tmp_path / "wads/broken.wad").write_bytes(wad(SONGS)[:-40])
    status, said, _ = make(tmp_path / "out", tmp_path / "wads")
    assert status == 0 and said.startswith("2 songs, 2 tracks")
    with (tmp_path / "out/skipped.csv").open() as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert "beyond the end" in reasons["freedoom1/D_BEYOND"] and "MUS" in reasons["freedoom1/D_OLD"]
    assert "the same notes" in reasons["freedoom1/D_SAME"] or "the same notes" in reasons["freedoom1/D_ONE"]
    assert "directory" in reasons["broken/"] and len(reasons) == 4
    assert len(list((tmp_path / "out/midi/freedoom1").iterdir())) == 3


def test_sources_without_songs_end_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    files = {"text.wad": b"hello", "void.wad": wad([]), "cut.wad": wad(SONGS)[:-1]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for source, reason in (
        ("empty", "no .wad files"),
        ("text.wad", "not a WAD"),
        ("void.wad", "no MIDI"),
        ("cut.wad", "directory"),
    ):
        status, _, lines = make(tmp_path / "out", tmp_path / source)
        assert status == 1 and len(lines) == 1 and reason in lines[0]
    status, _, lines = make(tmp_path / "out", tmp_path / "missing.wad")
    assert status == 1 and len(lines) == 1 and "missing.wad" in lines[0]


def test_a_wheel_of_another_hash_is_refused(tmp_path):
    wheel = tmp_path / "vizdoom-1.3.2-other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in WADS:
            archive.writestr(member, wad(SONGS))
    status, _, lines = make(tmp_path / "out", wheel)
    assert status == 1 and len(lines) == 1 and "SHA-256" in lines[0] and not (tmp_path / "out").exists()


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    bomb = tmp_path / "vizdoom.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(WADS[0], bytes(200_000_000))
    monkeypatch.setattr(people, "ZipFile", lambda file: pytest.fail(f"opened {file}"))
    status, _, lines = make(tmp_path / "out", bomb)
    assert status == 1 and len(lines) == 1 and "SHA-256" in lines[0] and not (tmp_path / "out").exists()


def test_the_pinned_wheel_is_fetched_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def download(command, **_):
        calls.append(command)
        (people.Path(command[command.index("--dest") + 1]) / "vizdoom-1.3.2-x.whl").write_bytes(b"another file")
        return people.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(people.subprocess, "run", download)
    with pytest.raises(ValueError, match="not vizdoom 1.3.2 as pinned"):
        people.fetch(VIZDOOM)
    pinned = VIZDOOM._replace(sha256=hashlib.sha256(b"another file").hexdigest())
    assert people.fetch(pinned) == people.fetch(pinned) and len(calls) == 2
    assert not [p for p in (tmp_path / "hybridsep").iterdir() if p.is_dir()]


def test_a_wad_of_nonsense_never_raises():
    whole = wad(SONGS)
    for cut in range(0, len(whole), 97):
        list(read_wad(whole[:cut]))
    assert [reason for _, _, reason in read_wad(b"IWAD" + b"\xff" * 100)] == [
        "a broken WAD: its directory of 4294967295 entries lies beyond its end"
    ]
