"""The real book, from nothing to a site, at the profile smoke: what `make book` promises, in a folder of its own."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import smoke_reference
from browser import check_links, check_page, check_weight, page_paths, seconds_to_read, serve
from notebooks import definitions

from hybridsep.core.profiles import METHODS, load_profile
from hybridsep.evaluation.rows import COLUMNS
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.report.build import build_book, execute_notebook

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))
TIME_LIMIT = 240.0  # seconds, on two cores that do nothing else
READING_LIMIT = 2.0  # seconds until the first chapter can be read
RECORDED = ("former_studies",)  # read recorded tables alone, and hold no sounds
NUMBER_WITH_UNIT = re.compile(r"\d\s?(dB|nats|%|ms|min|GB|MB|points|times)\b")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A copy of the book, built with a runs folder of its own; .site, .run, .seconds, .quiet (nothing else computed before)."""
    root = tmp_path_factory.mktemp("smoke")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    # This process counts for one; another worker of the same test run computes beside the book.
    quiet = psutil.cpu_percent(interval=2) < 30 and os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") == "1"
    started = time.perf_counter()
    site = build_book("smoke", root, root / "runs").parent
    seconds = time.perf_counter() - started
    status = json.loads((root / "_build" / "executed" / "status.json").read_text())
    print(f"\nsmoke book: {seconds:.0f} s; " + ", ".join(f"{s['chapter']} {s['seconds']:.0f} s" for s in status))
    return type(
        "Book",
        (),
        {
            "root": root,
            "site": site,
            "run": root / "runs" / "smoke",
            "seconds": seconds,
            "quiet": quiet,
            "status": status,
        },
    )


def test_every_chapter_was_executed_and_the_landing_page_last(book):
    assert sorted(entry["chapter"] for entry in book.status) == CHAPTERS
    assert {entry["status"] for entry in book.status} == {"executed"}
    assert book.status[-1]["chapter"] == "index"
    for chapter in CHAPTERS:
        assert (book.site / "book" / f"{chapter}.html").is_file()


def test_smoke_book_is_quick(book):
    if not book.quiet:
        pytest.skip(f"other programs were computing; it took {book.seconds:.0f} s")
    assert book.seconds <= TIME_LIMIT, f"{book.seconds:.0f} s; chapters: {book.status}"


def test_evaluation_has_every_cell_search_and_protocol(book):
    table = pd.read_csv(book.run / "evaluation.csv")
    assert tuple(table.columns) == COLUMNS
    profile = load_profile("smoke")
    scored = table[(table.metric == "sdr") & table.method.isin(METHODS)]
    found = set(zip(scored.method, scored.search, scored.selection, strict=True))
    assert found == {
        (m, s, p) for m in METHODS for s in profile.evaluation.searches for p in ("oracle", "seed", "blind")
    }
    assert set(table.method) - set(METHODS) >= {"mixture", "codec-plain", "codec-linear", "irm"}
    assert table[table.metric == "sdr"].value.notna().all()


def test_scores_are_those_of_the_stored_reference(book):
    compared = smoke_reference.deviations(smoke_reference.summary(smoke_reference.read(book.run)))
    off = compared[~(compared.share <= 1)]
    assert off.empty, f"rewrite the reference if this was meant to change:\n{off.to_string()}"


def test_every_cell_scores_as_it_did_on_such_a_machine(book):
    if not smoke_reference.stored_here(book.run):
        pytest.skip("the stored scores come from another kind of machine")
    off = smoke_reference.cell_deviations(smoke_reference.cells(smoke_reference.read(book.run)))
    assert off.empty, f"rewrite the reference if this was meant to change:\n{off.to_string()}"


def test_one_changed_cell_does_not_pass_for_the_stored_ones():
    stored = pd.read_csv(smoke_reference.CELLS, keep_default_na=False)
    assert smoke_reference.cell_deviations(stored).empty and len(stored) > 500
    assert (
        len(
            smoke_reference.cell_deviations(
                stored.assign(value=stored.value.where(stored.index != 7, stored.value + 0.001))
            )
        )
        == 1
    )
    assert len(smoke_reference.cell_deviations(stored.drop(7))) == 1


def test_every_chapter_has_something_to_listen_to_and_the_warning_of_a_small_run(book):
    for chapter in set(CHAPTERS) - set(RECORDED):
        page = (book.site / "book" / f"{chapter}.html").read_text(encoding="utf-8")
        assert 'class="hs-stems"' in page or 'class="hs-listening"' in page, chapter
        assert "mean nothing" in page, chapter


def test_prose_shows_numbers_and_not_the_names_they_are_glued_by(book):
    for chapter in CHAPTERS:
        page = (book.site / "book" / f"{chapter}.html").read_text(encoding="utf-8")
        assert "{glue" not in page and "glue:text" not in page, chapter
        assert " nan " not in page and ">nan</td>" not in page, chapter


def test_links_resolve_and_pages_are_light(book):
    check_links(book.site)
    check_weight(book.site)


@pytest.mark.browser
def test_every_page_works_in_a_browser(book, chromium):
    with serve(book.site) as address:
        for path in page_paths(book.site):
            page = chromium.new_page()
            check_page(page, f"{address}/{path}")
            page.close()


@pytest.mark.browser
def test_first_chapter_is_readable_at_once_and_heard_with_one_click(book, chromium):
    with serve(book.site) as address:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        assert min(seconds_to_read(page, f"{address}/book/index.html") for _ in range(3)) <= READING_LIMIT
        page.locator(".hs-stems .hs-play").first.click()
        page.wait_for_function("document.querySelector('.hs-stems').position > 0.05")
        page.close()


def test_every_notebook_can_be_downloaded(book):
    for chapter in CHAPTERS:
        page = (book.site / "book" / f"{chapter}.html").read_text(encoding="utf-8")
        (target,) = set(re.findall(r'href="([^"]+\.ipynb)"[^>]*download', page)) or {None}
        notebook = nbformat.read((book.site / "book" / target).resolve(), as_version=4)
        assert any(cell.cell_type == "code" and cell.execution_count for cell in notebook.cells), chapter


@pytest.mark.browser
def test_menus_of_the_explorer_choose_among_what_was_computed(book, chromium):
    page = chromium.new_page()
    page.goto((book.site / "book" / "explorer.html").as_uri())
    menus = {menu.get_attribute("data-name"): menu for menu in page.query_selector_all(".hs-chooser select")}
    options = lambda name: menus[name].evaluate("m => [...m.options].map((o) => o.text)")  # noqa: E731
    shown = lambda: page.locator(".hs-page:visible").inner_text()  # noqa: E731
    assert list(menus) == ["song", "method", "search"] and len(options("song")) == 2
    seen, searches = set(), {}
    for song in options("song"):
        menus["song"].select_option(song)
        for method in options("method"):
            menus["method"].select_option(method)
            searches[method] = options("search")
            for search in searches[method]:
                menus["search"].select_option(search)
                assert song in shown() and f"{method}, {search}" in shown()
                seen.add(shown())
    # The best method by every search, the others by one.
    assert sorted(map(len, searches.values())) == [1, 1, 1, 4] and len(seen) == 2 * 7
    page.close()


def test_explorer_separates_on_the_spot(book):
    box = definitions("explorer").explorer(Evaluation(Pipeline(load_profile("smoke"), book.root / "runs")), 1)
    controls = {child.description: child for child in box.children if hasattr(child, "description")}
    made = []
    for search in ("particle", "beam"):
        controls["search"].value, controls["particles"].value = search, 3
        controls["Separate"].click()
        made.append(box.children[-1].outputs)
    first, second = (output[0]["data"]["text/html"] for output in made)
    assert "N = 3" in first and "particle filter" in first and "beam" in second
    assert 'class="hs-stems"' in first and first != second and not controls["Separate"].disabled


def test_evaluation_is_told_as_well_where_only_the_best_cell_is_searched_in_all_ways(book, tmp_path, monkeypatch):
    runs = shutil.copytree(book.root / "runs", tmp_path / "runs", copy_function=os.link)
    for name in ("evaluation.csv", "selections.csv"):
        (runs / "smoke" / name).unlink()
    profile = tmp_path / "smoke.yml"
    profile.write_text("base: smoke\nevaluation: {every_cell: false}\n")
    monkeypatch.setenv("HYBRIDSEP_ROOT", str(book.root))
    monkeypatch.setenv("HYBRIDSEP_RUNS", str(runs))
    for chapter in ("06_comparison", "protocols"):
        execute_notebook(ROOT / "book" / f"{chapter}.ipynb", tmp_path / f"{chapter}.ipynb", {"profile": str(profile)})
    table = pd.read_csv(runs / "smoke" / "evaluation.csv")
    best = Evaluation(Pipeline(load_profile("smoke"), runs)).best_method()
    expected = {(method, "particle") for method in METHODS} | {
        (best, search) for search in load_profile("smoke").evaluation.searches
    }
    separated = table[table.method.isin(METHODS)]
    assert set(zip(separated.method, separated.search, strict=True)) == expected


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_sources_hold_no_outputs(chapter):
    notebook = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in tagged] == ['profile = "cpu"']
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_prose_types_no_measured_numbers(chapter):
    notebook = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", cell.source, flags=re.DOTALL)
            assert not NUMBER_WITH_UNIT.search(text), NUMBER_WITH_UNIT.search(text)
