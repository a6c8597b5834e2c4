"""The page as its readers meet it: in a browser, by keyboard, on paper."""

import re

import pytest
import story
from story import write_run

from amad.errors import DataError
from amad.records import RunRecords
from amad.report.document import build_document
from amad.report.page import render, write_page
from amad.report.run import read_run

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\"'&amp;"


def page_of(out, *folders, title="runs"):
    return write_page(build_document([read_run(folder.resolve()) for folder in folders], title), out)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two methods, three seeds of one and two of the other, and the teacher's own run."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = str(write_run(folder / "teacher", accuracy=95.0, with_teacher=False, teacher=None) / "model")
    for seed, accuracy in enumerate((80.0, 82.0, 84.0)):
        write_run(folder / f"amad{seed}", accuracy=accuracy, seed=seed, teacher=teacher)
    story.write_examples(folder / "amad0")
    for seed, accuracy in enumerate((70.0, 75.0)):
        write_run(folder / f"alone{seed}", accuracy=accuracy, seed=seed, with_teacher=False, teacher=teacher)
    return page_of(
        folder / "report",
        *(folder / name for name in ("alone0", "alone1", "amad0", "amad1", "amad2", "teacher")),
    )


def opened(browser, page, width=1000):
    browser.look(width)
    browser.open(page)
    return browser


def complaints(browser):
    return [entry["message"] for entry in browser.logs("browser")]


def test_it_opens_from_disk_without_network_or_complaint(browser, page):
    opened(browser, page)
    assert complaints(browser) == []
    assert [address for address in browser.requests() if not address.startswith("data:")] == [
        page.resolve().as_uri()
    ]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.read_text())


def test_seeds_make_one_line_with_an_interval_and_the_table_says_it(browser, page):
    opened(browser, page)
    chart = browser.run(
        "return document.querySelector('[data-chart=score] svg[role=img]').getAttribute('aria-label')"
    )
    # The mean of 80, 82 and 84.
    assert "AMAD kl (3 runs, 95 % interval) ends at 82.0 %." in chart
    assert browser.run("return document.querySelectorAll('[data-chart=score] .band').length") == 2
    rows = browser.run(
        "return [...document.querySelectorAll('table.facts tbody tr')].map((row) => row.innerText)"
    )
    # 82 +- 4.303 * 2 / sqrt(3), and 82 of 95.
    assert any(
        re.search(r"AMAD kl\s+3\s+82\.0 % \(77\.0 to 87\.0\)\s+86\.3 %\s+100,000", row) for row in rows
    )
    # At equal seeds 10 and 7.
    assert "AMAD kl less ground truth alone, at equal seeds: +8.5" in browser.text("#score")


def test_the_frontier_joins_the_models_that_none_beats_in_both(browser, page):
    opened(browser, page)
    drawn = browser.run("return document.querySelector('[data-chart=size] .frontier').getAttribute('d')")
    # The better of two students of one size, and the teacher.
    assert len(re.findall("[ML]", drawn)) == 2
    label = browser.run(
        "return document.querySelector('[data-chart=size] svg[role=img]').getAttribute('aria-label')"
    )
    assert "AMAD kl: 82.0 % at 100,000." in label
    assert "teacher: 95.0 % at 800,000." in label
    assert "Latency was not measured." in browser.text("[data-chart=latency]")


def test_the_arrow_keys_read_a_chart(browser, page):
    opened(browser, page)
    browser.run("document.querySelector('[data-chart=score] svg[role=img]').focus()")
    browser.press("End")
    assert "2,560 examples: ground truth alone" in browser.text("[data-chart=score] .readout")
    browser.press("ArrowLeft")
    # 82 * 3 / 4, the score one evaluation earlier.
    assert "1,920 examples" in browser.text("[data-chart=score] .readout")
    assert "61.5 %" in browser.text("[data-chart=score] .readout")


def test_a_chart_is_also_a_table(browser, page):
    opened(browser, page)
    browser.click("[data-chart=score] summary")
    browser.settle()
    assert "2,560" in browser.text("[data-chart=score] tbody tr:last-child")
    assert "82.0 %" in browser.text("[data-chart=score] tbody tr:last-child")


def heights(browser):
    return browser.run(
        "return [...document.querySelectorAll('#flow-grid figure:first-child .head.s rect')]"
        ".map((rect) => Number(rect.getAttribute('height')))"
    )


def test_the_slider_moves_all_flows_to_another_step(browser, page):
    opened(browser, page)
    assert "step 40 of 40" in browser.text("#flow-slider")
    first, second = heights(browser)
    # Four teacher heads of 19 units give the first student head 0.504 each at step 40, 0.501 at step 10.
    assert (first, second) == (
        pytest.approx(4 * 19 * 0.504, abs=0.01),
        pytest.approx(4 * 19 * 0.496, abs=0.01),
    )
    browser.run("document.getElementById('step').focus()")
    browser.press("Home")
    assert "step 10 of 40" in browser.text("#flow-slider")
    assert heights(browser)[0] == pytest.approx(4 * 19 * 0.501, abs=0.01)
    browser.press("ArrowRight")
    assert "step 20 of 40" in browser.text("#flow-slider")


def test_a_head_is_chosen_by_keyboard_and_its_flows_stand_out(browser, page):
    opened(browser, page)
    browser.run("document.querySelector('#flow-grid svg').focus()")
    browser.press("ArrowDown")
    assert browser.text("#flow-grid .readout") == "T0 teaches S0 50 %, S1 50 %"
    assert (
        browser.run("return document.querySelectorAll('#flow-grid figure:first-child .flow.on').length") == 2
    )
    browser.press("ArrowUp")
    assert browser.text("#flow-grid .readout").startswith("S1 learns from T0 50 %")
    assert (
        browser.run("return document.querySelectorAll('#flow-grid figure:first-child .flow.on').length") == 4
    )
    browser.press("Escape")
    assert browser.text("#flow-grid .readout") == ""


def test_every_control_is_reached_by_the_tab_key(browser, page):
    opened(browser, page)
    reached = []
    for _ in range(60):
        browser.press("Tab")
        reached.append(
            browser.run("const a = document.activeElement; return a.id || a.tagName.toLowerCase()")
        )
    assert reached[0] == "a"
    assert {"run", "step", "svg", "summary"} <= set(reached)


def test_heads_that_nobody_prefers_and_heads_that_are_alike_are_named(browser, page):
    opened(browser, page)
    said = browser.text("#heads")
    assert (
        "2 of 4 student heads are no teacher head's first choice: S1 in encoder.self[0]; S1 in decoder.cross[0]"
        in said
    )
    assert "S0 and S1 in encoder.self[0] (0.970)" in said
    assert "T1 in encoder.self[1] (2.00 nats)" in said


def test_another_run_is_chosen_and_the_rest_of_the_page_is_its_own(browser, page):
    opened(browser, page)
    browser.run("document.getElementById('run').focus()")
    browser.press("Home")
    browser.run("document.getElementById('run').dispatchEvent(new Event('change'))")
    assert "No teacher's attention was compared" in browser.text("#flows")
    assert browser.run("return document.querySelectorAll('[data-chart=losses] svg[role=img]').length") == 1


BRIGHTNESS = """
    const canvas = document.querySelector(arguments[0]), at = arguments[1];
    return canvas.getContext("2d").getImageData(at[0] * canvas.width, at[1] * canvas.height, 1, 1).data[0];
"""


def test_the_image_is_bright_where_a_head_looks_and_dark_elsewhere(browser, page):
    opened(browser, page)
    browser.settle()
    shown = ".looks .look:nth-child(%d) canvas"
    # The teacher's first head looks at the first patch, the student's second at the last.
    assert browser.run(BRIGHTNESS, shown % 1, [0.25, 0.25]) > 250
    assert browser.run(BRIGHTNESS, shown % 1, [0.75, 0.75]) < 80
    assert browser.run(BRIGHTNESS, shown % 3, [0.25, 0.25]) < 80
    assert browser.run(BRIGHTNESS, shown % 3, [0.75, 0.75]) > 250
    # The mixture of half and half looks at both.
    assert browser.run(BRIGHTNESS, shown % 4, [0.25, 0.25]) > 240
    assert browser.run(BRIGHTNESS, shown % 4, [0.75, 0.75]) > 240
    assert browser.run(BRIGHTNESS, shown % 4, [0.25, 0.75]) < 80
    assert "75 % of the attention on the image, most in row 2, column 2 of 2 by 2" in browser.run(
        "return document.querySelector(arguments[0]).getAttribute('aria-label')", shown % 3
    )


def test_another_head_of_the_teacher_is_chosen_with_the_arrow_keys(browser, page):
    opened(browser, page)
    browser.run("document.querySelector('input[name=teacher-head]').focus()")
    browser.press("ArrowLeft")
    assert browser.text(".look.teacher figcaption").startswith("T3 of the teacher")
    assert "cosine 1.00 here, 75 % on the image" in browser.text(".looks .look:nth-child(3)")
    words = browser.run(
        "return [...document.querySelectorAll('.look.teacher .words span')].map((one) => one.textContent)"
    )
    assert words == ["what", "color", "is", "it?"]


def test_answers_of_both_are_counted_and_shown(browser, page):
    opened(browser, page)
    said = browser.text("#answers")
    assert "On 4 examples, evenly spaced over the validation set, both say the same in 50 %." in said
    assert re.search(r"teacher right\s+2 \(50 %\)\s+2 \(50 %\)", said)
    assert "The teacher is better: 2" in said
    assert re.search(r"teacher\s+red ✓\s+student\s+blue ✗", said)


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    opened(browser, page, width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_it_has_one_order_of_headings_and_a_name_for_every_picture(browser, page):
    opened(browser, page)
    levels = browser.run(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert browser.run(
        "return [...document.querySelectorAll('svg[role=img], canvas, img')]"
        ".every((one) => one.getAttribute('aria-label') || one.alt)"
    )
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run(
        "return [...document.querySelectorAll('input, select')].every((one) => one.labels.length)"
    )


def test_names_and_texts_of_a_run_are_never_markup(browser, tmp_path):
    folder = write_run(tmp_path / "<b>run", output=SCRIPT, student={"heads": 2, "config": {SCRIPT: SCRIPT}})
    story.write_examples(folder, text=SCRIPT)
    with RunRecords(folder / "records.jsonl") as records:
        story.log(records, 50)
        records.write(
            "alignment", step=50, stack=SCRIPT, student_layer=0, teacher_layer=1, entropy=1.0, largest=0.5,
            coverage=1.0, collapse=0.0, weights=[[0.5, 0.5]], alike=[[1, 1], [1, 1]], coverage_by_head=[1.0],
        )  # fmt: skip
        records.write("step", step=50, examples=1, loss=1.0, **{f"loss_{SCRIPT}": 1.0})
    page = page_of(tmp_path / "out", folder, title=SCRIPT)
    opened(browser, page)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.settle()
    assert browser.run("return document.title") == f"{SCRIPT} · amad report"
    assert browser.run("return document.querySelectorAll('script, img[src=x], b').length") == 2
    assert browser.run("return document.querySelector('#answers .asked').textContent") == SCRIPT
    assert complaints(browser) == []
    assert SCRIPT in browser.run("return document.querySelector('.kicker').textContent")
    assert SCRIPT in browser.run("return document.getElementById('heads').textContent")


def test_half_a_character_in_a_name_is_no_reason_to_fail(tmp_path):
    folder = write_run(tmp_path / "one", output="\udcff")
    assert page_of(tmp_path / "out", folder).is_file()


def test_a_report_is_written_anew_but_nothing_else_is_overwritten(tmp_path):
    folder = write_run(tmp_path / "one")
    path = page_of(tmp_path / "out", folder)
    assert page_of(tmp_path / "out", folder) == path
    path.write_text("<title>my own page</title>")
    with pytest.raises(DataError, match="is no report of amad"):
        page_of(tmp_path / "out", folder)
    assert path.read_text() == "<title>my own page</title>"
    with pytest.raises(DataError, match="is a file"):
        page_of(path, folder)


def test_what_matters_most_is_there_without_scripts(tmp_path):
    folder = write_run(tmp_path / "one", accuracy=81.5)
    text = render(build_document([read_run(folder.resolve())], "runs"))
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
    assert "AMAD kl: 81.5 % accuracy with 100,000 parameters." in visible
    assert "learning_rate: 0.001" in visible


def test_of_many_methods_the_first_and_the_best_lead_and_one_seed_is_said_once(tmp_path):
    folders = [write_run(tmp_path / "alone", accuracy=70.0, with_teacher=False)]
    for number, accuracy in enumerate((75.0, 72.0, 90.0, 60.0, 80.0)):
        objective = {"attention": {"weight": 1.0 + number, "variant": "kl"}}
        folders.append(write_run(tmp_path / str(number), accuracy=accuracy, objective=objective))
    text = render(build_document([read_run(folder.resolve()) for folder in folders], "runs"))
    visible = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
    assert re.findall(r"(\d\d\.\d) % accuracy with", visible) == ["70.0", "75.0", "90.0", "80.0"]
    assert visible.count("nothing of chance") == 1
    assert "at equal seeds" not in visible


def test_heads_that_teach_nobody_are_said_to_and_shares_sum_to_all(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "weights", lambda step: [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    run = story.write_examples(write_run(tmp_path / "one_to_one"))
    opened(browser, page_of(tmp_path / "report", run))
    assert "Mixture of the student's heads" in browser.text(".looks")
    browser.run("document.querySelector('input[name=teacher-head]').focus()")
    browser.press("ArrowLeft")
    said = browser.text(".looks")
    assert "T3 of the teacher" in said
    assert "teaches nobody" in said
    assert "Mixture" not in said
    assert "learns" not in said
    assert browser.text("#heads").count("50 %") == 4


def test_more_lines_than_dashes_are_told_apart(browser, tmp_path):
    folders = [write_run(tmp_path / f"rate-{n}", training={"learning_rate": n / 1000}) for n in range(1, 12)]
    opened(browser, page_of(tmp_path / "report", *folders))
    strokes = browser.run(
        "return [...document.querySelectorAll('[data-chart=score] svg path.line')].map((line) => "
        "line.getAttribute('style') + line.getAttribute('stroke-dasharray'))"
    )
    assert len(strokes) == 11
    assert len(set(strokes)) == 11
