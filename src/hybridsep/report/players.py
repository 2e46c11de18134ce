"""Audio players for the book: plain ones, tables of them, and a synchronised player for the stems of one mixture.

Sounds travel as MP3 inside the page, so that a page also plays from a file and without a network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from typing import Any

import numpy as np
import soundfile
from IPython.display import HTML

MP3_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
PEAK = 0.95  # MP3 overshoots its input a little, and full scale is where a loudspeaker clips
WAVEFORM_BINS = 240

_next_id = count(1)


def audio_player(waveform: Any, sample_rate: int, label: str, gain: float | None = None) -> HTML:
    """One plain player.

    Args:
        waveform: samples, array or tensor [T] or [1, T], full scale 1.0.
        sample_rate: Hz, one that MP3 knows.
        label: accessible name, such as "bass, separated by LASS".
        gain: factor applied before encoding; None lowers a sound that would clip and leaves others alone. Sounds
            to be compared in level need one value for all: `common_gain`.

    Raises:
        ValueError: empty, not mono, not finite, or a sample rate outside MP3's list.
    """
    samples = _mono(waveform, label)
    return HTML(_audio_tag(samples, sample_rate, label, common_gain([samples]) if gain is None else gain))


def player_table(rows: Sequence[Mapping[str, Any]], sample_rate: int, caption: str) -> HTML:
    """Table of players at one common gain.

    Args:
        rows: one mapping of column heading to cell for each row. The first cell is text and names the row; of the
            others a string is shown as text, None as a dash, anything else is a waveform [T].
        sample_rate: Hz.
        caption: what to listen for; LaTeX between \\( and \\) is typeset.

    Raises:
        ValueError: no rows, headings that differ between rows, or a waveform that `audio_player` would refuse.
    """
    if not rows:
        raise ValueError("player_table needs at least one row")
    headings = list(rows[0])
    for number, row in enumerate(rows):
        if list(row) != headings:
            raise ValueError(f"row {number} of the player table has columns {list(row)}, the first has {headings}")
        if not isinstance(row[headings[0]], str):
            raise ValueError(f"the first column must be text, row {number} has {type(row[headings[0]]).__name__}")
    cells = [[_table_cell(row, heading, headings[0]) for heading in headings[1:]] for row in rows]
    gain = common_gain([cell for line in cells for cell in line if isinstance(cell, np.ndarray)])

    body = []
    for row, line in zip(rows, cells, strict=True):
        name = row[headings[0]]
        columns = [f'<th scope="row">{escape(name)}</th>']
        for heading, cell in zip(headings[1:], line, strict=True):
            is_sound = isinstance(cell, np.ndarray)
            content = _audio_tag(cell, sample_rate, f"{name}, {heading}", gain) if is_sound else escape(cell)
            columns.append(f'<td data-heading="{escape(heading)}">{content}</td>')
        body.append(f"<tr>{''.join(columns)}</tr>")
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    return HTML(
        f'<style>{_TABLE_STYLE}</style><table class="hs-players">'
        f'<caption class="mathjax_process">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def stem_player(
    stems: Mapping[str, Any], sample_rate: int, title: str, groups: Mapping[str, Sequence[str]] | None = None
) -> HTML:
    """Synchronised player: every stem keeps the same position while stems are soloed and muted.

    Args:
        stems: name to waveform [T], all of one length; all are played at one common gain.
        sample_rate: Hz.
        title: heading of the player and its accessible name.
        groups: heading to names of stems, for example {"mixture": [...], "truth": [...], "Hybrid": [...]}; every stem
            in exactly one group. The first group is heard at the start, the others are muted, and each gets a button
            that plays it alone. Without groups all stems are heard. A name that ends with its group in parentheses, as in
            "bass (Hybrid)", is shown without it.

    Raises:
        ValueError: no stems, lengths that differ, stems missing from the groups, or a waveform that `audio_player`
            would refuse.

    A script may read `element.gains` of the element `.hs-stems`: {stem: gain as the browser applies it}.
    """
    if not stems:
        raise ValueError("stem_player needs at least one stem")
    sounds = {name: _mono(waveform, name) for name, waveform in stems.items()}
    lengths = {name: len(sound) for name, sound in sounds.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"stems of one player must have one length in samples, got {lengths}")
    members = {"": list(sounds)} if groups is None else {name: list(names) for name, names in groups.items()}
    named = [name for names in members.values() for name in names]
    if sorted(named) != sorted(sounds):
        raise ValueError(f"groups must name every stem once: stems {sorted(sounds)}, groups {sorted(named)}")

    # A group sounds together, so its sum must not clip either.
    sums = [np.sum([sounds[name] for name in names], axis=0) for names in members.values() if names]
    gain, tallest = common_gain([*sounds.values(), *sums]), max(np.abs(s).max() for s in sounds.values())
    rows = []
    for position, (group, names) in enumerate(members.items()):
        if group:
            rows.append(_group_row(group))
        rows += [_stem_row(name, group, sounds[name], sample_rate, gain, tallest, position > 0) for name in names]
    return HTML(_stem_frame(title, rows, len(next(iter(sounds.values()))) / sample_rate))


def common_gain(waveforms: Sequence[Any]) -> float:
    """Largest factor, at most 1, that keeps every one of these waveforms under full scale."""
    peak = max((float(np.abs(_mono(waveform, "waveform")).max()) for waveform in waveforms), default=0.0)
    return min(1.0, PEAK / peak) if peak else 1.0


def mp3_bytes(waveform: Any, sample_rate: int, gain: float = 1.0) -> bytes:
    """Encode a mono waveform [T] as MP3 at about 7 kB a second (22 050 Hz)."""
    if sample_rate not in MP3_SAMPLE_RATES:
        raise ValueError(f"MP3 has no sample rate of {sample_rate} Hz; resample to one of {MP3_SAMPLE_RATES}")
    samples = np.clip(_mono(waveform, "waveform") * gain, -1.0, 1.0)
    file = io.BytesIO()
    soundfile.write(
        file,
        samples,
        sample_rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=0.7,
    )
    return file.getvalue()


def _mono(waveform: Any, label: str) -> np.ndarray:
    """Waveform as float32 [T]; refuses what cannot be heard."""
    if hasattr(waveform, "detach"):
        waveform = waveform.detach().cpu().float().numpy()
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 1 or not samples.size:
        raise ValueError(f"{label}: expected mono samples [T] with T > 0, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{label}: {int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite")
    return samples


def _table_cell(row: Mapping[str, Any], heading: str, first: str) -> np.ndarray | str:
    cell = row[heading]
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else _mono(cell, f"{row[first]}, {heading}")


def _audio_tag(samples: np.ndarray, sample_rate: int, label: str, gain: float) -> str:
    data = base64.b64encode(mp3_bytes(samples, sample_rate, gain)).decode("ascii")
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'data-seconds="{len(samples) / sample_rate:.4f}" style="width:100%;min-width:8rem;max-width:22rem" '
        f'src="data:audio/mpeg;base64,{data}"></audio>'
    )


def _outline(samples: np.ndarray, tallest: float) -> str:
    """SVG path around the waveform in a box of WAVEFORM_BINS x 2: the lowest and highest sample of each bin."""
    bins = np.array_split(samples / (tallest or 1.0), min(WAVEFORM_BINS, samples.size))
    width = WAVEFORM_BINS / len(bins)
    # Silence still draws a line.
    top = [f"{i * width:.4g} {1 - max(b.max(), 0.01):.2f}" for i, b in enumerate(bins)]
    bottom = [f"{i * width:.4g} {1 - min(b.min(), -0.01):.2f}" for i, b in reversed(list(enumerate(bins)))]
    return f"M{'L'.join(top + bottom)}Z"


def _group_row(group: str) -> str:
    name = escape(group)
    return (
        f'<div class="hs-group"><strong>{name}</strong>'
        f'<button type="button" class="hs-only" data-group="{name}" aria-pressed="false" '
        f'aria-label="Play only {name}">only this</button></div>'
    )


def _stem_row(
    name: str, group: str, samples: np.ndarray, sample_rate: int, gain: float, tallest: float, muted: bool
) -> str:
    data = base64.b64encode(mp3_bytes(samples, sample_rate, gain)).decode("ascii")
    shown = name.removesuffix(f" ({group})")
    full = escape(f"{group}: {shown}" if group else name)
    return (
        f'<div class="hs-stem" data-stem="{escape(name)}" data-group="{escape(group)}" data-mp3="{data}">'
        f'<span class="hs-name">{escape(shown)}</span>'
        f'<button type="button" class="hs-solo" aria-pressed="false" aria-label="Solo {full}">solo</button>'
        f'<button type="button" class="hs-mute" aria-pressed="{str(muted).lower()}" aria-label="Mute {full}">mute</button>'
        f'<div class="hs-lane"><svg viewBox="0 0 {WAVEFORM_BINS} 2" preserveAspectRatio="none" role="img" '
        f'aria-label="Waveform of {full}"><path d="{_outline(samples, tallest)}"/></svg></div></div>'
    )


def _stem_frame(title: str, rows: list[str], seconds: float) -> str:
    name = f"hs-stems-{next(_next_id)}"
    return (
        f"<style>{_STEM_STYLE}</style>"
        f'<div class="hs-stems" id="{name}" role="group" aria-label="{escape(title)}" data-seconds="{seconds:.4f}">'
        f'<div class="hs-bar"><button type="button" class="hs-play" aria-label="Play {escape(title)}">Play</button>'
        f'<button type="button" class="hs-loop" aria-pressed="false" aria-label="Loop {escape(title)}">loop</button>'
        f'<input type="range" class="hs-seek" min="0" max="{seconds:.4f}" step="0.01" value="0" '
        f'aria-label="Position in {escape(title)}, in seconds"><output class="hs-time">0.0 / {seconds:.1f} s</output></div>'
        f'<div class="hs-title">{escape(title)}</div>{"".join(rows)}</div>'
        f"<script>{_STEM_SCRIPT}</script>"
    )


_TABLE_STYLE = """
.hs-players{border-collapse:collapse;width:100%;margin:1rem 0}
.hs-players caption{caption-side:top;text-align:left;padding:.3rem 0;color:inherit}
.hs-players th,.hs-players td{padding:.3rem .5rem;text-align:left;vertical-align:middle;
 border-bottom:1px solid var(--pst-color-border,#c9c9c9)}
.hs-players tbody th{min-width:7rem}
.hs-players td:has(audio){width:20rem}
.hs-players audio{display:block;height:2.4rem}
@media (max-width:720px){
 .hs-players thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
 .hs-players,.hs-players caption,.hs-players tbody,.hs-players tr,.hs-players th,.hs-players td{display:block}
 .hs-players tbody th{border:0;padding-top:.8rem}
 .hs-players td,.hs-players td:has(audio){border:0;width:auto;display:grid;grid-template-columns:7rem minmax(0,1fr);gap:.5rem;align-items:center}
 .hs-players td::before{content:attr(data-heading)}
}
"""

_STEM_STYLE = """
.hs-stems{--hs-ink:var(--pst-color-text-base,CanvasText);--hs-line:var(--pst-color-border,#c9c9c9);
 --hs-ground:var(--pst-color-surface,Canvas);--hs-accent:var(--pst-color-primary,#005a8c);--hs-at:0;
 color:var(--hs-ink);background:var(--hs-ground);border:1px solid var(--hs-line);border-radius:.5rem;
 padding:.6rem .8rem;margin:1rem 0;max-width:100%;box-sizing:border-box;display:flex;flex-direction:column;gap:.35rem}
.hs-stems button{font:inherit;font-size:.85rem;line-height:1.2;padding:.3rem .6rem;border-radius:.3rem;cursor:pointer;
 color:var(--hs-ink);background:transparent;border:1px solid var(--hs-ink)}
.hs-stems button[aria-pressed=true]{color:var(--hs-ground);background:var(--hs-ink)}
.hs-stems .hs-play{min-width:4.2rem;color:var(--hs-ground);background:var(--hs-accent);border-color:var(--hs-accent)}
.hs-stems button:focus-visible,.hs-stems input:focus-visible{outline:3px solid var(--hs-accent);outline-offset:2px}
.hs-stems .hs-title{order:-1;font-weight:600}
.hs-stems .hs-bar{display:flex;align-items:center;gap:.5rem}
.hs-stems .hs-seek{flex:1;min-width:3rem;accent-color:var(--hs-accent)}
.hs-stems .hs-time{font-variant-numeric:tabular-nums;white-space:nowrap;font-size:.85rem}
.hs-stems .hs-group{display:flex;justify-content:space-between;align-items:center;
 border-top:1px solid var(--hs-line);padding-top:.4rem;margin-top:.2rem}
.hs-stems .hs-stem{display:grid;grid-template-columns:minmax(5rem,9rem) auto auto minmax(0,1fr);gap:.4rem;align-items:center}
.hs-stems .hs-name{overflow-wrap:anywhere}
.hs-stems .hs-lane{position:relative;height:2.6rem;cursor:pointer}
.hs-stems .hs-lane svg{width:100%;height:100%;display:block;fill:var(--hs-accent)}
.hs-stems .hs-stem.hs-off .hs-lane svg{opacity:.3}
.hs-stems .hs-lane::after{content:"";position:absolute;top:0;bottom:0;left:calc(var(--hs-at)*100%);
 border-left:2px solid var(--hs-ink);pointer-events:none}
@media (max-width:600px){
 .hs-stems .hs-stem{grid-template-columns:minmax(0,1fr) auto auto}
 .hs-stems .hs-lane{grid-column:1/-1}
}
"""

# All players of a page share one AudioContext (browsers allow few), made at the first click because they refuse sound
# before one. Data is decoded from base64 by hand: fetch() of a data address fails on pages opened from a file.
_STEM_SCRIPT = """
(() => {
  const shared = window.hybridsepAudio ??= {context: null, playing: null};
  const pressed = (button) => button.getAttribute('aria-pressed') === 'true';
  const press = (button, on) => button.setAttribute('aria-pressed', String(on));

  function mount(root) {
    const find = (selector) => root.querySelector(selector);
    const all = (selector) => [...root.querySelectorAll(selector)];
    const seconds = Number(root.dataset.seconds);
    const rows = all('.hs-stem'), play = find('.hs-play'), loop = find('.hs-loop'), seek = find('.hs-seek');
    let buffers = null, nodes = null, sources = [], offset = 0, startedAt = 0, playing = false;

    const audible = (row) => rows.some((r) => pressed(r.querySelector('.hs-solo')))
      ? pressed(row.querySelector('.hs-solo')) : !pressed(row.querySelector('.hs-mute'));

    function mix() {
      rows.forEach((row, i) => {
        const on = audible(row);
        row.classList.toggle('hs-off', !on);
        if (!nodes) return;
        const gain = nodes[i].gain;
        gain.cancelScheduledValues(0);
        // A jump in gain clicks; a stopped context would never finish a fade.
        if (playing) gain.setTargetAtTime(on ? 1 : 0, shared.context.currentTime, 0.008); else gain.value = on ? 1 : 0;
      });
      all('.hs-only').forEach((button) => press(button, rows.every(
        (row) => pressed(row.querySelector('.hs-solo')) === (row.dataset.group === button.dataset.group))));
    }

    async function load() {
      const context = shared.context ??= new AudioContext();
      await context.resume();
      if (buffers) return;
      buffers = await Promise.all(rows.map((row) => {
        const bytes = Uint8Array.from(atob(row.dataset.mp3), (c) => c.charCodeAt(0));
        return context.decodeAudioData(bytes.buffer);
      }));
      nodes = rows.map(() => new GainNode(context));
      nodes.forEach((node) => node.connect(context.destination));
    }

    function position() {
      if (!playing) return offset;
      const at = offset + shared.context.currentTime - startedAt;
      return loop.getAttribute('aria-pressed') === 'true' ? at % seconds : Math.min(at, seconds);
    }

    function draw() {
      const at = position();
      root.style.setProperty('--hs-at', at / seconds);
      seek.value = at;
      find('.hs-time').textContent = at.toFixed(1) + ' / ' + seconds.toFixed(1) + ' s';
    }

    function tick() {
      if (!playing) return;
      if (!pressed(loop) && position() >= seconds) { stop(); offset = 0; }
      draw();
      requestAnimationFrame(tick);
    }

    function stop() {
      offset = position() % seconds;
      playing = false;
      sources.forEach((source) => source.stop());
      sources = [];
      play.textContent = 'Play';
      if (shared.playing === stop) shared.playing = null;
      // A fade that the end of the sound cut short would stay where it was.
      mix();
      draw();
    }

    async function start() {
      play.disabled = true;
      try { await load(); } catch (error) { play.textContent = 'No sound'; throw error; } finally { play.disabled = false; }
      if (shared.playing && shared.playing !== stop) shared.playing();
      document.querySelectorAll('audio').forEach((audio) => audio.pause());
      shared.playing = stop;
      mix();
      startedAt = shared.context.currentTime;
      sources = buffers.map((buffer, i) => {
        const source = new AudioBufferSourceNode(shared.context, {buffer, loop: pressed(loop), loopEnd: seconds});
        source.connect(nodes[i]);
        source.start(startedAt, offset);
        return source;
      });
      playing = true;
      play.textContent = 'Pause';
      tick();
    }

    function moveTo(at) {
      const resume = playing;
      if (resume) stop();
      offset = Math.max(0, Math.min(at, seconds - 0.01));
      draw();
      if (resume) start();
    }

    play.addEventListener('click', () => playing ? stop() : start());
    loop.addEventListener('click', () => {
      const at = position();
      press(loop, !pressed(loop));
      moveTo(at);
    });
    seek.addEventListener('input', () => moveTo(Number(seek.value)));
    rows.forEach((row) => {
      const lane = row.querySelector('.hs-lane');
      lane.addEventListener('click', (event) => {
        const box = lane.getBoundingClientRect();
        moveTo((event.clientX - box.left) / box.width * seconds);
      });
      row.querySelectorAll('.hs-solo,.hs-mute').forEach((button) => button.addEventListener('click', () => {
        press(button, !pressed(button));
        mix();
      }));
    });
    all('.hs-only').forEach((button) => button.addEventListener('click', () => {
      const on = !pressed(button);
      rows.forEach((row) => press(row.querySelector('.hs-solo'), on && row.dataset.group === button.dataset.group));
      mix();
    }));
    Object.defineProperties(root, {
      gains: {get: () => Object.fromEntries(rows.map((row, i) =>
        [row.dataset.stem, nodes ? nodes[i].gain.value : Number(audible(row))]))},
      position: {get: position},
      bufferSeconds: {get: () => buffers && buffers.map((buffer) => buffer.duration)},
    });
    root.dataset.ready = 'true';
    mix();
  }

  document.querySelectorAll('.hs-stems:not([data-ready])').forEach(mount);
})();
"""
