"""Real Slakh over the network: what is kept, what is refused, and that no failure costs what is there. The server is real, on loopback."""

import csv
import errno
import gzip
import hashlib
import io
import json
import random
import re
import tarfile
import threading
import tracemalloc
import zipfile
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from command import lines_of, run
from test_slakh_reader import entry

from hybridsep.core.errors import HybridsepError
from hybridsep.data import archive as archive_module
from hybridsep.data import fetch as fetch_module
from hybridsep.data.archive import Member
from hybridsep.data.fetch import NOISE_FLATNESS, SILENT_DBFS, VARIANTS, Report, Sorter, fetch_slakh, measure
from hybridsep.data.minislakh.render import make_minislakh
from hybridsep.data.slakh import SPLITS, load_source, read_tracks

RATE, NATIVE = 8000, 16000
SECONDS = 2.0


# ---- archives ------------------------------------------------------------------------------------------------------------


def tone(hertz: float, rate: int = NATIVE, level: float = 0.2) -> np.ndarray:
    time = np.arange(round(SECONDS * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time) * np.exp(-3 * (time % 0.25))).astype(np.float32)


@cache
def white() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(SECONDS * NATIVE))).astype(np.float32)


def sound(samples: np.ndarray, rate: int = NATIVE, form: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def song(
    number: int, split: str = "train", root: str = "slakh2100_flac_redux", changes: dict | None = None
) -> dict[str, bytes]:
    """Members of one track: two basses, drums, a guitar, a bass never rendered, mix and MIDI. `changes` replaces or (None) removes members."""
    stems = {
        "S00": entry("Bass", 33), "S01": entry("Drums", 128), "S02": entry("Guitar", 27), "S03": entry("Bass", 38),
        "S04": entry("Bass", 39, rendered=False),
    }  # fmt: skip
    metadata = {"UUID": f"{number:032x}", "audio_dir": "stems", "overall_gain": 0.2, "stems": stems}
    files = {
        "all_src.mid": b"MThd", "mix.flac": sound(tone(300)), "stems/S00.flac": sound(tone(50 + number)), "stems/S01.flac": sound(tone(900)),
        "stems/S02.flac": sound(tone(440)), "stems/S03.flac": sound(tone(70 + number)), "metadata.yaml": yaml.safe_dump(metadata).encode(),
    }  # fmt: skip
    kept = {name: content for name, content in {**files, **(changes or {})}.items() if content is not None}
    place = "/".join(part for part in (root, split, f"Track{number:05d}") if part)
    return {f"{place}/{name}": content for name, content in kept.items()}


def album() -> list[dict[str, bytes]]:
    """Six songs of three splits and one that is omitted."""
    places = ["train", "omitted", "train", "test", "train", "validation", "train"]
    return [song(number + 1, split) for number, split in enumerate(places)]


def tar(songs: list[dict[str, bytes]], extra: list[tarfile.TarInfo] = (), shuffled: bool = False) -> bytes:
    members = [member for files in songs for member in files.items()]
    if shuffled:
        random.Random(0).shuffle(members)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return file.getvalue()


def baby(numbers=range(1, 11)) -> bytes:
    """BabySlakh: flat, wav, 16 kHz, `audio_rendered` false of every stem although most are there."""
    stems = {
        name: entry(kind, 33, rendered=False) for name, kind in (("S00", "Bass"), ("S01", "Drums"), ("S02", "Bass"))
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in numbers:
            root = f"babyslakh_16k/Track{number:05d}"
            archive.writestr(f"{root}/mix.wav", sound(tone(300), form="WAV"))
            archive.writestr(f"{root}/stems/S00.wav", sound(tone(50 + number), form="WAV"))
            archive.writestr(f"{root}/stems/S01.wav", sound(tone(900), form="WAV"))
            archive.writestr(f"{root}/metadata.yaml", yaml.safe_dump({"stems": stems}))
            archive.writestr(f"__MACOSX/{root}/stems/._S01.wav", b"rubbish")
    return file.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# ---- the server ----------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves `content`. `cuts`: bytes after which the next long answers break off, and `later` what is served from then on;
    `answers`: statuses of the next ones, long or not."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.tag, self.later = b"", True, "", b""
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.asked: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/slakh?download=1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        status, body = server.answers.pop(0) if server.answers else 206, b""
        first, last = asked.removeprefix("bytes=").split("-")
        tag = server.tag or f'"{md5(server.content)}"'
        if status == 206:
            body = server.content[int(first) : int(last) + 1 if last else None]
            if not server.ranges or self.headers["If-Range"] not in (None, tag):
                status, body = 200, server.content
            elif not body:
                status = 416
        self.send_response(status)
        self.send_header("Retry-After", "7")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            end = int(first) + len(body) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(server.content)}")
        self.end_headers()
        if not last and server.cuts:
            body = body[: server.cuts.pop(0)]
            server.content = server.later or server.content
        with suppress(OSError):  # the client had enough
            for place in range(0, len(body), 1 << 16):
                self.wfile.write(body[place : place + (1 << 16)])
                server.sent += len(body[place : place + (1 << 16)])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def naps(monkeypatch):
    """Waiting between two tries takes no time here; the seconds are returned."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def fetch(out: Path, source: str | Path, tracks: int = 10, **options):
    return fetch_slakh(out, tracks=tracks, sample_rate=RATE, source=str(source), progress=False, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix in (".flac", ".yaml")
    }


def rejected(out: Path) -> dict[tuple[str, str], dict]:
    with (out / "rejected.csv").open(newline="") as file:
        return {(row["track"], row["stem"]): row for row in csv.DictReader(file)}


def complete(out: Path) -> list[str]:
    """Tracks that the reader finds, each held to be whole; nothing else may lie about."""
    tracks = read_tracks(out)
    assert all({stem.inst_class for stem in track.stems} == {"Bass", "Drums"} for track in tracks)
    assert {p.name for p in out.iterdir()} <= {"train", "validation", "test", "slakh.json", "rejected.csv", ".partial"}
    return [f"{track.split}/{track.name}" for track in tracks]


ALBUM = [
    "train/Track00001",
    "train/Track00003",
    "test/Track00004",
    "train/Track00005",
    "validation/Track00006",
    "train/Track00007",
]


# ---- what is kept --------------------------------------------------------------------------------------------------------


def test_bass_and_drums_are_kept_mono_at_the_asked_rate_in_their_splits(server, tmp_path):
    stereo = sound(np.stack([tone(51), 0 * tone(51)], axis=1))
    server.content = tar([song(1, changes={"stems/S00.flac": stereo}), *album()[1:]])
    report = fetch(tmp_path / "out", server.url, md5=md5(server.content))
    assert complete(tmp_path / "out") == ALBUM and report.tracks == {"train": 4, "validation": 1, "test": 1}
    track = read_tracks(tmp_path / "out")[0]
    assert [(s.name, s.inst_class) for s in track.stems] == [("S00", "Bass"), ("S01", "Drums"), ("S03", "Bass")]
    assert track.metadata["overall_gain"] == 0.2 and "mix.flac" not in str(files_in(tmp_path / "out").keys())
    info = soundfile.info(track.stems[0].path)
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, round(RATE * SECONDS))
    expected = 0.5 * tone(51, RATE) + tone(71, RATE)  # the basses of a song are summed, channels averaged
    assert np.sqrt(np.square(load_source(track, "Bass", RATE) - expected).mean()) < 0.003
    record = json.loads((tmp_path / "out" / "slakh.json").read_text())
    assert record["source"] == server.url and record["bytes_read"] == record["bytes_total"] == len(server.content)
    assert "as it should be" in record["checked"] and server.asked == ["bytes=0-3", "bytes=0-"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_order_of_the_archive_does_not_matter(tmp_path, shuffled):
    """Metadata may follow the stems, and the files of a song may lie anywhere."""
    (tmp_path / "ordered.tar.gz").write_bytes(tar([dict(sorted(files.items())) for files in album()]))
    (tmp_path / "other.tar.gz").write_bytes(
        tar([dict(sorted(f.items(), reverse=True)) for f in reversed(album())], shuffled=shuffled)
    )
    for name in ("ordered", "other"):
        fetch(tmp_path / name, tmp_path / f"{name}.tar.gz")
    assert complete(tmp_path / "other") == ALBUM and files_in(tmp_path / "ordered") == files_in(tmp_path / "other")


def test_reading_stops_when_there_is_enough(server, tmp_path):
    ballast = {"mix.flac": random.Random(0).randbytes(3 << 20)}
    server.content = tar([*album(), *(song(number, changes=ballast) for number in range(10, 18))])
    report = fetch(tmp_path / "out", server.url, 4, md5="0" * 32)
    assert report.tracks == {"train": 2, "validation": 1, "test": 1} and report.bytes_read < len(server.content) / 4
    assert complete(tmp_path / "out") == [ALBUM[i] for i in (0, 1, 2, 4)]
    assert "MD5 cannot be checked" in report.checked  # and the wrong one that was given does no harm
    assert server.sent < len(server.content)


def test_published_archives_are_those_on_record(tmp_path, monkeypatch):
    """MD5s and names as mirdata and Zenodo have them; another archive by `source` is held against no MD5 but the one that is given."""
    record = {
        "redux": ("4599666", "slakh2100_flac_redux.tar.gz", "f4b71b6c45ac9b506f59788456b3f0c4"),
        "baby": ("4603844", "babyslakh_16k.zip", "ea1797fc57689a0e33c759c17a2292f5"),
    }
    assert VARIANTS.keys() == record.keys()
    read, archive = [], str(tmp_path / "a.tar.gz")
    monkeypatch.setattr(
        fetch_module,
        "_read",
        lambda collection, source, md5, progress: read.append((source, md5)) or Report({"train": 1}, 0),
    )
    for variant, (number, name, digest) in record.items():
        for source, given in ((None, None), (None, "1" * 32), (archive, None), (archive, "1" * 32)):
            fetch_slakh(tmp_path / variant, variant, 1, source=source, md5=given, progress=False)
        published, *others = read[-4:]
        assert published == (f"https://zenodo.org/records/{number}/files/{name}?download=1", digest)
        assert others == [(published[0], "1" * 32), (archive, None), (archive, "1" * 32)]


def test_a_run_goes_on_where_the_last_one_stopped(server, tmp_path):
    server.content = tar(album())
    fetch(tmp_path / "out", server.url, 4)
    before, requests = files_in(tmp_path / "out"), len(server.asked)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.flac")}
    report = fetch(tmp_path / "out", server.url, 4)
    assert report.bytes_read == 0 and len(server.asked) == requests and "already" in report.checked
    report = fetch(tmp_path / "out", server.url, 10)
    assert complete(tmp_path / "out") == ALBUM and report.total == 6
    assert before.items() <= files_in(tmp_path / "out").items() and all(
        p.stat().st_mtime_ns == t for p, t in times.items()
    )


def test_what_waits_on_disk_and_in_memory_is_bounded_by_one_track(tmp_path, monkeypatch):
    """36 MB go by; of one track's stems at most lie in the way, and the archive is nowhere held."""
    ballast = {"mix.flac": random.Random(0).randbytes(3 << 20)}
    songs = [song(number, changes=ballast) for number in range(1, 13)]
    (tmp_path / "a.tar.gz").write_bytes(tar(songs))
    waits, real = [], Sorter._spool

    def spool(self, *args):
        real(self, *args)
        waits.append(size_of(self.partial))

    monkeypatch.setattr(Sorter, "_spool", spool)
    tracemalloc.start()
    report = fetch(tmp_path / "out", tmp_path / "a.tar.gz", 17)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stems = max(sum(len(content) for name, content in files.items() if "/stems/" in name) for files in songs)
    assert report.total == 12 and report.bytes_read > 36 << 20 and 0 < max(waits) <= stems + 2000
    assert held < 40 << 20


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_300_shuffled_tracks_fit_in_ten_gigabytes(tmp_path, monkeypatch):
    """The worst order there is, with every file as large as in Slakh2100 on average, a ten-thousandth of it.

    2100 tracks in three folders, 104 GB, 10 stems each (the 151 test tracks of redux have 1539). What is omitted there is counted here, and
    stems are written as they came; at half their rate they take less.
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
    sorter, on_disk = Sorter(tmp_path / "out", {"classes": ["Bass", "Drums"], "sample_rate": RATE}, 300), []
    sorter.recall("", [])
    for number, (name, content) in enumerate(members):
        sorter.take(Member(name, len(content), io.BytesIO(content)))
        if number % 500 == 0:
            on_disk.append(sum(p.stat().st_size for p in sorter.out.rglob("*.flac")))
        if sorter.enough:
            break
    assert sorter.counts == sorter.quota == {"train": 210, "validation": 30, "test": 60}
    assert 4e9 * small < max(on_disk) < 10e9 * small and 0.5 < number / len(members) < 1


# ---- stems that are of no use --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minislakh(tmp_path_factory):
    return make_minislakh(tmp_path_factory.mktemp("mini") / "songs", 10, 5.0, 3, RATE, workers=1, progress=False)


def test_every_rendered_bass_and_drum_stem_is_kept(minislakh, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(minislakh, "slakh2100_flac_redux")
    report = fetch(tmp_path / "out", tmp_path / "a.tar.gz", 10)
    assert report.tracks == {"train": 7, "validation": 1, "test": 2} and report.rejected == 0
    for found, made in zip(read_tracks(tmp_path / "out"), read_tracks(minislakh), strict=True):
        for kind in ("Bass", "Drums"):
            assert np.array_equal(load_source(found, kind, RATE), load_source(made, kind, RATE))


def test_the_noise_limit_is_far_from_drums_and_from_noise(minislakh):
    drums = [measure(load_source(track, "Drums", RATE), RATE, RATE)[1] for track in read_tracks(minislakh)]
    noise = measure(white(), NATIVE, NATIVE)[1]
    assert max(drums) < NOISE_FLATNESS - 0.3 and noise > NOISE_FLATNESS + 0.1
    level, _ = measure(tone(100, RATE), RATE, RATE)
    assert level > SILENT_DBFS + 30


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no sound at all", "not audio"),
        (b"", "not audio"),
        (sound(np.zeros(NATIVE)), "silent"),
        (sound(1e-4 * tone(100)), "silent"),
        (sound(white()), "white noise"),
        (sound(np.zeros(0), form="WAV"), "0 samples long"),
        (sound(tone(100))[:3000], ""),
    ],
)
def test_faulty_stems_are_left_out_and_listed(tmp_path, content, reason):
    """One of two basses may be missing; without any the song is of no use."""
    songs = [song(1, changes={"stems/S00.flac": content}), song(2, changes={"stems/S01.flac": content}), song(3)]
    (tmp_path / "a.tar.gz").write_bytes(tar(songs))
    report = fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert complete(tmp_path / "out") == ["train/Track00001", "train/Track00003"]
    assert [s.name for s in read_tracks(tmp_path / "out")[0].stems] == ["S01", "S03"]
    listed = rejected(tmp_path / "out")
    assert set(listed) == {("Track00001", "S00"), ("Track00002", "S01"), ("Track00002", "")} and report.rejected == 3
    assert reason in listed["Track00001", "S00"]["reason"]
    assert listed["Track00002", ""]["reason"] == "no usable stem of class Drums"


def test_samples_that_are_not_finite_are_listed(tmp_path):
    bad = sound(np.full(NATIVE, np.nan), form="WAV", subtype="FLOAT")
    (tmp_path / "a.tar.gz").write_bytes(tar([song(1, changes={"stems/S00.flac": None, "stems/S00.wav": bad})]))
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert "not finite" in rejected(tmp_path / "out")["Track00001", "S00"]["reason"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stems: !!python/object/apply:os.system ['touch hacked']", "not plain YAML"),
        ("stems: [", "not plain YAML"),
        ("[" * 5000, "not plain YAML"),
        ("stems: {S00: {inst_class: Bass}}", "no stem of class Drums"),
        ("stems: {../../S00: {inst_class: Bass}}", "no file name"),
        (None, "no metadata.yaml"),
    ],
)
def test_a_track_whose_metadata_is_of_no_use_is_refused_and_listed(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    bad = song(1, changes={"metadata.yaml": text.encode() if text else None})
    (tmp_path / "a.tar.gz").write_bytes(tar([bad, song(2)]))
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert complete(tmp_path / "out") == ["train/Track00002"] and not (tmp_path / "hacked").exists()
    assert reason in rejected(tmp_path / "out")["Track00001", ""]["reason"]


def test_a_stem_that_the_archive_lacks_is_listed(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(
        tar([song(1, changes={"stems/S03.flac": None}), song(2, changes={"stems/S01.flac": None})])
    )
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert complete(tmp_path / "out") == ["train/Track00001"]
    assert {place: row["reason"] for place, row in rejected(tmp_path / "out").items()} == {
        ("Track00001", "S03"): "not in the archive", ("Track00002", "S01"): "not in the archive",
        ("Track00002", ""): "no usable stem of class Drums",
    }  # fmt: skip


def test_an_archive_without_any_usable_song_is_an_error(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar([song(1, changes={"stems/S01.flac": sound(white())})]))
    with pytest.raises(HybridsepError, match="usable stems of Bass and Drums.*rejected.csv"):
        fetch(tmp_path / "out", tmp_path / "a.tar.gz")


# ---- connections ---------------------------------------------------------------------------------------------------------


def test_a_connection_broken_twice_is_taken_up_again(server, tmp_path):
    """Nothing is lost and nothing comes twice."""
    server.content, server.cuts = tar(album()), [40_000, 50_000]
    report = fetch(tmp_path / "out", server.url, md5=md5(server.content))
    assert complete(tmp_path / "out") == ALBUM and "as it should be" in report.checked
    assert server.asked == ["bytes=0-3", "bytes=0-", "bytes=40000-", "bytes=90000-"]
    assert report.bytes_read == len(server.content)
    (tmp_path / "a.tar.gz").write_bytes(server.content)
    fetch(tmp_path / "same", tmp_path / "a.tar.gz")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "same")


def test_a_server_without_ranges_is_refused(server, tmp_path):
    server.content, server.ranges = tar(album()), False
    with pytest.raises(HybridsepError, match="knows no byte ranges; download"):
        fetch(tmp_path / "out", server.url)


@pytest.mark.parametrize("longer", [b"", b"x"])
@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_an_archive_that_changes_between_two_tries_is_refused(server, tmp_path, longer, tag):
    server.content, server.cuts, server.tag = tar(album()), [40_000], tag
    server.later = server.content[:50_000] + b"x" + server.content[50_001:] + longer
    with pytest.raises(HybridsepError, match="changed while it was read|damaged|MD5"):
        fetch(tmp_path / "out", server.url, md5=md5(server.content))


def test_a_server_that_is_busy_is_asked_again_after_the_time_it_asks_for(server, tmp_path, naps):
    server.content, server.answers = tar(album()), [503, 429]
    assert fetch(tmp_path / "out", server.url).total == 6 and naps == [7, 7]


def test_a_missing_archive_is_named_without_a_second_try(server, tmp_path, naps):
    server.answers = [404]
    with pytest.raises(HybridsepError, match=r"http://127.*answers 404 Not Found"):
        fetch(tmp_path / "out", server.url)
    with pytest.raises(HybridsepError, match="no archive .*nowhere.tar.gz"):
        fetch(tmp_path / "out", tmp_path / "nowhere.tar.gz")
    assert naps == []


def lose(server, out: Path, sent: int, *args, **options) -> HybridsepError:
    """Fetch until the connection is lost for good after `sent` bytes of a long answer."""
    server.cuts, server.answers = [sent], [206, 206, *[500] * 7]
    with pytest.raises(HybridsepError, match="lost the connection to .* at byte ") as error:
        fetch(out, server.url, *args, **options)
    assert "\n" not in str(error.value)
    server.answers.clear()
    server.asked.clear()


def test_a_connection_that_never_comes_back_keeps_what_is_there(server, tmp_path, naps):
    server.content = tar(album())
    lose(server, tmp_path / "out", len(server.content) - 9000)
    assert 20 < sum(naps) < 120  # seconds
    kept = [path.parent.name for path in (tmp_path / "out").glob("*/Track*/metadata.yaml")]
    fetch(tmp_path / "out", server.url)
    assert complete(tmp_path / "out") == ALBUM and len(kept) < 6


# ---- damaged archives ----------------------------------------------------------------------------------------------------


def test_an_archive_cut_in_the_middle_of_a_file_keeps_complete_tracks_only(server, tmp_path):
    whole = tar(album())
    server.content = whole[: len(whole) * 2 // 3]
    with pytest.raises(HybridsepError, match="cut off") as error:
        fetch(tmp_path / "out", server.url)
    assert "\n" not in str(error.value)
    kept = complete(tmp_path / "out")
    assert kept and set(kept) < set(ALBUM)
    server.content = whole
    fetch(tmp_path / "out", server.url)
    assert complete(tmp_path / "out") == ALBUM


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_byte_is_noticed(tmp_path, compressed):
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
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(HybridsepError, match="damaged"):
        fetch(tmp_path / "out", tmp_path / "a")


@pytest.mark.parametrize("blocks", [0, 1])
def test_an_archive_that_lacks_its_end_or_is_of_several_streams_is_told_from_a_whole_one(tmp_path, blocks):
    """A tar ends with zeros; one that was cut between two files, then compressed, does not."""
    content = gzip.decompress(tar(album())).rstrip(b"\0")
    content += bytes(-len(content) % 512 + 512 * blocks)
    (tmp_path / "a").write_bytes(gzip.compress(content[:30_000]) + gzip.compress(content[30_000:]))
    if blocks:
        assert "MD5" in fetch(tmp_path / "out", tmp_path / "a").checked
    else:
        with pytest.raises(HybridsepError, match="ends before its end"):
            fetch(tmp_path / "out", tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"<html>no such record</html>", b"\x1f\x8b rubbish", b"PK\x03\x04 rubbish"])
def test_what_is_no_archive_is_named(server, tmp_path, content):
    server.content = content
    with pytest.raises(HybridsepError, match="http://127.*(no archive|answers 416)") as error:
        fetch(tmp_path / "out", server.url)
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*/Track*"))


def test_a_wrong_checksum_is_an_error_when_the_whole_archive_was_read(server, tmp_path):
    server.content = tar(album())
    with pytest.raises(HybridsepError, match=f"its MD5 is {md5(server.content)}, not 1111"):
        fetch(tmp_path / "out", server.url, md5="1" * 32)
    assert complete(tmp_path / "out") == ALBUM


def test_a_zip_with_a_wrong_checksum_is_not_even_opened(server, tmp_path):
    server.content = baby()
    with pytest.raises(HybridsepError, match="MD5"):
        fetch(tmp_path / "out", server.url, variant="baby", md5="1" * 32)
    assert not list((tmp_path / "out").glob("*/Track*")) and not list((tmp_path / "out").rglob("*.zip"))


def dangerous(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (dangerous("slakh2100_flac_redux/train/Track00008/../../../../hacked"), "hacked"),
        (dangerous("../hacked"), "hacked"),
        (dangerous("/tmp/hacked"), "hacked"),
        (dangerous("slakh2100_flac_redux/train/Track00008/stems/S00.flac", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (
            dangerous(
                "slakh2100_flac_redux/train/Track00008/stems/S00.flac", tarfile.LNKTYPE, "../../../../etc/passwd"
            ),
            "link",
        ),
        (dangerous("slakh2100_flac_redux/train/Track00008/stems/S00.flac", tarfile.CHRTYPE), "device"),
    ],
)
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, member, word):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.tar.gz").write_bytes(tar([song(1)], [member]))
    with pytest.raises(HybridsepError, match=f"refused.*{word}"):
        fetch(inside / "out", inside / "a.tar.gz")
    assert complete(inside / "out") == ["train/Track00001"]
    assert {p.name for p in tmp_path.iterdir()} == {"inside"} and {p.name for p in inside.iterdir()} == {
        "a.tar.gz",
        "out",
    }


def test_links_and_paths_out_of_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("babyslakh_16k/Track00001/stems/S00.wav")
    link.external_attr = 0o120777 << 16
    for name in (link, "../hacked", "babyslakh_16k\\..\\..\\hacked", "C:/hacked"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, "/etc/passwd")
        with pytest.raises(HybridsepError, match="refused"):
            fetch(tmp_path / "out", tmp_path / "a.zip", variant="baby")
        assert (tmp_path / "a.zip").is_file()


# ---- disks and interruptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "room"), [("write_bytes", 9), ("open", 20)])
def test_a_full_disk_ends_in_one_line_and_keeps_what_is_there(tmp_path, monkeypatch, method, room):
    """Whatever cannot be written: a stem that waits, a stem of ours, or its metadata."""
    (tmp_path / "a.tar.gz").write_bytes(tar(album()))
    real, written = getattr(Path, method), []

    def limited(self, *args, **options):
        if ".partial" in self.parts and (method != "open" or "w" in str((args, options))):
            written.append(self)
            if len(written) > room:
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, limited)
        with pytest.raises(HybridsepError, match="(?i)no space left") as error:
            fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    kept = complete(tmp_path / "out")
    assert kept and set(kept) < set(ALBUM) and f"{len(kept)} complete tracks are kept" in str(error.value)
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert complete(tmp_path / "out") == ALBUM


def test_a_disk_that_fills_while_a_zip_is_saved_ends_in_one_line_and_the_next_run_goes_on(
    server, tmp_path, monkeypatch
):
    server.content, room, real = baby(), 40_000, Path.open
    monkeypatch.setattr(archive_module, "CHUNK", 1 << 14)

    class Full(io.FileIO):
        def write(self, content):
            fitting = min(len(content), room - self.tell())
            super().write(content[:fitting])
            if fitting < len(content):
                raise OSError(errno.ENOSPC, "No space left on device", self.name)

    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda self, mode="r", *rest, **options: (
                Full(self, mode) if mode == "ab" else real(self, mode, *rest, **options)
            ),
        )
        with pytest.raises(HybridsepError, match="no space left for .*out: 0 complete tracks are kept") as error:
            fetch(tmp_path / "out", server.url, variant="baby")
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*/Track*"))
    report = fetch(tmp_path / "out", server.url, variant="baby", md5=md5(server.content))
    assert server.asked[2:] == ["bytes=0-3", "bytes=32768-"] and "as it should be" in report.checked
    assert len(complete(tmp_path / "out")) == 10 and not (tmp_path / "out" / ".partial").exists()


def test_an_interrupted_run_leaves_no_half_track(tmp_path, monkeypatch):
    (tmp_path / "a.tar.gz").write_bytes(tar(album()))

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "_converted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert not list((tmp_path / "out").glob("*/Track*"))
    left = tmp_path / "out" / ".partial" / "train" / "Track00001"  # as after kill -9
    left.mkdir(parents=True, exist_ok=True)
    (left / "S00.tmp").write_bytes(b"half")
    (left / "S01.flac").write_bytes(b"of an archive that nothing is known of")
    (tmp_path / "out" / ".partial" / "note.json").write_text("{")
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    assert complete(tmp_path / "out") == ALBUM and not (tmp_path / "out" / ".partial").exists()


# ---- a later run goes on in the middle of the stream ---------------------------------------------------------------------


def long_album() -> list[dict[str, bytes]]:
    """The album with mixes that take up room, 9 MB in all."""
    ballast = {"mix.flac": random.Random(0).randbytes(1_500_000)}
    return [
        song(number + 1, split, changes=ballast)
        for number, split in enumerate(("train", "train", "test", "train", "validation", "train"))
    ]


@pytest.mark.parametrize("shuffled", [True, False])
def test_the_next_run_begins_where_the_connection_was_lost(server, tmp_path, shuffled):
    """With everything that waited; a few megabytes come again, for one point of gzip's stream to inflate from."""
    server.content = tar(long_album(), shuffled=shuffled)
    (tmp_path / "a.tar.gz").write_bytes(server.content)
    fetch(tmp_path / "same", tmp_path / "a.tar.gz")
    lose(server, tmp_path / "out", 5_500_000)
    lose(server, tmp_path / "out", 4_500_000)
    report = fetch(tmp_path / "out", server.url, md5=md5(server.content))
    first = int(server.asked[1].removeprefix("bytes=").removesuffix("-"))
    assert first > 4_000_000 and report.bytes_read == len(server.content) - first
    assert "several runs" in report.checked and "checksum is right" in report.checked
    assert files_in(tmp_path / "out") == files_in(tmp_path / "same") and not (tmp_path / "out" / ".partial").exists()


def test_a_killed_run_is_gone_on_with_from_its_last_note(server, tmp_path, monkeypatch):
    """Every member counts here as the last before a kill -9; what a run has closed stays closed in the next."""
    songs = long_album()
    songs[3] = song(4, changes={"stems/S00.flac": b"no sound", "mix.flac": random.Random(1).randbytes(1_500_000)})
    (tmp_path / "a.tar.gz").write_bytes(tar(songs, shuffled=True))
    fetch(tmp_path / "same", tmp_path / "a.tar.gz")
    real, calls = fetch_module.Sorter.take, []

    def mortal(self, member):
        calls.append(member.name)
        if len(calls) % 6 == 0:
            raise SystemError("killed")
        return real(self, member)

    monkeypatch.setattr(fetch_module.Sorter, "take", mortal)
    monkeypatch.setattr(fetch_module.Sorter, "clear", lambda self: None)  # a killed run clears nothing
    monkeypatch.setattr(fetch_module, "NOTE_SECONDS", 0.0)
    for _ in range(40):
        with suppress(SystemError):
            fetch(tmp_path / "out", tmp_path / "a.tar.gz")
            break
    for split in SPLITS:
        assert files_in(tmp_path / "out" / split) == files_in(tmp_path / "same" / split)
    assert rejected(tmp_path / "out") == rejected(tmp_path / "same") and ("Track00004", "S00") in rejected(
        tmp_path / "out"
    )
    assert len(calls) < 2 * len(songs) * 7


def test_more_tracks_asked_for_after_a_lost_connection_begin_anew(server, tmp_path):
    """Those that were passed over before would be missed otherwise."""
    server.content = tar(long_album())
    lose(server, tmp_path / "out", 5_500_000, 1, classes=("Bass", "Drums", "Guitar", "Piano"))
    with pytest.raises(HybridsepError, match="no track"):
        fetch(tmp_path / "out", server.url, 2, classes=("Bass", "Drums", "Guitar", "Piano"))
    assert server.asked[1] == "bytes=0-"


def test_an_archive_that_changed_between_two_runs_is_begun_anew(server, tmp_path):
    server.content = tar(long_album(), shuffled=True)
    lose(server, tmp_path / "out", 5_500_000)
    server.content = tar(long_album()[1:], shuffled=True)
    report = fetch(tmp_path / "out", server.url, md5=md5(server.content))
    assert "as it should be" in report.checked and len(complete(tmp_path / "out")) >= 5


def test_a_damaged_stream_is_noticed_after_a_resumption_too(server, tmp_path):
    """The MD5 of the whole cannot be had then; gzip's own checksum is carried along."""
    content = bytearray(tar(long_album()))
    server.content = bytes(content)
    lose(server, tmp_path / "out", 5_500_000)
    server.tag = f'"{md5(server.content)}"'  # nothing gives the change away
    content[7_000_000] ^= 1
    server.content = bytes(content)
    with pytest.raises(HybridsepError, match="damaged"):
        fetch(tmp_path / "out", server.url)


def test_songs_of_other_settings_or_another_kind_are_not_touched(minislakh, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar(album()))
    fetch(tmp_path / "out", tmp_path / "a.tar.gz")
    with pytest.raises(HybridsepError, match="16000"):
        fetch_slakh(tmp_path / "out", tracks=10, sample_rate=16000, source=str(tmp_path / "a.tar.gz"), progress=False)
    with pytest.raises(HybridsepError, match="other songs"):
        fetch(minislakh, tmp_path / "a.tar.gz")
    (tmp_path / "out" / "slakh.json").write_text("{")
    with pytest.raises(HybridsepError, match="slakh.json is damaged"):
        fetch(tmp_path / "out", tmp_path / "a.tar.gz")


# ---- BabySlakh -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [True, False])
def test_babyslakh_is_split_by_number_and_warned_about(server, tmp_path, remote):
    server.content = baby()
    (tmp_path / "baby.zip").write_bytes(server.content)
    server.cuts = [50_000]
    source = server.url if remote else tmp_path / "baby.zip"
    with pytest.warns(UserWarning, match="16000 Hz: .* ends at 8 kHz"):
        report = fetch_slakh(
            tmp_path / "out",
            "baby",
            300,
            sample_rate=22050,
            source=str(source),
            md5=md5(server.content),
            progress=False,
        )
    assert report.tracks == {"train": 7, "validation": 1, "test": 2} and "as it should be" in report.checked
    assert complete(tmp_path / "out")[6:] == [
        "train/Track00007",
        "validation/Track00008",
        "test/Track00009",
        "test/Track00010",
    ]
    assert soundfile.info(read_tracks(tmp_path / "out")[0].stems[0].path).samplerate == 22050
    assert (tmp_path / "baby.zip").is_file()
    assert server.asked == (["bytes=0-3", "bytes=0-", "bytes=50000-"] if remote else [])


def test_a_download_that_was_killed_is_gone_on_with(server, tmp_path, monkeypatch):
    server.content = baby()
    monkeypatch.setattr(archive_module, "CHUNK", 1 << 14)
    lose(server, tmp_path / "out", 50_000, variant="baby")
    report = fetch(tmp_path / "out", server.url, variant="baby", md5=md5(server.content))
    assert server.asked[1] == "bytes=49152-" and report.bytes_read == len(server.content) - 49152
    assert len(complete(tmp_path / "out")) == 7 + 1 + 2


def test_a_download_that_was_complete_is_not_fetched_again(server, tmp_path, monkeypatch):
    server.content = baby()
    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "_converted", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path / "out", server.url, variant="baby")
    assert fetch(tmp_path / "out", server.url, variant="baby", md5=md5(server.content)).bytes_read == 0
    assert len(complete(tmp_path / "out")) == 10


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_fetches_and_sums_up_in_one_line(server, tmp_path):
    server.content, server.cuts = tar(album()), [40_000]
    status, out, err = run("data", "slakh", tmp_path / "out", "--source", server.url, "--md5", md5(server.content))
    assert (
        status == 0
        and out.startswith(f"6 songs in {tmp_path / 'out'} (4 train, 1 validation, 1 test)")
        and len(out.splitlines()) == 1
    )
    assert "6/300 tracks" in err and "trying again" in err
    assert re.search(r"Slakh: 100%.*\d+(\.\d+)?k/\d+(\.\d+)?k .*B/s, 6/300 tracks", err)
    assert soundfile.info(read_tracks(tmp_path / "out")[0].stems[0].path).samplerate == 22050


def test_the_command_fails_in_one_line(server, tmp_path):
    server.answers = [403]
    status, out, err = run("data", "slakh", tmp_path / "out", "--source", server.url)
    said = lines_of(err, "Slakh")
    assert (
        status == 1
        and out == ""
        and len(said) == 1
        and said[0].startswith("hybridsep: ")
        and "403 Forbidden" in said[0]
    )
    assert run("data", "slakh", tmp_path / "out", "--variant", "mega")[0] == 1
    assert run("data", "slakh", tmp_path / "out", "--tracks", 0)[0] == 2
