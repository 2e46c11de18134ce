// The synchronised player: mounts every element .hs-stems that is not mounted yet. With data-one, one sound at a time is heard.
// All players of a page share one AudioContext (browsers allow few), made at the first click because they refuse sound
// before one. Data is decoded from base64 by hand: fetch() of a data address fails on pages opened from a file.
(() => {
  const shared = window.hybridsepAudio ??= {context: null, playing: null};
  const pressed = (button) => button.getAttribute('aria-pressed') === 'true';
  const press = (button, on) => button.setAttribute('aria-pressed', String(on));
  const SIZE = 1024, HOP = 256, LINES = 72, RANGE = 70;
  const MAGMA = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];

  // Power spectrum of SIZE samples by a radix-2 transform in place.
  function spectrum(re, im) {
    for (let i = 1, j = 0; i < SIZE; i++) {
      let bit = SIZE >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) { [re[i], re[j]] = [re[j], re[i]]; }
    }
    for (let half = 1; half < SIZE; half *= 2) {
      for (let k = 0; k < half; k++) {
        const cos = Math.cos(Math.PI * k / half), sin = -Math.sin(Math.PI * k / half);
        for (let i = k; i < SIZE; i += 2 * half) {
          const j = i + half, r = re[j] * cos - im[j] * sin, m = re[j] * sin + im[j] * cos;
          re[j] = re[i] - r; im[j] = im[i] - m; re[i] += r; im[i] += m;
        }
      }
    }
  }

  // Levels in dB of a sound, frames of LINES values from 40 Hz to half the rate on a logarithmic axis.
  function levels(buffer) {
    const samples = buffer.getChannelData(0), frames = [];
    const bins = Array.from({length: LINES + 1}, (_, i) =>
      40 * (buffer.sampleRate / 80) ** (i / LINES) * SIZE / buffer.sampleRate);
    for (let start = 0; start + HOP <= samples.length; start += HOP) {
      const re = new Float32Array(SIZE), im = new Float32Array(SIZE), frame = new Float32Array(LINES);
      for (let i = 0; i < SIZE; i++) {
        re[i] = (samples[start + i - SIZE / 2] || 0) * (0.5 - 0.5 * Math.cos(2 * Math.PI * i / SIZE));
      }
      spectrum(re, im);
      for (let line = 0; line < LINES; line++) {
        let power = 1e-12;
        const last = Math.min(SIZE / 2, Math.max(bins[line] + 1, bins[line + 1]));
        for (let bin = Math.round(bins[line]); bin < last; bin++) power = Math.max(power, re[bin] ** 2 + im[bin] ** 2);
        frame[line] = 10 * Math.log10(power);
      }
      frames.push(frame);
    }
    return frames;
  }

  function paint(lane, frames, loudest) {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [frames.length, LINES];
    const context = canvas.getContext('2d'), image = context.createImageData(frames.length, LINES);
    frames.forEach((frame, x) => frame.forEach((level, line) => {
      const at = Math.max(0, Math.min(0.999, 1 + (level - loudest) / RANGE)) * (MAGMA.length - 1);
      const place = 4 * ((LINES - 1 - line) * frames.length + x), low = MAGMA[Math.floor(at)], high = MAGMA[Math.floor(at) + 1];
      for (let c = 0; c < 3; c++) image.data[place + c] = low[c] + (at % 1) * (high[c] - low[c]);
      image.data[place + 3] = 255;
    }));
    context.putImageData(image, 0, 0);
    lane.append(canvas);
  }

  // A sound as the bytes of a WAV file of 16 bits.
  function wav(buffer) {
    const samples = buffer.getChannelData(0), view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
    const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
    text(0, 'RIFF'); view.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ');
    [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, buffer.sampleRate, 4], [28, 2 * buffer.sampleRate, 4], [32, 2, 2], [34, 16, 2]]
      .forEach(([at, value, size]) => size === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true));
    text(36, 'data'); view.setUint32(40, 2 * samples.length, true);
    samples.forEach((x, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, x)), true));
    return new Blob([view], {type: 'audio/wav'});
  }

  function mount(root) {
    const find = (selector) => root.querySelector(selector);
    const all = (selector) => [...root.querySelectorAll(selector)];
    const seconds = Number(root.dataset.seconds), rate = Number(root.dataset.rate), one = 'one' in root.dataset;
    const rows = all('.hs-stem'), play = find('.hs-play'), loop = find('.hs-loop'), seek = find('.hs-seek');
    const even = find('.hs-even'), spectra = find('.hs-spectra');
    let buffers = null, nodes = null, sources = [], offset = 0, startedAt = 0, playing = false, loudness = null;

    const solo = (row) => row.querySelector('.hs-solo'), mute = (row) => row.querySelector('.hs-mute');
    const audible = (row) => one || rows.some((r) => pressed(solo(r))) ? pressed(solo(row)) : !pressed(mute(row));

    function mix() {
      rows.forEach((row, i) => {
        const on = audible(row);
        row.classList.toggle('hs-off', !on);
        if (!nodes) return;
        const gain = nodes[i].gain, level = on ? (pressed(even) ? loudness[i] : 1) : 0;
        gain.cancelScheduledValues(0);
        // A jump in gain clicks; a stopped context would never finish a fade.
        if (playing) gain.setTargetAtTime(level, shared.context.currentTime, 0.008); else gain.value = level;
      });
      all('.hs-only').forEach((button) => press(button, rows.every(
        (row) => pressed(solo(row)) === (row.dataset.group === button.dataset.group))));
    }

    async function decode() {
      if (buffers) return;
      const decoder = new OfflineAudioContext(1, 1, rate), length = Math.round(seconds * rate);
      buffers = await Promise.all(rows.map(async (row) => {
        const bytes = Uint8Array.from(atob(row.dataset.mp3), (c) => c.charCodeAt(0));
        const sound = await decoder.decodeAudioData(bytes.buffer);
        if (sound.length >= length) return sound;
        // Sounds of one player have one length: those that end sooner are silent then.
        const longer = new AudioBuffer({length, sampleRate: sound.sampleRate});
        longer.copyToChannel(sound.getChannelData(0), 0);
        return longer;
      }));
      const power = buffers.map((buffer) => buffer.getChannelData(0).reduce((sum, x) => sum + x * x, 0));
      const softest = Math.min(...power.filter((p) => p > 1e-6 * Math.max(...power)));
      loudness = power.map((p) => p > softest ? Math.sqrt(softest / p) : 1);
    }

    async function load() {
      const context = shared.context ??= new AudioContext();
      await context.resume();
      await decode();
      if (nodes) return;
      nodes = rows.map(() => new GainNode(context));
      nodes.forEach((node) => node.connect(context.destination));
    }

    function position() {
      if (!playing) return offset;
      const at = offset + shared.context.currentTime - startedAt;
      return pressed(loop) ? at % seconds : Math.min(at, seconds);
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

    const toggle = (button) => { press(button, !pressed(button)); mix(); };
    function choose(row) {
      if (!one) return toggle(solo(row));
      rows.forEach((other) => press(solo(other), other === row));
      mix();
    }
    function turn() {
      const at = position();
      press(loop, !pressed(loop));
      moveTo(at);
    }
    async function showSpectra() {
      press(spectra, !pressed(spectra));
      root.classList.toggle('hs-with-spectra', pressed(spectra));
      if (find('canvas')) return;
      await decode();
      const found = buffers.map(levels), loudest = Math.max(...found.flat().map((frame) => Math.max(...frame)));
      rows.forEach((row, i) => paint(row.querySelector('.hs-lane'), found[i], loudest));
    }
    async function save(row) {
      await decode();
      const link = document.createElement('a');
      link.href = URL.createObjectURL(wav(buffers[rows.indexOf(row)]));
      link.download = row.dataset.stem.replace(/[^\w]+/g, '-') + '.wav';
      link.click();
      URL.revokeObjectURL(link.href);
    }

    play.addEventListener('click', () => playing ? stop() : start());
    loop.addEventListener('click', turn);
    even.addEventListener('click', async () => { await decode(); toggle(even); });
    spectra.addEventListener('click', showSpectra);
    seek.addEventListener('input', () => moveTo(Number(seek.value)));
    rows.forEach((row) => {
      const lane = row.querySelector('.hs-lane');
      lane.addEventListener('click', (event) => {
        const box = lane.getBoundingClientRect();
        moveTo((event.clientX - box.left) / box.width * seconds);
      });
      solo(row).addEventListener('click', () => choose(row));
      mute(row)?.addEventListener('click', () => toggle(mute(row)));
      row.querySelector('.hs-save').addEventListener('click', () => save(row));
    });
    all('.hs-only').forEach((button) => button.addEventListener('click', () => {
      const on = !pressed(button);
      rows.forEach((row) => press(solo(row), on && row.dataset.group === button.dataset.group));
      mix();
    }));
    root.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const row = rows[event.code.replace('Digit', '') - 1];
      if (row && event.shiftKey && mute(row)) toggle(mute(row));
      else if (row) choose(row);
      else if (event.key === ' ' && event.target.tagName !== 'BUTTON') playing ? stop() : start();
      else if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') moveTo(position() + (event.key === 'ArrowLeft' ? -1 : 1));
      else if (event.key === 'l') turn();
      else return;
      event.preventDefault();
    });
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
