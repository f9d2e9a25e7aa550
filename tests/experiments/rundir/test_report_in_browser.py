"""The report page as a person opens it: from file://, in headless Chromium."""

import io
import itertools
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from experiments.rundir import curves
from experiments.rundir.metrics import read_metrics

pytestmark = pytest.mark.slow  # a whole run is drawn and evaluated


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "window-size=1200,900",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


@pytest.fixture
def page(browser, finished_run):
    browser.get((finished_run / "report.html").as_uri())
    yield browser
    assert [m for m in browser.get_log("browser") if m["level"] != "INFO"] == []


def texts(panel):
    return [
        t.get_attribute("textContent")
        for t in panel.find_elements("css selector", "text")
    ]


def panels(page):
    return page.find_elements(By.CSS_SELECTOR, "#curves svg")


def test_every_picture_loads(page):
    loaded = page.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth)"
    )
    assert len(loaded) > 10
    assert all(loaded)


def test_figures_are_not_drawn_larger_than_they_are(page):
    widths = page.execute_script(
        "return [...document.querySelectorAll('h2 ~ figure img')]"
        ".map(i => [i.clientWidth, i.naturalWidth])"
    )
    assert len(widths) > 3
    assert all(shown <= own for shown, own in widths), widths


def test_page_fits_its_window(page):
    width = page.execute_script("return document.documentElement.scrollWidth")
    assert width <= page.execute_script("return window.innerWidth")


def test_curves_show_every_metric_and_where_it_stands(page, finished_run):
    lines = read_metrics(finished_run)
    expected = curves.panels(lines)
    assert len(expected) == 8
    for panel, about in zip(panels(page), expected, strict=True):
        assert about.title in panel.get_attribute("aria-label")
        assert {"training step", about.unit} <= set(texts(panel))
        drawn = panel.find_elements(By.CSS_SELECTOR, "path.curve")
        assert len(drawn) == len(about.names)
        for line, name in zip(drawn, about.names, strict=True):
            points = curves.points(lines, name, about.beside)
            given = [value is not None for _, value in points]
            path = line.get_attribute("d")
            starts = sum(not a and b for a, b in itertools.pairwise([False, *given]))
            assert path.count("M") == starts
            assert path.count("M") + path.count("L") == sum(given) > 1
    ActionChains(page).move_to_element(panels(page)[0]).perform()
    told = page.find_element(By.CSS_SELECTOR, "#curves figcaption output").text
    assert told.endswith(("at step 4", "at step 6"))


def test_curves_zoom_together_and_back(page):
    first, *others = panels(page)
    whole = [texts(panel) for panel in panels(page)]
    button = page.find_element(By.ID, "all-steps")
    assert not button.is_displayed()
    width = first.rect["width"]
    drag = ActionChains(page).move_to_element_with_offset(first, int(0.1 * width), 0)
    drag.click_and_hold().move_by_offset(int(0.3 * width), 0).release().perform()
    zoomed = [texts(panel) for panel in panels(page)]
    assert all(a != b for a, b in zip(whole, zoomed, strict=True))
    assert button.is_displayed()
    ActionChains(page).double_click(others[0]).perform()
    assert [texts(panel) for panel in panels(page)] == whole
    assert not button.is_displayed()


def test_a_click_does_not_zoom(page):
    whole = texts(panels(page)[0])
    ActionChains(page).click(panels(page)[0]).perform()
    assert texts(panels(page)[0]) == whole


def shades(page, scheme):
    """Brightness of the page's ground, and the colours of text and of a curve."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    shot = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L")
    colours = page.execute_script(
        "return [document.body, document.querySelector('#curves .prior')].map("
        "e => getComputedStyle(e)).map((s, i) => i ? s.stroke : s.color)"
    )
    ground = float(np.asarray(shot)[:, :8].mean())  # the margin
    return ground, [
        [int(c) / 255 for c in colour.strip("rgba()").split(",")[:3]]
        for colour in colours
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_are_readable_in_light_and_dark(page, scheme):
    ground, colours = shades(page, scheme)
    assert ground > 200 if scheme == "light" else ground < 50

    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    below = luminance([ground / 255] * 3)
    for colour in colours:  # WCAG 2: at least 4.5 to 1 for text
        above = luminance(colour)
        ratio = (max(above, below) + 0.05) / (min(above, below) + 0.05)
        assert ratio > 4.5, (colour, ratio)


def test_no_column_of_what_was_measured_is_cut_off(page):
    widths = page.execute_script(
        "return [...document.querySelectorAll('.measured > div')]"
        ".map(d => [d.scrollWidth, d.clientWidth])"
    )
    assert len(widths) == 3
    assert all(needed <= there for needed, there in widths), widths
