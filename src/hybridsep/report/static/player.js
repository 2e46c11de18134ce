// The synchronised player of stems: mounts every element .hs-stems that is not mounted yet.
// All players of a page share one AudioContext (browsers allow few), made at the first click because they refuse sound
// before one. Data is decoded from base64 by hand: fetch() of a data address fails on pages opened from a file.
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
