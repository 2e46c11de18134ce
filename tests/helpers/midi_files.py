"""Small MIDI files, and the WADs that Freedoom keeps its music in."""

import struct

import symusic


def song_bytes(key=33, bars=8, bass=33, tempo=120, drums=True):
    """A MIDI file: a bass in quarters that climbs, and kick, snare and hats."""
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, tempo))
    parts = [symusic.Track("bass", bass, False)] + [symusic.Track("drums", 0, True)] * drums
    for beat in range(4 * bars):
        parts[0].notes.append(symusic.Note(480 * beat, 400, key + beat % 12, 100))
        for part in parts[1:]:
            part.notes.append(symusic.Note(480 * beat, 100, (36, 38)[beat % 2], 110))
            part.notes.append(symusic.Note(480 * beat + 240, 60, 42, 80))
    for part in parts:
        score.tracks.append(part)
    return score.dumps_midi()


def wad(lumps, beyond=False):
    """A WAD of (name, content); with a last piece of music beyond its end."""
    body, entries = b"", []
    for name, content in lumps:
        entries.append((12 + len(body), len(content), name.encode()))
        body += content
    if beyond:
        entries.append((12 + len(body), 10**9, b"D_BEYOND"))
    table = b"".join(struct.pack("<II8s", *entry) for entry in entries)
    return b"IWAD" + struct.pack("<II", len(entries), 12 + len(body)) + body + table
