"""The comparison's page as a reader has it: opened from a file in a real browser, without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import axe_playwright_python
import pytest

from helpers.browser import CHROMIUM, WITHOUT, Opened, opened
from helpers.many_runs import many
from helpers.synthetic import config, everything, report_of
from pipeline.compare import main
from stages.common.files import read_json, write_json

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)
NASTY = '<img src=x onerror=alert(1)> $x^{$ "quo\'te" </script><script>alert(2)</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    many(root / "artifacts", 27)
    main([f"artifact_root={root / 'artifacts'}", f"output={root / 'compare.html'}"])
    return root / "compare.html"


@pytest.fixture
def reader(page: Path) -> Iterator[Opened]:
    with opened(page) as found:
        yield found
        assert not found.said, "the console stays silent"
        assert found.asked == [page.as_uri()], "the page asks for nothing but itself"


def shown(reader: Opened) -> list[str]:
    """Return the first cells of the table's visible rows, in order."""
    return [cell.inner_text() for cell in reader.page.locator(".runs tbody tr:visible th").all()]


def column(reader: Opened, name: str) -> list[str]:
    place = [head.inner_text() for head in reader.page.locator(".runs thead th").all()].index(name)
    return [
        row.inner_text().splitlines()[0]
        for row in reader.page.locator(f".runs tbody tr td:nth-child({place + 1})").all()
    ]


def lines_drawn(reader: Opened) -> int:
    """Return how many curves the first chart has."""
    return int(reader.page.locator("section.curves .chart g.mark-line path").count())


def test_every_chart_is_drawn(reader: Opened) -> None:
    kinds = reader.page.eval_on_selector_all("section.charts", "found => found.map(one => one.classList[1])")
    assert kinds == ["curves", "ranks", "ranks", "ranks", "ratios", "costs", "kept"]
    assert reader.page.locator(".chart").count() == reader.page.locator(".chart svg").count() == 16
    assert lines_drawn(reader) == 27
    assert reader.page.locator("section.kept .chart").first.locator("g.mark-rect path").count() == 3 * 6


def test_a_click_on_the_legend_hides_a_curve_and_shows_it_again(reader: Opened) -> None:
    entry = reader.page.locator("section.curves .legend button").nth(2)
    for pressed, left in (("false", 26), ("true", 27)):
        entry.click()
        reader.page.wait_for_timeout(300)
        assert entry.get_attribute("aria-pressed") == pressed
        assert lines_drawn(reader) == left


def test_the_legend_is_worked_by_keyboard_too(reader: Opened) -> None:
    reader.page.locator("section.curves .legend .all").focus()
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_timeout(300)
    assert lines_drawn(reader) == 0


def test_a_reader_chooses_the_measure_and_what_it_is_drawn_over(reader: Opened) -> None:
    def labels() -> str:
        return str(reader.page.locator("section.curves .chart svg").text_content())

    before = labels()
    reader.page.get_by_label("Show").first.select_option("validation perplexity")
    reader.page.wait_for_timeout(300)
    assert labels() != before
    before = labels()
    reader.page.get_by_label("over").first.select_option("minutes")
    reader.page.wait_for_timeout(300)
    assert labels() != before
    assert lines_drawn(reader) == 27


def test_hovering_names_the_run(reader: Opened) -> None:
    chart = reader.page.locator("section.curves .chart")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    reader.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = reader.page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert re.search(r"run\s+\d+ · llmpruner", tip.inner_text())


def test_a_click_on_a_head_sorts_and_another_one_turns_it_round(reader: Opened) -> None:
    head = reader.page.locator(".runs thead th", has_text=re.compile("^held-out perplexity"))
    for order in ("ascending", "descending"):
        head.get_by_role("button").click()
        found = [float(value) for value in column(reader, "held-out perplexity")]
        assert found == sorted(found, reverse=order == "descending")
        assert head.get_attribute("aria-sort") == order


def test_search_and_filters_leave_the_runs_that_are_asked_for(reader: Opened) -> None:
    reader.page.get_by_label("Search").fill("rora r64")
    assert len(shown(reader)) == 3
    reader.page.get_by_label("Search").fill("")
    reader.page.locator(".tools").get_by_label("adapter").select_option("lora r16 tuned")
    assert len(shown(reader)) == 3
    assert reader.page.locator("output").inner_text() == "3 of 27 runs"


def test_columns_that_are_alike_fold_away_until_they_are_asked_for(reader: Opened) -> None:
    heads = reader.page.locator(".runs thead th:visible")
    names = heads.all_inner_texts()
    assert "model" not in names
    assert names[:3] == ["run", "removed", "adapter"]
    reader.page.get_by_label("columns that are alike").check()
    assert "model" in heads.all_inner_texts()


def test_a_row_opens_its_runs_report(reader: Opened, page: Path) -> None:
    reader.page.locator(".runs tbody tr").first.locator("td").nth(2).click()
    reader.page.wait_for_url("**/report.html")
    assert reader.page.title() == "One run"
    reader.page.go_back()
    reader.page.wait_for_load_state()
    reader.asked[:] = reader.asked[:1]


@pytest.mark.parametrize(("width", "theme"), [(360, "light"), (360, "dark"), (1280, "dark"), (3840, "light")])
def test_no_width_makes_the_page_scroll_sideways_and_nothing_keeps_a_reader_out(
    page: Path, width: int, theme: str
) -> None:
    with opened(page, width=width, theme=theme) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not barriers(found)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_runs_own_report_is_as_narrow_and_as_open(tmp_path: Path, theme: str) -> None:
    report_of(tmp_path / "run", config(), everything(tmp_path / "inputs", windows=4, repetition=0.3))
    with opened(tmp_path / "run" / "report.html", width=360, theme=theme) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not barriers(found)
        assert not found.said


def barriers(found: Opened) -> list[tuple[str, str]]:
    """Return the violations of level serious or worse that axe-core finds, each with the first place of it."""
    found.page.evaluate(Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
    violations = found.page.evaluate("axe.run().then(found => found.violations)")
    serious = [one for one in violations if one["impact"] in ("serious", "critical")]
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in serious]


def test_a_dark_page_prints_dark_ink_on_white_paper_with_the_whole_table(page: Path) -> None:
    with opened(page, theme="dark") as found:
        found.page.emulate_media(media="print")
        colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        assert found.page.evaluate(colours) == ["rgb(34, 39, 44)", "rgb(255, 255, 255)"]
        assert found.page.evaluate("getComputedStyle(document.querySelector('.runs')).overflowY") == "visible"
        assert found.page.pdf(format="A4", landscape=True).startswith(b"%PDF")


def test_names_that_are_code_are_shown_and_never_run(tmp_path: Path) -> None:
    many(tmp_path / "artifacts", 3, model=NASTY, data=NASTY, prune=NASTY)
    main([f"artifact_root={tmp_path / 'artifacts'}", f"output={tmp_path / 'compare.html'}"])
    with opened(tmp_path / "compare.html") as found:
        assert NASTY in found.page.locator("section.curves .legend").inner_text()
        assert not found.page.locator("img").count()
        box = found.page.locator("section.curves .chart").bounding_box()
        found.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        found.page.locator("#vg-tooltip-element").wait_for(state="visible")
        assert not found.page.locator("#vg-tooltip-element img").count()
        assert not found.said


def test_a_chart_that_is_empty_for_some_runs_keeps_no_reader_out(tmp_path: Path) -> None:
    """Half of the runs were judged on no text, the other half's cost was not measured: they are shown by turns."""
    root = many(tmp_path / "artifacts", 12)
    for place, path in enumerate(sorted((root / "report").glob("*/report.json"))):
        write_json(path, read_json(path) | ({"texts": None} if place < 6 else {"cost": {}}))
    main([f"artifact_root={root}", f"output={tmp_path / 'compare.html'}"])
    with opened(tmp_path / "compare.html") as found:
        charts = found.page.locator("section.costs .chart")

        def dots() -> list[int]:
            return [chart.locator("g.mark-symbol path").count() for chart in charts.all()]

        assert dots() == [6, 0, 0]
        assert not barriers(found)
        found.page.locator("section.costs select[data-parameter=measure]").select_option("accuracy")
        found.page.locator("section.costs select[data-parameter=group]").select_option(index=1)
        found.page.wait_for_timeout(300)
        assert dots() == [6, 6, 6]
        assert not found.said


def test_a_hundred_runs_take_seconds_and_less_than_six_megabytes(tmp_path: Path) -> None:
    many(tmp_path / "artifacts", 108, seeds=4)
    begun = time.perf_counter()
    main([f"artifact_root={tmp_path / 'artifacts'}", f"output={tmp_path / 'compare.html'}"])
    with opened(tmp_path / "compare.html") as found:
        assert found.page.locator(".runs tbody tr").count() == 108
        assert lines_drawn(found) == 27, "runs that differ in nothing but seeds are one line"
        assert found.page.locator("section.curves .chart g.mark-area path").count() == 27, "with a band"
    assert time.perf_counter() - begun < 60
    assert (tmp_path / "compare.html").stat().st_size < 6_000_000
