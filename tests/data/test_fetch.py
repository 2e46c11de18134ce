"""Real Slakh over the network: what is kept, what is refused, and that no failure costs what is there. The server is real, on loopback."""

import csv
import errno
import gzip
import io
import json
import random
import re
import shutil
import tarfile
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command import lines_of, run
from slakh_archives import (
    NATIVE,
    SECONDS,
    Server,
    album,
    baby,
    ballast,
    entry,
    long_album,
    md5,
    song,
    sound,
    tar,
    tar_of,
    tone,
    white,
    zip_of,
)

from hybridsep.core.errors import HybridsepError
from hybridsep.data import archive as archive_module
from hybridsep.data import fetch as fetch_module
from hybridsep.data.archive import Member
from hybridsep.data.fetch import NOISE_FLATNESS, SILENT_DBFS, VARIANTS, Report, Sorter, fetch_slakh, measure
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.slakh import SPLITS, load_source, read_tracks

RATE = 8000


@pytest.fixture
def server():
    with Server() as server, server.running():
        yield server


@pytest.fixture(autouse=True)
def naps(monkeypatch):
    """Waiting between two tries takes no time here; the seconds are returned."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@contextmanager
def refused(match: str):
    """Hold an error to one line."""
    with pytest.raises(HybridsepError, match=match) as error:
        yield error
    assert "\n" not in str(error.value)


def fetch(out: Path, source: str | Path, tracks: int = 10, **options):
    return fetch_slakh(out, tracks=tracks, sample_rate=RATE, source=str(source), progress=False, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".flac", ".yaml"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def rejected(out: Path) -> dict[str, str]:
    """Track/stem -> reason."""
    with (out / "rejected.csv").open(newline="") as file:
        return {f"{row['track']}/{row['stem']}": row["reason"] for row in csv.DictReader(file)}


def complete(out: Path) -> list[str]:
    """Tracks that the reader finds, each held to be whole; nothing else may lie about."""
    tracks = read_tracks(out)
    assert all({stem.inst_class for stem in track.stems} == {"Bass", "Drums"} for track in tracks)
    assert {p.name for p in out.iterdir()} <= {*SPLITS, "slakh.json", "fetched.json", "rejected.csv", ".partial"}
    return [f"{track.split}/{track.name}" for track in tracks]


PLACES = {1: "train", 3: "train", 4: "test", 5: "train", 6: "validation", 7: "train"}
ALBUM = [f"{split}/Track{number:05d}" for number, split in PLACES.items()]


@pytest.fixture
def saved(tmp_path):
    """Save an archive; where it lies."""

    def save(content: bytes, name: str = "a.tar.gz") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return save


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_bass_and_drums_are_kept_mono_at_the_asked_rate_in_their_splits(server, out):
    stereo = sound(np.stack([tone(51), 0 * tone(51)], axis=1))
    server.content = tar([song(1, changes={"stems/S00.flac": stereo}), *album()[1:]])
    report = fetch(out, server.url, md5=md5(server.content))
    assert complete(out) == ALBUM and report.tracks == {"train": 4, "validation": 1, "test": 1}
    track = read_tracks(out)[0]
    assert [(s.name, s.inst_class) for s in track.stems] == [("S00", "Bass"), ("S01", "Drums"), ("S03", "Bass")]
    assert track.metadata["overall_gain"] == 0.2 and "mix.flac" not in str(files_in(out).keys())
    info = soundfile.info(track.stems[0].path)
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, round(RATE * SECONDS))
    expected = 0.5 * tone(51, RATE) + tone(71, RATE)  # the basses of a song are summed, channels averaged
    assert np.sqrt(np.square(load_source(track, "Bass", RATE) - expected).mean()) < 0.003
    record = json.loads((out / "fetched.json").read_text())
    assert record["source"] == server.url and record["bytes_read"] == record["bytes_total"] == len(server.content)
    assert "as it should be" in record["checked"] and server.asked == ["bytes=0-3", "bytes=0-"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_order_of_the_archive_does_not_matter(saved, tmp_path, shuffled):
    """Metadata may follow the stems, and the files of a song may lie anywhere."""
    fetch(tmp_path / "ordered", saved(tar([dict(sorted(files.items())) for files in album()])))
    backward = [dict(sorted(files.items(), reverse=True)) for files in reversed(album())]
    fetch(tmp_path / "other", saved(tar(backward, shuffled=shuffled)))
    assert complete(tmp_path / "other") == ALBUM and files_in(tmp_path / "ordered") == files_in(tmp_path / "other")


def test_reading_stops_when_there_is_enough(server, out):
    server.content = tar([*album(), *(song(number, changes=ballast(3 << 20)) for number in range(10, 18))])
    report = fetch(out, server.url, 4, md5="0" * 32)
    assert report.tracks == {"train": 2, "validation": 1, "test": 1} and report.bytes_read < len(server.content) / 4
    assert complete(out) == [ALBUM[i] for i in (0, 1, 2, 4)] and server.sent < len(server.content)
    assert "MD5 cannot be checked" in report.checked  # and the wrong one that was given does no harm


def test_published_archives_are_those_on_record(tmp_path, monkeypatch):
    """MD5s and names as mirdata and Zenodo have them; another archive is held against no MD5 but the one that is given."""
    record = {
        "redux": ("4599666/files/slakh2100_flac_redux.tar.gz", "f4b71b6c45ac9b506f59788456b3f0c4"),
        "baby": ("4603844/files/babyslakh_16k.zip", "ea1797fc57689a0e33c759c17a2292f5"),
    }
    assert VARIANTS.keys() == record.keys()
    read, archive = [], str(tmp_path / "a.tar.gz")
    monkeypatch.setattr(fetch_module, "_read", lambda *args: read.append(args[1:3]) or Report({"train": 1}, 0))
    for variant, (name, digest) in record.items():
        for source, given in ((None, None), (None, "1" * 32), (archive, None), (archive, "1" * 32)):
            fetch_slakh(tmp_path / variant, variant, 1, source=source, md5=given, progress=False)
        url = f"https://zenodo.org/records/{name}?download=1"
        assert read[-4:] == [(url, digest), (url, "1" * 32), (archive, None), (archive, "1" * 32)]


def test_a_run_goes_on_where_the_last_one_stopped(server, out):
    server.content = tar(album())
    fetch(out, server.url, 4)
    before, requests = files_in(out), len(server.asked)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.flac")}
    report = fetch(out, server.url, 4)
    assert report.bytes_read == 0 and len(server.asked) == requests and "already" in report.checked
    assert fetch(out, server.url, 10).total == 6 and complete(out) == ALBUM
    assert before.items() <= files_in(out).items() and all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_what_waits_on_disk_and_in_memory_is_bounded_by_one_track(saved, out, monkeypatch):
    """72 MB go by; of one track's stems at most lie in the way, and the archive is nowhere held."""
    songs = [song(number, changes=ballast(6 << 20)) for number in range(1, 13)]
    waits, real = [], Sorter._spool

    def spool(self, *args):
        real(self, *args)
        waits.append(sum(path.stat().st_size for path in self.partial.rglob("S*")))

    monkeypatch.setattr(Sorter, "_spool", spool)
    archive = saved(tar(songs))
    tracemalloc.start()
    report = fetch(out, archive, 17)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stems = max(sum(len(content) for name, content in files.items() if "/stems/" in name) for files in songs)
    assert report.total == 12 and report.bytes_read > 72 << 20 and 0 < max(waits) <= stems and held < 24 << 20


def test_300_shuffled_tracks_fit_in_ten_gigabytes(out, monkeypatch):
    """The worst order there is, with every file as large as in Slakh2100 on average, a ten-thousandth of it.

    2100 tracks in three folders, 104 GB, 10 stems each (the 151 test tracks of redux have 1539). What is omitted there is
    counted here, and stems are written as they came; at half their rate they take less.
    """
    small, folders, generator, members = 1e-4, {"train": 1500, "validation": 375, "test": 225}, random.Random(0), []
    per_track = 104e9 * small / sum(folders.values())
    for number, split in enumerate(split for split, count in folders.items() for _ in range(count)):
        count = generator.randint(4, 16)
        kinds = {f"S{i:02d}": ["Bass", "Drums", "Piano"][min(i, 2)] for i in range(count)}
        metadata = json.dumps({"stems": {name: entry(kind, 0) for name, kind in kinds.items()}}).encode()
        place = f"slakh2100_flac_redux/{split}/Track{number + 1:05d}"
        members += [(f"{place}/stems/{name}.flac", bytes(round(per_track / (count + 1)))) for name in kinds]
        members.append((f"{place}/metadata.yaml", metadata))
    generator.shuffle(members)
    monkeypatch.setattr(fetch_module, "_converted", lambda path, rate: path.read_bytes())
    sorter, on_disk = Sorter(out, {"classes": ["Bass", "Drums"], "sample_rate": RATE}, 300), []
    sorter.recall("", (0, ""))
    for number, (name, content) in enumerate(members):
        sorter.take(Member(name, len(content), io.BytesIO(content)))
        if number % 500 == 0:
            on_disk.append(sum(p.stat().st_size for p in out.rglob("*.flac")))
        if sorter.enough:
            break
    assert sorter.counts == sorter.quota == {"train": 210, "validation": 30, "test": 60}
    assert 4e9 * small < max(on_disk) < 10e9 * small and 0.5 < number / len(members) < 1


def test_songs_of_other_settings_or_another_kind_are_not_touched(saved, out, minislakh):
    fetch(out, archive := saved(tar(album())))
    with refused("16000"):
        fetch_slakh(out, tracks=10, sample_rate=16000, source=str(archive), progress=False)
    with refused("holds songs that another command made"):
        fetch(minislakh, archive)
    (out / "slakh.json").write_text("{")
    with refused("slakh.json is damaged"):
        fetch(out, archive)


@pytest.fixture(scope="module")
def minislakh(tmp_path_factory):
    return make_minislakh(tmp_path_factory.mktemp("mini") / "songs", 10, 5.0, 3, RATE, workers=1, progress=False)


def test_every_rendered_bass_and_drum_stem_is_kept(minislakh, tmp_path, out):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(minislakh, "slakh2100_flac_redux")
    report = fetch(out, tmp_path / "a.tar.gz", 10)
    assert report.tracks == {"train": 7, "validation": 1, "test": 2} and report.rejected == 0
    for found, made in zip(read_tracks(out), read_tracks(minislakh), strict=True):
        for kind in ("Bass", "Drums"):
            assert np.array_equal(load_source(found, kind, RATE), load_source(made, kind, RATE))


def test_the_noise_limit_is_far_from_drums_and_from_noise(minislakh):
    drums = [measure(load_source(track, "Drums", RATE), RATE, RATE)[1] for track in read_tracks(minislakh)]
    noise = measure(white(), NATIVE, NATIVE)[1]
    assert max(drums) < NOISE_FLATNESS - 0.3 and noise > NOISE_FLATNESS + 0.1
    assert measure(tone(100, RATE), RATE, RATE)[0] > SILENT_DBFS + 30


FAULTS = {
    "text": (b"no sound at all", "not audio"),
    "empty": (b"", "not audio"),
    "silence": (sound(np.zeros(NATIVE)), "silent: -"),
    "faint": (sound(1e-4 * tone(100)), "silent: -"),
    "noise": (sound(white()), "white noise: flatness 0.9"),
    "no samples": (sound(np.zeros(0), form="WAV"), "0 samples long"),
    "cut": (sound(tone(100))[:3000], ""),
    "nan": (sound(np.full(NATIVE, np.nan), form="WAV", subtype="FLOAT"), "not finite"),
    "large": (bytes(600_000), "600000 bytes are too many"),
    "missing": (None, "not in the archive"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_stems_are_left_out_and_listed(saved, out, monkeypatch, fault):
    """One of two basses may be missing; without any the song is of no use."""
    content, reason = FAULTS[fault]
    monkeypatch.setattr(fetch_module, "LARGEST_STEM", 500_000)
    bass, drums = {"stems/S00.flac": content}, {"stems/S01.flac": content}
    report = fetch(out, saved(tar([song(1, changes=bass), song(2, changes=drums), song(3)])))
    assert complete(out) == ["train/Track00001", "train/Track00003"] and report.rejected == 3
    assert [s.name for s in read_tracks(out)[0].stems] == ["S01", "S03"]
    listed = rejected(out)
    assert listed.pop("Track00002/") == "no usable stem of class Drums"
    assert listed.keys() == {"Track00001/S00", "Track00002/S01"} and all(reason in said for said in listed.values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stems: !!python/object/apply:os.system ['touch hacked']", "not plain YAML"),
        ("[" * 5000, "not plain YAML"),
        ("stems: {S00: {inst_class: Bass}}", "no stem of class Drums"),
        ("stems: {../../S00: {inst_class: Bass}}", "no file name"),
        (" " * 5_000_000, "metadata.yaml of 5000000 bytes"),
        (None, "no metadata.yaml"),
    ],
)
def test_a_track_whose_metadata_is_of_no_use_is_refused_and_listed(saved, out, tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    bad = song(1, changes={"metadata.yaml": text.encode() if text else None})
    fetch(out, saved(tar([bad, song(2)])))
    assert complete(out) == ["train/Track00002"] and not (tmp_path / "hacked").exists()
    assert reason in rejected(out)["Track00001/"]


def test_an_archive_without_any_usable_song_is_an_error(saved, out):
    with refused("usable stems of Bass and Drums.*rejected.csv"):
        fetch(out, saved(tar([song(1, changes={"stems/S01.flac": sound(white())})])))


def test_a_connection_broken_twice_is_taken_up_again(server, saved, tmp_path, out):
    """Nothing is lost and nothing comes twice."""
    server.content, server.cuts = tar(album()), [40_000, 50_000]
    report = fetch(out, server.url, md5=md5(server.content))
    assert complete(out) == ALBUM and "as it should be" in report.checked and report.bytes_read == len(server.content)
    assert server.asked == ["bytes=0-3", "bytes=0-", "bytes=40000-", "bytes=90000-"]
    fetch(tmp_path / "same", saved(server.content))
    assert files_in(out) == files_in(tmp_path / "same")


@pytest.mark.parametrize(("longer", "tag"), [(b"", ""), (b"x", ""), (b"x", 'W/"weak"'), (b"", 'W/"weak"')])
def test_an_archive_that_changes_between_two_tries_is_refused(server, out, longer, tag):
    server.content, server.cuts, server.tag = tar(album()), [40_000], tag
    server.later = server.content[:50_000] + b"x" + server.content[50_001:] + longer
    hidden = tag and not longer  # nothing but the content gives the change away
    with refused("damaged|MD5" if hidden else "changed while it was read"):
        fetch(out, server.url, md5=md5(server.content))


def test_a_server_that_is_busy_is_asked_again_after_the_time_it_asks_for(server, out, naps):
    server.content, server.answers = tar(album()), [503, 429]
    assert fetch(out, server.url).total == 6 and naps == [7, 7]


def lose(server, out: Path, sent: int, *args, **options) -> None:
    """Fetch until the connection is lost for good after `sent` bytes of a long answer."""
    server.cuts, server.answers = [sent], [206, 206, *[500] * 7]
    with refused("lost the connection to .* at byte "):
        fetch(out, server.url, *args, **options)
    server.answers.clear()
    server.asked.clear()


def test_an_archive_cut_in_the_middle_of_a_file_keeps_complete_tracks_only(server, out):
    whole = tar(album())
    server.content = whole[: len(whole) * 2 // 3]
    with refused("cut off"):
        fetch(out, server.url)
    kept = complete(out)
    assert kept and set(kept) < set(ALBUM)
    server.content = whole
    fetch(out, server.url)
    assert complete(out) == ALBUM


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_byte_is_noticed(saved, out, compressed):
    """By gzip's checksum; and a header that makes no sense is not mistaken for the end of the archive."""
    content = bytearray(tar(album()))
    if compressed:
        content[len(content) // 2] ^= 255
    else:
        with tarfile.open(fileobj=io.BytesIO(bytes(content))) as archive:
            headers = [info.offset for info in archive]
        content = bytearray(gzip.decompress(content))
        content[headers[20]] ^= 255
        content = gzip.compress(content)
    with refused("damaged"):
        fetch(out, saved(content))


def test_an_archive_that_lacks_its_end_is_told_from_one_of_several_streams(saved, tmp_path):
    """A tar ends with zeros; one that was cut between two files, then compressed, does not."""
    content = gzip.decompress(tar(album())).rstrip(b"\0")
    cut = content + bytes(-len(content) % 512)
    with refused("ends before its end"):
        fetch(tmp_path / "cut", saved(gzip.compress(cut[:30_000]) + gzip.compress(cut[30_000:])))
    whole = cut + bytes(512)
    assert (
        "MD5" in fetch(tmp_path / "whole", saved(gzip.compress(whole[:30_000]) + gzip.compress(whole[30_000:]))).checked
    )


@pytest.mark.parametrize("content", [b"", b"<html>no such record</html>", b"\x1f\x8b rubbish", b"PK\x03\x04 rubbish"])
def test_what_is_no_archive_is_named(server, out, content):
    server.content = content
    with refused("http://127.*(no archive|answers 416)"):
        fetch(out, server.url)
    assert not list(out.glob("*/Track*"))


def test_what_cannot_be_had_is_named_without_a_second_try(server, out, tmp_path, naps):
    server.content, server.answers = tar(album()), [404]
    with refused(r"http://127.*answers 404 Not Found"):
        fetch(out, server.url)
    server.ranges = False
    with refused("knows no byte ranges; download"):
        fetch(out, server.url)
    with refused("no archive .*nowhere.tar.gz"):
        fetch(out, tmp_path / "nowhere.tar.gz")
    assert naps == []


def test_a_wrong_checksum_is_an_error_and_a_zip_is_not_even_opened(server, tmp_path):
    for variant, content, kept in (("redux", tar(album()), ALBUM), ("baby", baby(), [])):
        server.content, out = content, tmp_path / variant
        with refused(f"its MD5 is {md5(content)}, not 1111"):
            fetch(out, server.url, variant=variant, md5="1" * 32)
        assert len(list(out.glob("*/Track*"))) == len(kept) and not list(out.rglob("*.zip"))
    assert complete(tmp_path / "redux") == ALBUM


STEM = "slakh2100_flac_redux/train/Track00008/stems/S00.flac"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        *((tar_of(name, tarfile.REGTYPE, ""), "hacked") for name in (f"{STEM}/../../../../../hacked", "../hacked", "/tmp/hacked")),
        (tar_of(STEM, tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (tar_of(STEM, tarfile.LNKTYPE, "../../../../etc/passwd"), "link"),
        (tar_of(STEM, tarfile.CHRTYPE, ""), "device"),
        *((zip_of(name, False), "hacked") for name in ("../hacked", "babyslakh_16k\\..\\..\\hacked", "C:/hacked")),
        (zip_of("babyslakh_16k/Track00001/stems/S00.wav", True), "link"),
    ],
)  # fmt: skip
def test_members_that_lead_out_of_the_archive_are_refused(saved, tmp_path, content, word):
    (tmp_path / "in").mkdir()
    archive = saved(content, "in/archive")
    with refused(f"refused.*{word}"):
        fetch(tmp_path / "in" / "out", archive, variant="baby" if content[:2] == b"PK" else "redux")
    assert content[:2] == b"PK" or complete(tmp_path / "in" / "out") == ["train/Track00001"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert {p.name for p in archive.parent.iterdir()} == {"archive", "out"}


def fill_disk(patch, method: str, room: int) -> None:
    """Let `room` files be written under .partial, and no more."""
    real, written = getattr(Path, method), []

    def limited(self, *args, **options):
        if ".partial" in self.parts and (method != "open" or set("wa") & set(str((args, options)))):
            written.append(self)
            if len(written) > room:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, *args, **options)

    patch.setattr(Path, method, limited)


@pytest.mark.parametrize(("method", "room"), [("write_bytes", 9), ("open", 20)])
def test_a_full_disk_ends_in_one_line_and_keeps_what_is_there(saved, out, monkeypatch, method, room):
    """Whatever cannot be written: a stem that waits, a stem of ours, or its metadata."""
    archive = saved(tar(album()))
    with monkeypatch.context() as patch:
        fill_disk(patch, method, room)
        with refused("no space left for .*out: . complete tracks are kept|note.json: No space left") as error:
            fetch(out, archive)
    kept = complete(out)
    assert kept and set(kept) < set(ALBUM) and re.search(f" {len(kept)} complete|note.json", str(error.value))
    fetch(out, archive)
    assert complete(out) == ALBUM


def test_a_disk_that_fills_while_a_zip_is_saved_ends_in_one_line_and_the_next_run_goes_on(server, out, monkeypatch):
    server.content = baby()
    monkeypatch.setattr(archive_module, "CHUNK", 1 << 14)
    real, room = shutil.copyfileobj, 40_000

    def copy(source, target, length):
        target.write(source.read(room))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive_module.shutil, "copyfileobj", copy)
    with refused("no space left for .*out: 0 complete tracks are kept"):
        fetch(out, server.url, variant="baby")
    monkeypatch.setattr(archive_module.shutil, "copyfileobj", real)
    report = fetch(out, server.url, variant="baby", md5=md5(server.content))
    assert server.asked[2:] == ["bytes=0-3", "bytes=32768-"] and "as it should be" in report.checked
    assert len(complete(out)) == 10 and not (out / ".partial").exists()


def interrupt(monkeypatch, out: Path, source, **options) -> None:
    """Fetch until the first track is written, and no further."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch_module, "_converted", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        fetch(out, source, **options)


def test_an_interrupted_run_leaves_no_half_track(saved, out, monkeypatch):
    archive = saved(tar(album()))
    interrupt(monkeypatch, out, archive)
    assert not list(out.glob("*/Track*"))
    left = out / ".partial" / "train" / "Track00001"  # as after kill -9
    left.mkdir(parents=True, exist_ok=True)
    (left / "S00.tmp").write_bytes(b"half")
    (left / "S01.flac").write_bytes(b"of an archive that nothing is known of")
    (out / ".partial" / "note.json").write_text("{")
    fetch(out, archive)
    assert complete(out) == ALBUM and not (out / ".partial").exists()


@pytest.mark.parametrize("shuffled", [True, False])
def test_the_next_run_begins_where_the_connection_was_lost(server, saved, tmp_path, out, naps, shuffled):
    """With everything that waited; few megabytes come again, for one point of gzip's stream to inflate from."""
    server.content = tar(long_album(), shuffled=shuffled)
    fetch(tmp_path / "same", saved(server.content))
    lose(server, out, 5_500_000)
    assert 20 < sum(naps) < 120  # seconds
    lose(server, out, 4_500_000)
    report = fetch(out, server.url, md5=md5(server.content))
    first = int(server.asked[1].removeprefix("bytes=").removesuffix("-"))
    assert first > 4_000_000 and report.bytes_read == len(server.content) - first
    assert "several runs" in report.checked and "checksum is right" in report.checked
    assert files_in(out) == files_in(tmp_path / "same") and not (out / ".partial").exists()


def test_a_killed_run_is_gone_on_with_from_its_last_note(saved, tmp_path, out, monkeypatch):
    """Every member counts here as the last before a kill -9; what a run has closed stays closed in the next."""
    songs = long_album()
    songs[3] = song(4, changes={"stems/S00.flac": b"no sound", **ballast(1_500_000, 1)})
    archive = saved(tar(songs, shuffled=True))
    fetch(tmp_path / "same", archive)
    real, calls = Sorter.take, []

    def mortal(self, member):
        calls.append(member.name)
        if len(calls) % 6 == 0:
            raise SystemError("killed")
        return real(self, member)

    monkeypatch.setattr(Sorter, "take", mortal)
    monkeypatch.setattr(fetch_module, "NOTE_SECONDS", 0.0)
    for _ in range(40):
        with suppress(SystemError):
            fetch(out, archive)
            break
    for split in SPLITS:
        assert files_in(out / split) == files_in(tmp_path / "same" / split)
    assert rejected(out) == rejected(tmp_path / "same") and "Track00004/S00" in rejected(out)
    assert len(calls) < 2 * len(songs) * 7


def test_another_task_after_a_lost_connection_begins_anew(server, out, tmp_path):
    """More tracks, as those that were passed over would be missed; or an archive that changed."""
    server.content, classes = tar(long_album()), ("Bass", "Drums", "Guitar", "Piano")
    lose(server, out, 5_500_000, 1, classes=classes)
    with refused("no track"):
        fetch(out, server.url, 2, classes=classes)
    assert server.asked[1] == "bytes=0-"
    server.content, other = tar(long_album(), shuffled=True), tmp_path / "other"
    lose(server, other, 5_500_000)
    server.content = tar(long_album()[1:], shuffled=True)
    report = fetch(other, server.url, md5=md5(server.content))
    assert "as it should be" in report.checked and len(complete(other)) >= 5


def test_a_damaged_stream_is_noticed_after_a_resumption_too(server, out):
    """The MD5 of the whole cannot be had then; gzip's own checksum is carried along."""
    content = bytearray(tar(long_album()))
    server.content = bytes(content)
    lose(server, out, 5_500_000)
    server.tag = f'"{md5(server.content)}"'  # nothing gives the change away
    content[7_000_000] ^= 1
    server.content = bytes(content)
    with refused("damaged"):
        fetch(out, server.url)


@pytest.mark.parametrize("remote", [True, False])
def test_babyslakh_is_split_by_number_and_warned_about(server, saved, out, remote):
    server.content, server.cuts = baby(), [50_000]
    source = server.url if remote else str(saved(server.content, "baby.zip"))
    digest = md5(server.content)
    with pytest.warns(UserWarning, match="16000 Hz: .* ends at 8 kHz"):
        report = fetch_slakh(out, "baby", 300, sample_rate=22050, source=source, md5=digest, progress=False)
    assert report.tracks == {"train": 7, "validation": 1, "test": 2} and "as it should be" in report.checked
    last = ["train/Track00007", "validation/Track00008", "test/Track00009", "test/Track00010"]
    assert complete(out)[6:] == last
    assert soundfile.info(read_tracks(out)[0].stems[0].path).samplerate == 22050
    assert server.asked == ["bytes=0-3", "bytes=0-", "bytes=50000-"] if remote else Path(source).is_file()


def test_a_killed_download_is_gone_on_with_and_a_complete_one_is_not_fetched_again(server, out, monkeypatch):
    server.content = baby()
    monkeypatch.setattr(archive_module, "CHUNK", 1 << 14)
    lose(server, out, 50_000, variant="baby")
    interrupt(monkeypatch, out, server.url, variant="baby")
    assert server.asked[1:] == ["bytes=49152-"]
    report = fetch(out, server.url, variant="baby", md5=md5(server.content))
    assert report.bytes_read == 0 and len(complete(out)) == 10


def test_the_command_sums_up_or_fails_in_one_line(server, out):
    server.content, server.cuts = tar(album()), [40_000]
    status, said, err = run("data", "slakh", out, "--source", server.url, "--md5", md5(server.content))
    assert (
        status == 0 and said.startswith(f"6 songs in {out} (4 train, 1 validation, 1 test)") and said.count("\n") == 1
    )
    assert "trying again" in err and re.search(r"Slakh: 100%.*\d+(\.\d+)?k/\d+(\.\d+)?k .*B/s, 6/300 tracks", err)
    assert soundfile.info(read_tracks(out)[0].stems[0].path).samplerate == 22050
    server.answers = [403]
    status, said, err = run("data", "slakh", out / "other", "--source", server.url)
    lines = lines_of(err, "Slakh")
    assert status == 1 and said == "" and len(lines) == 1
    assert lines[0].startswith("hybridsep: ") and "403 Forbidden" in lines[0]
    assert run("data", "slakh", out, "--variant", "mega")[0] == 1
    assert run("data", "slakh", out, "--tracks", 0)[0] == 2
