"""A book of two pages goes through the real build and a real browser."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
from browser import check_links, check_page, check_weight, page_paths, serve

from hybridsep.report.build import BookError, build_book, build_html, execute_book, execute_notebook

ROOT = Path(__file__).resolve().parents[2]

SOUNDS = """
import numpy as np
from hybridsep.report.players import chooser, listening_test, player_table, stem_player
rate, t = 22050, np.arange(3 * 22050) / 22050
bass = 0.6 * np.sin(2 * np.pi * 110 * t) * (1 + np.sin(2 * np.pi * 2 * t)) / 2
drums = 0.7 * np.random.default_rng(0).normal(0, 0.3, t.size) * np.exp(-8 * (t % 0.5))
noisy = bass + 0.1 * drums
stems = {"mixture": (bass + drums) / 2, "bass": bass, "drums": drums, "Hybrid bass": noisy, "Hybrid drums": drums * 0.9}
"""
STEMS = """
groups = {"Mixture": ["mixture"], "Truth": ["bass", "drums"], "Hybrid, particle filter": ["Hybrid bass", "Hybrid drums"]}
stem_player(stems, rate, "Test song, seconds 0 to 3", groups, {"Hybrid bass": "7.9 dB"})
"""
LISTENING = """
clips = {f"clip {n}": {"reference": bass, "LASS": noisy, "mixture": stems["mixture"]} for n in (1, 2)}
listening_test(clips, rate, "Which is closer?")
"""
CHOOSER = """
pages = {("one", "a"): "bass", ("one", "b"): "drums", ("two", "b"): "mixture"}
chooser({key: stem_player({name: stems[name]}, rate, name) for key, name in pages.items()}, ("song", "letter"))
"""
TABLE = """
rows = [{"method": name, "bass": bass, "drums": drums, "remark": "fine" if name == "LASS" else None}
        for name in ("LASS", "LQ-VAE", "Hybrid")]
player_table(rows, rate, "Three methods; the noise \\\\(\\\\sigma\\\\) differs.")
"""
LINES = """
import matplotlib.pyplot as plt
figure, axis = plt.subplots()
axis.plot([1, 2])
show(figure, "A line.", "A rising line.")
"""
FIGURE = """
from hybridsep.report.figures import plot_spectrograms, results_table, show, use_style
use_style()
show(plot_spectrograms({k: stems[k] for k in list(stems)[:4]}, rate), "The bass \\\\(x_1\\\\) is low.", "Four spectrograms.")
"""
RESULTS = """
import pandas as pd
table = pd.DataFrame({"method": ["LASS", "Hybrid"], **{f"column number {i} (dB)": [1.5, -2.25] for i in range(9)}})
results_table(table, "A table that is wider than a telephone", "test profile")
"""


def write_chapter(path, *cells, parameters="profile = 'cpu'"):
    notebook = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A chapter\n\nCited: {cite:p}`luo2019convtasnet`, and $\\sqrt{2}$.")
    ]
    if parameters:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    nbformat.write(notebook, path)


def write_book(root, *cells, toc=("chapter",)):
    """A repository root with the project's own configuration and one chapter."""
    shutil.copy(ROOT / "_config.yml", root)
    (root / "book").mkdir()
    shutil.copytree(ROOT / "book" / "assets", root / "book" / "assets")
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    formula = r"p(z_1, z_2 \mid m) \propto \prod_t p_1(z_{1,t} \mid z_{1,<t})\, p_2(z_{2,t} \mid z_{2,<t})\, l(m_t \mid z_{1,t}, z_{2,t})"
    text = f"# A book\n\nInline $e^{{i\\pi}}$ and {{cite:p}}`mancusi2021unsupervised`; see [](chapter.ipynb).\n\n$$\n{formula}\n$$\n"
    (root / "book" / "index.md").write_text(text + "\n```{bibliography}\n```\n", encoding="utf-8")
    chapters = "".join(f"\n  - file: book/{name}" for name in toc)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:{chapters}\n", encoding="utf-8")
    write_chapter(root / "book" / "chapter.ipynb", *cells)
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    progress = "import sys\nprint('noise for', 'the terminal', file=sys.stderr)\nprint('profile is', profile)"
    root = write_book(
        tmp_path_factory.mktemp("book"), progress, SOUNDS, STEMS, TABLE, FIGURE, LINES, RESULTS, LISTENING, CHOOSER
    )
    index = build_book("smoke", root)
    assert index == root / "_build" / "html" / "index.html"
    return index.parent


@pytest.mark.slow
def test_chapter_ran_with_the_profile_and_hides_the_machinery(site):
    page = (site / "book" / "chapter.html").read_text(encoding="utf-8")
    assert "profile is smoke" in page
    assert "noise for the terminal" not in page
    assert "# Parameters" not in page and "profile = 'cpu'" not in page


@pytest.mark.slow
def test_status_lists_each_chapter_with_its_time(site):
    (entry,) = json.loads((site.parent / "executed" / "status.json").read_text(encoding="utf-8"))
    assert entry["chapter"] == "chapter" and entry["status"] == "executed" and entry["seconds"] > 0


@pytest.mark.slow
def test_search_finds_prose_and_neither_code_nor_players(site):
    index = json.loads(
        (site / "searchindex.js").read_text(encoding="utf-8").removeprefix("Search.setIndex(").rstrip(")")
    )
    assert {"cite", "chapter"} & set(index["terms"]) and "inlin" in index["terms"]
    assert not {"stem_play", "stem_player", "linspac", "telephon", "equal"} & set(index["terms"])


@pytest.mark.slow
def test_links_resolve_and_pages_are_light(site):
    check_links(site)
    check_weight(site)


@pytest.mark.slow
def test_every_page_names_an_icon_so_that_no_browser_asks_for_one_that_is_not_there(site):
    for path in page_paths(site):
        page = (site / path).read_text(encoding="utf-8")
        (icon,) = re.findall(r'<link rel="icon" href="([^"]+)"', page)
        assert ((site / path).parent / icon).is_file(), path
    assert 'url=book/index.html"' in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_works_in_a_browser(site, chromium):
    assert "book/chapter.html" in page_paths(site)
    with serve(site) as address:
        for path in page_paths(site):
            page = chromium.new_page()
            check_page(page, f"{address}/{path}")
            page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_pages_play_from_a_file_without_a_server(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    page.locator(".hs-play").first.click()
    page.wait_for_function("document.querySelector('.hs-stems').position > 0.1")
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_groups_start_with_the_first_and_switch_with_one_press(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    player = page.locator(".hs-stems").first
    gains = lambda: player.evaluate("p => p.gains")  # noqa: E731
    assert [name for name, gain in gains().items() if gain] == ["mixture"]
    player.get_by_role("button", name="Play only Truth").click()
    assert [name for name, gain in gains().items() if gain] == ["bass", "drums"]
    player.get_by_role("button", name="Play only Truth").click()
    assert [name for name, gain in gains().items() if gain] == ["mixture"]
    player.get_by_role("button", name="Mute Mixture: mixture").click()
    assert not any(gains().values())
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_a_player_stops_the_others_and_can_be_moved(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    first, second = page.locator(".hs-stems").nth(0), page.locator(".hs-stems").nth(1)
    first.locator(".hs-loop").click()
    first.locator(".hs-play").click()
    page.wait_for_function("document.querySelectorAll('.hs-stems')[0].position > 0.05")
    moved = "p => { const seek = p.querySelector('.hs-seek'); seek.value = 2.5; seek.dispatchEvent(new Event('input')); return p.position }"
    assert first.evaluate(moved) >= 2.5
    page.wait_for_function("document.querySelectorAll('.hs-stems')[0].position < 2")  # looped
    second.locator(".hs-play").click()
    page.wait_for_function("document.querySelectorAll('.hs-stems')[1].position > 0.05")
    assert first.locator(".hs-play").inner_text() == "Play"
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_keys_play_choose_move_and_loop(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    player = page.locator(".hs-stems").first
    heard = lambda: [name for name, gain in player.evaluate("p => p.gains").items() if gain > 0.5]  # noqa: E731
    player.focus()
    page.keyboard.press("2")
    assert heard() == ["bass"]
    page.keyboard.press("3")
    assert heard() == ["bass", "drums"]
    page.keyboard.press("2")
    page.keyboard.press("3")
    page.keyboard.press("Shift+Digit2")
    assert heard() == ["mixture", "bass"]
    page.keyboard.press("ArrowRight")
    assert 0.9 < player.evaluate("p => p.position") < 1.1
    page.keyboard.press("l")
    assert player.locator(".hs-loop").get_attribute("aria-pressed") == "true"
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('.hs-stems').position > 1.1")
    page.keyboard.press(" ")
    assert player.locator(".hs-play").inner_text() == "Play"
    # The player and its first button, no more, are where the tab key stops.
    stops = player.evaluate("p => [p, ...p.querySelectorAll('button,input')].filter((e) => e.tabIndex >= 0).length")
    assert stops == 2
    assert "7.9 dB" in player.inner_text()
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_one_sound_at_a_time_goes_on_where_the_other_was(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    table = page.locator(".hs-stems[data-one]").first
    heard = lambda: [name for name, gain in table.evaluate("p => p.gains").items() if gain > 0.5]  # noqa: E731
    assert (
        heard() == ["bass (LASS)"] and table.locator(".hs-mute").count() == 0 and "remark: fine" in table.inner_text()
    )
    table.locator(".hs-play").click()
    page.wait_for_function("document.querySelector('.hs-stems[data-one]').position > 0.3")
    table.get_by_role("button", name="Hear Hybrid: drums").click()
    page.wait_for_function("document.querySelector('.hs-stems[data-one]').gains['drums (Hybrid)'] > 0.9")
    page.wait_for_function("document.querySelector('.hs-stems[data-one]').gains['bass (LASS)'] < 0.1")
    assert table.evaluate("p => p.position") > 0.3
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_stems_are_downloaded_drawn_and_made_equally_loud(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    player = page.locator(".hs-stems").first
    with page.expect_download() as waiting:
        player.get_by_role("button", name="Download Truth: bass as WAV").click()
    waiting.value.save_as(site / "bass.wav")
    samples, rate = soundfile.read(site / "bass.wav")
    (site / "bass.wav").unlink()
    assert waiting.value.suggested_filename == "bass.wav" and rate == 22050
    loudest = np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()]
    assert len(samples) / rate == pytest.approx(3, abs=0.15) and loudest == pytest.approx(110, abs=3)

    player.locator(".hs-spectra").click()
    player.locator("canvas").first.wait_for(state="visible")
    brightest = (
        player.locator(".hs-stem")
        .nth(1)
        .locator("canvas")
        .evaluate("""canvas => {
      const data = canvas.getContext('2d').getImageData(100, 0, 1, canvas.height).data;
      const light = [...Array(canvas.height).keys()].map((y) => data[4 * y] + data[4 * y + 1] + data[4 * y + 2]);
      return 1 - light.indexOf(Math.max(...light)) / canvas.height;
    }""")
    )
    # 110 Hz on a logarithmic axis from 40 Hz to half the rate.
    assert brightest == pytest.approx(np.log(110 / 40) / np.log(11025 / 40), abs=0.06)

    player.locator(".hs-play").click()
    page.wait_for_function("document.querySelector('.hs-stems').position > 0.05")
    player.locator(".hs-even").click()
    player.focus()
    for key in "23":
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    levels = player.evaluate("p => p.gains")
    # The bass is louder than the drums, so it is turned down and they are not turned up.
    assert 0 < levels["bass"] < levels["drums"] <= 1 and levels["mixture"] < 0.01
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_a_listening_test_is_blind_and_keeps_its_answers(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    test = page.locator(".hs-listening")
    shown = test.locator(".hs-trial").inner_text()
    assert "LASS" not in shown and "mixture" not in shown and "Sound 3" in shown
    test.get_by_role("button", name="Sound 2").click()
    page.wait_for_function("document.querySelector('.hs-listening').sounding")
    for place, value in enumerate(("10", "60", "90")):
        test.locator("input").nth(place).fill(value)
    test.locator(".hs-next").click()
    answers = test.evaluate("t => t.answers")
    assert {a["system"] for a in answers} == {"reference", "LASS", "mixture"}
    assert sorted(a["answer"] for a in answers) == ["10", "60", "90"] and not test.evaluate("t => t.sounding")
    for row in test.locator(".hs-tally tbody tr").all():
        system, count, mean = row.locator("td").all_inner_texts()
        assert count == "1" and mean == next(a["answer"] for a in answers if a["system"] == system)

    test.get_by_role("button", name="ABX").click()
    for _ in range(6):
        test.locator(".hs-vote").first.click()
    votes = [a for a in test.evaluate("t => t.answers") if a["task"] == "abx"]
    assert len(votes) == 6 and {a["answer"] for a in votes} <= {"right", "wrong"}
    with page.expect_download() as waiting:
        test.locator(".hs-csv").click()
    waiting.value.save_as(site / "answers.csv")
    table = pd.read_csv(site / "answers.csv")
    (site / "answers.csv").unlink()
    assert list(table.columns) == ["task", "clip", "system", "answer"] and len(table) == 9
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_menus_offer_what_there_is_and_show_it(site, chromium):
    page = chromium.new_page()
    page.goto((site / "book" / "chapter.html").as_uri())
    chooser = page.locator(".hs-chooser")
    song, letter = chooser.locator("select").all()
    options = lambda menu: menu.evaluate("m => [...m.options].map((o) => o.text)")  # noqa: E731
    title = lambda: chooser.locator(".hs-page:visible .hs-title").inner_text()  # noqa: E731
    assert options(song) == ["one", "two"] and options(letter) == ["a", "b"] and title() == "bass"
    letter.select_option("b")
    assert title() == "drums"
    song.select_option("two")
    assert options(letter) == ["b"] and title() == "mixture"
    page.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme, filtered", [("light", False), ("dark", True)])
def test_dark_systems_get_dark_pages_and_drawings(site, chromium, scheme, filtered):
    page = chromium.new_page(color_scheme=scheme)
    page.goto((site / "book" / "chapter.html").as_uri())
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    filters = page.evaluate("[...document.querySelectorAll('.hs-drawing')].map((e) => getComputedStyle(e).filter)")
    assert len(filters) == 1 and all(("invert" in of) == filtered for of in filters)
    # A spectrogram keeps its colours.
    assert page.evaluate("getComputedStyle(document.querySelector('.hs-picture')).filter") == "none"
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_check_page_notices_what_is_wrong(tmp_path, chromium):
    bad = """<html><body><article class="bd-article"><img src="missing.png"><div class="math">x</div>
    <div style="width:3000px">wide</div><audio src="data:audio/mpeg;base64,AAAA"></audio>
    <script>undefinedFunction()</script><script src="http://192.0.2.1/x.js" async></script></article></body></html>"""
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    page = chromium.new_page()
    page.route("http://192.0.2.1/**", lambda route: route.abort())
    with serve(tmp_path) as address, pytest.raises(AssertionError) as caught:
        check_page(page, f"{address}/bad.html")
    for expected in (
        "alt text",
        "not rendered",
        "too wide",
        "a player not of the book",
        "script error",
        "asks http",
        "console",
    ):
        assert expected in str(caught.value)
    page.close()


@pytest.mark.slow
def test_failing_chapter_is_named_and_keeps_the_last_good_book(tmp_path):
    root = write_book(tmp_path, "x = 1", "y = x\nraise RuntimeError('the drummer left')")
    kept = root / "_build" / "executed" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("last good book", encoding="utf-8")
    with pytest.raises(BookError, match="(?s)chapter chapter.*RuntimeError: the drummer left.*2 raise"):
        build_book("smoke", root)
    assert kept.exists() and not (root / "_build" / "html").exists()
    (entry,) = json.loads((root / "_build" / "executing" / "status.json").read_text(encoding="utf-8"))
    assert entry["status"] == "failed"


def test_chapter_without_parameters_is_refused(tmp_path):
    write_chapter(tmp_path / "bare.ipynb", "x = 1", parameters=None)
    with pytest.raises(BookError, match="chapter bare: no cell is tagged 'parameters'"):
        execute_notebook(tmp_path / "bare.ipynb", tmp_path / "out.ipynb", {"profile": "smoke"})


def test_toc_entry_without_a_file_is_refused(tmp_path):
    root = write_book(tmp_path, toc=("chapter", "forgotten"))
    with pytest.raises(BookError, match="book/forgotten"):
        execute_book("smoke", root)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["", "https://github.com/someone/hybridsep"])
def test_launch_buttons_lead_to_the_notebooks_and_need_an_address(tmp_path, address):
    root = write_book(tmp_path)
    config = (root / "_config.yml").read_text(encoding="utf-8")
    (root / "_config.yml").write_text(re.sub(r'  url: ".*"', f'  url: "{address}"', config), encoding="utf-8")
    shutil.copytree(root / "book", root / "_build" / "executed" / "book")
    shutil.copy(root / "_toc.yml", root / "_build" / "executed")
    page = (build_html(root).parent / "book" / "chapter.html").read_text(encoding="utf-8")
    found = re.findall(r'href="(https://(?:mybinder\.org|colab\.research\.google\.com)[^"]*)"', page)
    colab = "https://colab.research.google.com/github/someone/hybridsep/blob/main/book/chapter.ipynb"
    binder = "https://mybinder.org/v2/gh/someone/hybridsep/main?urlpath=tree/book/chapter.ipynb"
    assert sorted(found) == (sorted([colab, binder]) if address else [])


@pytest.mark.slow
def test_a_site_that_is_too_heavy_is_refused(tmp_path, monkeypatch):
    root = write_book(tmp_path)
    shutil.copytree(root / "book", root / "_build" / "executed" / "book")
    shutil.copy(root / "_toc.yml", root / "_build" / "executed")
    monkeypatch.setattr("hybridsep.report.build.MAX_PAGE_BYTES", 1000)
    with pytest.raises(BookError, match="book/chapter.html"):
        build_html(root)
    assert not (root / "_build" / "html").exists()


@pytest.mark.slow
def test_warning_while_typesetting_stops_the_build(tmp_path, capfd):
    root = write_book(tmp_path)
    with (root / "book" / "index.md").open("a", encoding="utf-8") as file:
        file.write("\nSee {ref}`no-such-label`.\n")
    shutil.copytree(root / "book", root / "_build" / "executed" / "book")
    shutil.copy(root / "_toc.yml", root / "_build" / "executed")
    with pytest.raises(BookError, match="jupyter-book refused"):
        build_html(root)
    assert "no-such-label" in capfd.readouterr().err
    assert not (root / "_build" / "html").exists()
