import base64
import html.parser
import io
import json
import re
import shutil

import pytest
from PIL import Image

from experiments.rundir import report

pytestmark = pytest.mark.slow  # a whole run is drawn and evaluated


class Page(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text outside of <style>."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._style = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style and data.strip():
            self.text.append(data.strip())

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture
def page(finished_run):
    return Page((finished_run / "report.html").read_text())


def test_report_refers_to_nothing_outside_itself(finished_run, page):
    text = (finished_run / "report.html").read_text()
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.search(r"https?://|file:|@import|url\((?!#)|fetch|import\(", text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        assert tag != "script" or "src" not in attributes
        assert "href" not in attributes
        assert "srcset" not in attributes
        assert attributes.get("src", "data:").startswith("data:")


def test_report_embeds_samples_and_figures(finished_run, page):
    embedded = []
    for image in page.images():
        head, data = image["src"].split(",", 1)
        assert head == "data:image/png;base64"
        embedded.append(base64.b64decode(data))
        Image.open(io.BytesIO(embedded[-1])).verify()
    expected = [
        *(finished_run / "samples").glob("*_0000008.png"),
        *(finished_run / "samples").glob("ebm_*.png"),
        *(finished_run / "figures").glob("*.png"),
    ]
    assert len(expected) == 3 + 2 + 7
    assert sorted(embedded) == sorted(file.read_bytes() for file in expected)


def test_report_tells_the_settings_and_how_far_the_run_is(page):
    images = "digits (1,437 for training, 360 held out)"
    expected = f"joint EBM prior on {images}, 8 of 8 training steps, seed 0"
    assert expected in page.text
    cells = list(zip(page.text, page.text[1:], strict=False))
    assert ("learning.batch_size", "20") in cells
    assert ("backbone.latent_dims", "[4, 2]") in cells
    assert ("likelihood.scale", "0.1") in cells


def test_report_shows_the_last_metrics(finished_run, page):
    last = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[-1])
    cells = list(zip(page.text, page.text[1:], strict=False))
    assert ("step", "8") in cells
    assert ("loss_nats", f"{last['loss_nats']:.4g}") in cells


def test_report_shows_the_distances_of_every_layer(finished_run, page):
    file = finished_run / "figures" / "latent_planes.json"
    for layer, values in json.loads(file.read_text()).items():
        start = page.text.index(layer)
        numbers = [f"{value:.3f}" for value in values.values()]
        assert page.text[start + 1 : start + 5] == numbers


def test_report_shows_the_distances_between_images_and_the_state_of_the_chains(
    finished_run, page
):
    values = json.loads((finished_run / "eval.json").read_text())
    cells = list(zip(page.text, page.text[1:], page.text[2:], strict=False))
    for text, name in (
        ("samples", "frechet"),
        ("samples by a chain 4 times as long", "frechet_long_chain"),
        ("samples of the Gaussian prior of the same generator", "frechet_untilted"),
    ):
        number = f"{values[name]:.4g}"
        assert any(cell[:2] == (text, number) for cell in cells), (text, number)
    for chain in ("prior", "posterior"):
        numbers = [f"{values[f'{chain}_{x}']:.4g}" for x in ("acceptance", "stiffness")]
        assert (f"{chain} chain", *numbers) in cells
    head = "Frechet distance to 360 held-out images at step 8: 40 samples"
    assert any(text.startswith(head) for text in page.text)


def test_report_begins_with_what_training_has_gone_back_from(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rollbacks": 1, "rollback": "a gap of <9> nats"}\n')
        file.write('{"step": 4, "rescues": 2, "rescue": "as older versions say"}\n')
    report.write(path)
    page = Page((path / "report.html").read_text())
    assert ("ul", {"class": "warning"}) in page.tags
    texts = [page.text.index(t) for t in ("a gap of <9> nats", "as older versions say")]
    assert max(texts) < page.text.index("samples")
    assert ("step", "8") in list(zip(page.text, page.text[1:], strict=False))


def test_report_of_a_run_of_an_older_version_shows_its_settings_by_their_names_of_today(
    finished_run, tmp_path
):
    path = shutil.copytree(finished_run, tmp_path / "run")
    settings = json.loads((path / "config.json").read_text())
    settings["guard"] = {"max_rescues": settings.pop("monitor")["max_rollbacks"]}
    (path / "config.json").write_text(json.dumps(settings))
    report.write(path)
    page = Page((path / "report.html").read_text())
    assert "monitor.max_rollbacks" in page.text
    assert "guard.max_rescues" not in page.text


def test_report_before_evaluation_has_no_distances(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    (path / "eval.json").unlink()
    report.write(path)
    page = Page((path / "report.html").read_text())
    assert not any(text.startswith("Frechet") for text in page.text)


def test_report_shows_evaluations_with_other_chains_under_their_names(
    finished_run, tmp_path
):
    path = shutil.copytree(finished_run, tmp_path / "run")
    shutil.copy(path / "eval.json", path / "eval_seed=7.json")
    report.write(path)
    page = Page((path / "report.html").read_text())
    shown = [text for text in page.text if "Frechet distance to" in text]
    assert len(shown) == 2
    assert sum(text.startswith("With seed=7. ") for text in shown) == 1


def test_report_of_a_run_without_figures_says_so(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(path / "figures")
    report.write(path)
    page = Page((path / "report.html").read_text())
    assert any(text.startswith("None yet") for text in page.text)
    assert len(page.images()) == 3 + 2


def test_report_escapes_what_it_is_told(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "<b>run & co")
    report.write(path)
    page = Page((path / "report.html").read_text())
    assert page.text.count("<b>run & co") == 2  # the title and the heading
    assert "b" not in [tag for tag, _ in page.tags]


def test_pictures_are_in_the_order_of_their_steps_and_others_are_none(tmp_path):
    names = ["ebm_9999999.png", "ebm_10000000.png", "ebm_0000002.png", "my_own.png"]
    for name in names:
        (tmp_path / name).touch()
    found = report._by_name(tmp_path)
    assert list(found) == ["ebm"]
    assert [file.name for file in found["ebm"]] == [names[2], names[0], names[1]]


def test_report_thins_the_history_and_keeps_its_ends():
    assert report._thin([1, 2, 3], 8) == [1, 2, 3]
    thinned = report._thin(list(range(100)), 8)
    assert len(thinned) == 8
    assert (thinned[0], thinned[-1]) == (0, 99)
    assert thinned == sorted(set(thinned))


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def written(path):
    report.write(path)
    return Page((path / "report.html").read_text())


def test_folder_is_named_with_its_images_and_when_they_changed(copied_run):
    settings = json.loads((copied_run / "config.json").read_text())
    settings["data"] |= {"name": "folder", "data_dir": "/home/me/<photos>"}
    (copied_run / "config.json").write_text(json.dumps(settings))
    entries = [
        {"step": step, "train": {"num": 27 + step}, "test": {"num": 3}}
        for step in (0, 4, 6)
    ]
    (copied_run / "data.json").write_text(json.dumps(entries))
    page = written(copied_run)
    images = "the pictures of /home/me/<photos> (33 for training, 3 held out)"
    assert f"joint EBM prior on {images}, 8 of 8 training steps, seed 0" in page.text
    assert "The images changed at step 4, 6." in page.text


def test_run_of_an_older_version_has_no_number_of_images(copied_run):
    (copied_run / "data.json").unlink()
    expected = "joint EBM prior on digits, 8 of 8 training steps, seed 0"
    assert expected in written(copied_run).text


def test_what_two_evaluations_have_alike_is_shown_once(copied_run):
    values = json.loads((copied_run / "eval.json").read_text())
    first, *chains = values["report"]
    values["report"] = [first | {"about": "Of another kind."}, *chains]
    values["protocol"] = "ood"
    (copied_run / "eval_ood.json").write_text(json.dumps(values))
    text = written(copied_run).text
    for part in (first, *chains):
        assert text.count(part["about"]) == 1
    assert "Of another kind." in text


def test_samples_come_before_what_was_measured(finished_run):
    text = (finished_run / "report.html").read_text()
    assert text.index("<img") < text.index('<section class="measured">')
