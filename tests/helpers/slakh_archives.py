"""Archives as Slakh2100's and BabySlakh's, made on the spot, and a server on loopback that breaks off and lies as it is told."""

import hashlib
import io
import random
import tarfile
import threading
import zipfile
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import soundfile
import yaml

NATIVE, SECONDS = 16000, 2.0


def entry(inst_class: str, program: int, rendered: bool = True, plugin: str | None = "scarbee.nkm") -> dict:
    """One stem as in a real metadata.yaml."""
    return {
        "audio_rendered": rendered, "inst_class": inst_class, "integrated_loudness": -20.1, "is_drum": inst_class == "Drums",
        "midi_program_name": "whatever", "midi_saved": True, "plugin_name": plugin, "program_num": program,
    }  # fmt: skip


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


def tar_of(name: str, kind: bytes, target: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return tar([song(1)], [member])


def zip_of(name: str, link: bool) -> bytes:
    info, file = zipfile.ZipInfo(name), io.BytesIO()
    info.external_attr = 0o120777 << 16 if link else 0
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return file.getvalue()


def baby(numbers=range(1, 11)) -> bytes:
    """BabySlakh: flat, wav, 16 kHz, `audio_rendered` false of every stem although most are there."""
    stems = {name: entry(kind, 33, False) for name, kind in (("S00", "Bass"), ("S01", "Drums"), ("S02", "Bass"))}
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


def ballast(size: int, seed: int = 0) -> dict[str, bytes]:
    """A mix that takes up room."""
    return {"mix.flac": random.Random(seed).randbytes(size)}


def long_album() -> list[dict[str, bytes]]:
    """Six songs, 9 MB."""
    splits = ("train", "train", "test", "train", "validation", "train")
    return [song(number + 1, split, changes=ballast(1_500_000)) for number, split in enumerate(splits)]


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

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield
        self.shutdown()
        thread.join()

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
