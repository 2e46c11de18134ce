// A blind listening test: mounts every element .hs-listening that is not mounted yet. Nothing leaves the page.
// Rating, after MUSHRA (ITU-R BS.1534): an open reference, and unnamed sounds in random order, the reference and the mixture among them.
// ABX: which of two named sounds is X? By guessing half of the answers are right.
(() => {
  const shared = window.hybridsepAudio ??= {context: null, playing: null};
  const shuffled = (list) => list.map((item) => [Math.random(), item]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
  const chanceOf = (right, n) => {
    // Chance of as many right answers or more by guessing.
    let sum = 0, term = 1;
    for (let k = 0; k <= n; k++) { if (k >= right) sum += term; term *= (n - k) / (k + 1); }
    return sum / 2 ** n;
  };
  const element = (tag, text, given = {}) => Object.assign(document.createElement(tag), {textContent: text}, given);

  function mount(root) {
    const find = (selector) => root.querySelector(selector);
    const clips = JSON.parse(find('.hs-clips').textContent), rate = Number(root.dataset.rate);
    const answers = [], decoded = new Map();
    let task = 'rating', trial = null, queue = [], source = null, startedAt = 0;

    async function buffer(mp3) {
      if (!decoded.has(mp3)) {
        const bytes = Uint8Array.from(atob(mp3), (c) => c.charCodeAt(0));
        decoded.set(mp3, await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer));
      }
      return decoded.get(mp3);
    }

    function stop() {
      source?.stop();
      source = null;
      root.querySelectorAll('.hs-hear').forEach((button) => button.setAttribute('aria-pressed', 'false'));
      if (shared.playing === stop) shared.playing = null;
    }

    // Sounds go round, and another one goes on at the place where the one before was.
    async function hear(mp3, button) {
      const context = shared.context ??= new AudioContext();
      await context.resume();
      const sound = await buffer(mp3), at = source ? (context.currentTime - startedAt) % sound.duration : 0;
      if (shared.playing) shared.playing();
      shared.playing = stop;
      source = new AudioBufferSourceNode(context, {buffer: sound, loop: true});
      source.connect(context.destination);
      startedAt = context.currentTime - at;
      source.start(0, at);
      button.setAttribute('aria-pressed', 'true');
    }

    function hearing(label, mp3) {
      const button = element('button', label, {type: 'button', className: 'hs-hear'});
      button.setAttribute('aria-pressed', 'false');
      button.addEventListener('click', () => hear(mp3, button));
      return button;
    }

    function rating(clip) {
      const names = shuffled(Object.keys(clip.sounds)), sliders = {};
      const rows = names.map((name, i) => {
        const row = element('div', '', {className: 'hs-choice'}), shown = element('output', '50');
        const slider = element('input', '', {type: 'range', min: 0, max: 100, value: 50});
        slider.setAttribute('aria-label', `Rating of sound ${i + 1}`);
        slider.addEventListener('input', () => { shown.textContent = slider.value; });
        sliders[name] = slider;
        row.append(hearing(`Sound ${i + 1}`, clip.sounds[name]), slider, shown);
        return row;
      });
      const reference = element('div', '', {className: 'hs-bar'});
      reference.append(hearing('Reference', clip.sounds[clip.reference]));
      find('.hs-trial').replaceChildren(reference, ...rows);
      return () => names.forEach((name) => answers.push({task, clip: clip.name, system: name, answer: sliders[name].value}));
    }

    function abx(clip) {
      const [a, b] = shuffled(Object.keys(clip.sounds)).slice(0, 2), x = Math.random() < 0.5 ? a : b;
      const bar = element('div', '', {className: 'hs-bar'});
      bar.append(hearing(`A: ${a}`, clip.sounds[a]), hearing(`B: ${b}`, clip.sounds[b]), hearing('X', clip.sounds[x]));
      const votes = element('div', '', {className: 'hs-bar'});
      [a, b].forEach((name, i) => {
        const vote = element('button', `X is ${'AB'[i]}`, {type: 'button', className: 'hs-vote'});
        vote.addEventListener('click', () => {
          answers.push({task, clip: clip.name, system: `${a} / ${b}`, answer: name === x ? 'right' : 'wrong'});
          advance(false);
        });
        votes.append(vote);
      });
      find('.hs-trial').replaceChildren(bar, votes);
      return null;
    }

    function advance(keep = true) {
      stop();
      if (keep && trial) trial();
      if (!queue.length) queue = shuffled(clips);
      const clip = queue.pop();
      find('.hs-place').textContent = `${clip.name}; ${queue.length} more clips in this round`;
      find('.hs-ask').textContent = task === 'rating'
        ? `How close is each sound to the reference, from 0 to 100? One of them is the reference itself. Then press Next.`
        : `Which of the two is X?`;
      trial = task === 'rating' ? rating(clip) : abx(clip);
      tally();
    }

    function tally() {
      const mine = answers.filter((answer) => answer.task === task), of = Map.groupBy
        ? Map.groupBy(mine, (answer) => answer.system)
        : mine.reduce((map, answer) => map.set(answer.system, [...(map.get(answer.system) ?? []), answer]), new Map());
      const head = task === 'rating' ? ['sound', 'ratings', 'mean'] : ['pair', 'right', 'by guessing'];
      find('.hs-tally tr').replaceChildren(...head.map((text) => element('th', text, {scope: 'col'})));
      find('.hs-tally tbody').replaceChildren(...[...of].map(([system, given]) => {
        const right = given.filter((answer) => answer.answer === 'right').length;
        const mean = given.reduce((sum, answer) => sum + Number(answer.answer), 0) / given.length;
        const cells = task === 'rating' ? [system, given.length, mean.toFixed(0)]
          : [system, `${right} of ${given.length}`, chanceOf(right, given.length).toFixed(2)];
        const row = element('tr', '');
        row.append(...cells.map((text) => element('td', text)));
        return row;
      }));
    }

    function csv() {
      const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
      const lines = [['task', 'clip', 'system', 'answer'], ...answers.map((a) => [a.task, a.clip, a.system, a.answer])];
      return lines.map((line) => line.map(quoted).join(',') + '\n').join('');
    }

    root.querySelectorAll('.hs-task').forEach((button) => button.addEventListener('click', () => {
      task = button.dataset.task;
      root.querySelectorAll('.hs-task').forEach((b) => b.setAttribute('aria-pressed', String(b === button)));
      [trial, queue] = [null, []];
      advance(false);
    }));
    find('.hs-next').addEventListener('click', () => advance());
    find('.hs-stop').addEventListener('click', stop);
    find('.hs-csv').addEventListener('click', () => {
      const link = element('a', '', {download: 'listening.csv', href: URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}))});
      link.click();
      URL.revokeObjectURL(link.href);
    });
    Object.defineProperties(root, {answers: {get: () => answers}, csv: {get: csv}, sounding: {get: () => source !== null}});
    root.dataset.ready = 'true';
    advance(false);
  }

  document.querySelectorAll('.hs-listening:not([data-ready])').forEach(mount);
})();
