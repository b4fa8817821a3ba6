"""report.html in a real browser: what it shows is what the JSON holds. Needs Debian's chromium and chromium-driver."""

import json
import re
import shutil

import pytest
from profiled import experiment, scored

from espnet_mla.measure import compare

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver on the PATH")


@pytest.fixture
def output(tmp_path, figures):
    """The files of a comparison of three models and one that has no figures."""
    for name, change in {
        "mha": {"encoder__2__seconds": 3.0}, "gqa": {"encoder__2__seconds": 20.0},
        "mla": {"encoder__2__seconds": 1.0, "scores__decode_asr__test_clean": scored([0, 0, 0, 1], [5, 6, 7, 8])},
    }.items():  # fmt: skip
        experiment(tmp_path, figures, name, **change)
    experiment(tmp_path, None, "untouched")
    places = [str(tmp_path / "exp" / name) for name in ("mha", "gqa", "mla", "untouched")]
    assert compare.main([*places, "--output", str(tmp_path / "results")]) == 0
    return tmp_path / "results"


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_it_names_nothing_outside_itself(output):
    text = (output / "report.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", text)
    assert not re.findall(r"@import|url\((?!#)", text)


def test_a_name_cannot_break_out_of_its_data(tmp_path, figures):
    place = experiment(tmp_path, figures, "A", model__note="</script><b>bold</b>")
    assert compare.main([str(place), "--output", str(tmp_path / "results")]) == 0
    text = (tmp_path / "results/report.html").read_text()
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)["notes"] == ["</script><b>bold</b>"]


@needs_browser
def test_tables_show_and_sort_what_the_json_holds(output, browser):
    content = json.loads((output / "comparison.json").read_text())
    browser.get((output / "report.html").as_uri())
    assert browser.get_log("browser") == []
    for row in content["rows"]:
        for key, figure in row["figures"].items():
            cell = browser.find_element("css selector", f'tr[data-model="{row["model"]}"] td[data-key="{key}"]')
            assert cell.text == figure["shown"]
            assert ("best" in cell.get_attribute("class")) == figure["best"]
            assert cell.get_attribute("title") == "\n".join(figure["missing"])

    def order() -> list[str]:
        lines = browser.find_elements("css selector", 'table[data-table="Speech of 2 s"] tbody tr')
        return [line.get_attribute("data-model") for line in lines]

    head = browser.find_element("css selector", 'th[data-key="encoder_seconds.2"]')
    assert order() == ["mha", "gqa", "mla", "untouched"]
    head.click()
    assert order() == ["mla", "mha", "gqa", "untouched"]  # by the number, 20 after 3; what is missing last
    head.click()
    assert order() == ["gqa", "mha", "mla", "untouched"]
    assert head.get_attribute("aria-sort") == "descending"
    browser.find_element("css selector", 'table[data-table="Speech of 2 s"] th[data-key="model"]').click()
    assert order() == ["gqa", "mha", "mla", "untouched"]


@needs_browser
def test_pointing_at_a_point_of_a_plot_shows_its_figures(output, browser):
    from selenium.webdriver import ActionChains

    content = json.loads((output / "comparison.json").read_text())
    titles = {column["title"]: column["key"] for column in content["columns"] if not column["key"].endswith(".1")}
    figures = {row["model"]: row["figures"] for row in content["rows"]}
    browser.get((output / "report.html").as_uri())
    tip = browser.find_element("id", "tip")
    assert not tip.is_displayed()
    shown = {}
    for plot in ("wer_against_kv_bytes", "training_time"):
        for place in range(3):
            # The middle of the point itself: a bar's group holds nothing else.
            mark = browser.find_element("css selector", f"#{plot}-{place} use, #{plot}-{place} path:not(defs path)")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
            ActionChains(browser).move_to_element(mark).perform()
            assert tip.is_displayed()
            told_of = tip.text.split("\n\n")
            for point in told_of:
                model, *lines = point.splitlines()
                shown[plot, model] = lines
            # The error rates and bytes of mha and gqa are the same: both are told of wherever one is pointed at.
            assert len(told_of) == (2 if plot == "wer_against_kv_bytes" and place < 2 else 1)
    assert set(shown) == {
        (plot, model) for plot in ("wer_against_kv_bytes", "training_time") for model in ("mha", "gqa", "mla")
    }
    for (_, model), lines in shown.items():
        for line in lines:
            title, _, told = line.partition(": ")
            assert told == figures[model][titles[title]]["shown"]
    ActionChains(browser).move_to_element(browser.find_element("tag name", "h1")).perform()
    assert not tip.is_displayed()
