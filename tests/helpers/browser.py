"""What a reader's browser must find on every page of the book; used by each test that has a built site."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

WIDTHS = (1280, 390)  # a laptop and a telephone, in CSS pixels
MAX_PAGE_BYTES = 4_000_000
DURATION_TOLERANCE = 0.01  # of the expected duration
# Pages with widgets load the widget manager from here; nothing else may leave the served folder.


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free local port; yields its address without a slash at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def page_paths(site: Path) -> list[str]:
    """Addresses of the site's pages relative to it; search and index pages of Sphinx included."""
    pages = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(page.as_posix() for page in pages if "_static" not in page.parts)


def check_page(page, url: str) -> None:
    """Open one page at each width and hold it to what the book promises.

    Args:
        page: playwright page, used for this check alone.
        url: address on a server that `serve` started.

    Raises:
        AssertionError: lists everything that is wrong with the page.
    """
    problems: list[str] = []
    _watch(page, url, problems)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(url, wait_until="load")
        # On a busy machine the script of the formulas comes after the page.
        wanted = "document.querySelector('.bd-article .math') && document.querySelector('script[src*=mathjax]')"
        page.wait_for_function(f"!({wanted}) || window.MathJax?.startup?.promise?.then(() => true)")
        excess, culprits = page.evaluate(_OVERFLOW)
        if excess > 1:
            problems.append(f"{excess} px too wide at {width} px: {culprits}")
    problems += page.evaluate(_MATHEMATICS)
    problems += page.evaluate(_ALTERNATIVES)
    problems += page.evaluate(_NAMES)
    for player in page.query_selector_all(".hs-stems"):
        page.evaluate("player => { player.closest('[hidden]')?.removeAttribute('hidden'); }", player)
        problems += _stem_player_problems(page, player)
    assert not problems, f"{url}:\n  " + "\n  ".join(dict.fromkeys(problems))


def seconds_to_read(page, url: str) -> float:
    """Seconds from the request until the text of a page has been drawn and its structure is complete."""
    page.goto(url, wait_until="load")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    milliseconds = """() => Math.max(performance.getEntriesByName('first-contentful-paint')[0].startTime,
                                     performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd)"""
    return page.evaluate(milliseconds) / 1000


def check_links(site: Path) -> None:
    """Every link and source within the site leads to a file and, where it names one, to an anchor in it."""
    pages = {path: _read_page(site / path) for path in page_paths(site)}
    problems = []
    for path, (targets, _) in pages.items():
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            address, anchor = urldefrag(urljoin(path, target))
            address = unquote(urlsplit(address).path) or path
            if not (site / address).is_file():
                problems.append(f"{path}: {target} leads nowhere")
            elif anchor and address in pages and unquote(anchor) not in pages[address][1]:
                problems.append(f"{path}: {target} names no anchor of {address}")
    assert not problems, "\n".join(sorted(set(problems)))


def check_weight(site: Path, max_site_bytes: int = 60_000_000) -> None:
    """No page over MAX_PAGE_BYTES, the whole site not over `max_site_bytes`."""
    heavy = {path: size for path in page_paths(site) if (size := (site / path).stat().st_size) > MAX_PAGE_BYTES}
    assert not heavy, f"pages over {MAX_PAGE_BYTES} bytes: {heavy}"
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert total <= max_site_bytes, f"the site weighs {total} bytes, more than {max_site_bytes}"


def _watch(page, url: str, problems: list[str]) -> None:
    home = urlsplit(url).netloc

    def on_request(request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != home:
            problems.append(f"asks {request.url[:120]}")

    def on_console(message):
        if message.type == "error":
            problems.append(f"console: {message.text[:300]} ({message.location['url'][:120]})")

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: problems.append(f"script error: {str(error)[:300]}"))


def _stem_player_problems(page, player) -> list[str]:
    """Play for a moment, solo and mute each stem by keyboard and read the gains back."""
    name = player.get_attribute("aria-label")
    problems = []
    expected = float(player.get_attribute("data-seconds"))
    player.query_selector(".hs-play").click()
    try:
        page.wait_for_function("player => player.position > 0.05", arg=player, timeout=10_000)
    except Exception:
        return [f"stem player {name!r} does not advance"]
    if not float(player.evaluate("player => getComputedStyle(player).getPropertyValue('--hs-at')")) > 0:
        problems.append(f"stem player {name!r}: its playhead stays at the start")
    for seconds in player.evaluate("player => player.bufferSeconds"):
        # decodeAudioData may keep the encoder's padding of two MP3 frames or so.
        if not expected * (1 - DURATION_TOLERANCE) <= seconds <= expected * (1 + DURATION_TOLERANCE) + 0.12:
            problems.append(f"stem player {name!r}: a stem of {seconds:.3f} s instead of {expected:.3f} s")
    stems = [row.get_attribute("data-stem") for row in player.query_selector_all(".hs-stem")]
    for row, stem in zip(player.query_selector_all(".hs-stem"), stems, strict=True):
        solo = row.query_selector(".hs-solo")
        solo.focus()
        page.keyboard.press("Enter")
        if not _gains_reach(page, player, {other: float(other == stem) for other in stems}):
            problems.append(f"stem player {name!r}: solo of {stem} leaves {player.evaluate('p => p.gains')}")
        mute = row.query_selector(".hs-mute")
        if mute is None:
            continue  # one sound at a time
        solo.click()
        mute.focus()
        heard = {True: 1.0, False: 0.0}[mute.get_attribute("aria-pressed") == "true"]
        page.keyboard.press("Space")
        if not _gains_reach(page, player, {stem: heard}):
            problems.append(f"stem player {name!r}: mute of {stem} leaves {player.evaluate('p => p.gains')}")
        mute.click()
    if player.query_selector(".hs-play").inner_text() == "Pause":
        player.query_selector(".hs-play").click()
    return problems


def _gains_reach(page, player, expected: dict[str, float]) -> bool:
    try:
        page.wait_for_function(
            "([player, wanted]) => Object.entries(wanted).every(([stem, g]) => Math.abs(player.gains[stem] - g) < 0.02)",
            arg=[player, expected],
            timeout=3_000,
        )
    except Exception:
        return False
    return True


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        self.targets += [values[key] for key in ("href", "src") if values.get(key)]


def _read_page(path: Path) -> tuple[list[str], set[str]]:
    parser = _Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.targets, parser.anchors


_OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const clipped = (e) => {
    for (let p = e; p && p !== document.body; p = p.parentElement)
      if (/auto|scroll|hidden|clip/.test(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  const wide = [...document.querySelectorAll('.bd-article *')]
    .filter((e) => e.getBoundingClientRect().right > width + 1 && !clipped(e)).slice(0, 3)
    .map((e) => e.tagName.toLowerCase() + '.' + e.className);
  return [document.documentElement.scrollWidth - width, wide.join(', ')];
}"""

_MATHEMATICS = """() => {
  const formulas = [...document.querySelectorAll('.bd-article .math')];
  const bare = formulas.filter((e) => !e.querySelector('mjx-container svg'));
  const wrong = [...document.querySelectorAll('mjx-container [data-mjx-error], mjx-merror')];
  return [...bare.map((e) => 'formula not rendered: ' + e.textContent.slice(0, 80)),
          ...wrong.map((e) => 'formula with an error: ' + e.textContent.slice(0, 80))];
}"""

_ALTERNATIVES = """() => [
  ...[...document.querySelectorAll('.bd-article img')].filter((e) => !(e.alt || '').trim())
    .map((e) => 'picture without alt text: ' + e.src.slice(0, 60)),
  ...[...document.querySelectorAll('audio')].map(() => 'a player not of the book'),
]"""

# Everything a keyboard reaches in a stem player has a name of its own.
_NAMES = """() => [...document.querySelectorAll('.hs-stems')].flatMap((player) => {
  const names = [...player.querySelectorAll('button,input,.hs-lane [role=img]')].map((e) => (e.getAttribute('aria-label') || '').trim());
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  return [...names.filter((name) => !name).map(() => 'stem player: a control without a name'),
          ...twice.map((name) => 'stem player: two controls named ' + name)];
})"""
