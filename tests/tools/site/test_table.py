import html.parser
import json
import re

import pytest

from experiments.data import datasets
from tools.site import table

# Tables 1, 2 and 3 of arXiv 2306.06323, by hand: model, Inception score, FID.
CIFAR10 = """
    NVAE 5.30 37.73
    NCP-VAE - 24.08
    VAEBM 8.43 12.19
    IGEBM 6.78 38.2
    ImprovedCD 7.85 25.1
    Divergence-Triangle - 30.10
    Adv-EBM 9.10 13.21
    GLOW 3.92 48.9
    PixelCNN 4.60 65.93
    BigGAN 9.22 14.73
    StyleGAN2 8.99 9.9
    NCSN 8.87 25.32
    DDPM 9.46 3.17
    joint-EBM 8.99 11.34
"""
FID = """
    CelebA-HQ NVAE 30.25 NCP-VAE 24.79 VAEBM 20.38 Adv-EBM 17.31 GLOW 68.93 PGGAN 8.03 joint 9.89
    LSUN NVAE 38.13 VAEBM 13.51 Adv-EBM 10.84 GLOW 59.35 PGGAN 6.42 joint 8.38
    SVHN VAE 46.78 LVAE 39.26 ABP 49.71 SRI 35.32 RAE 42.02 2s-VAE 42.81 NCP-VAE 33.23 LEBM 29.44 joint 26.81
    CelebA, VAE 65.75 LVAE 53.40 ABP 51.50 SRI 47.95 RAE 40.95 2s-VAE 44.40 NCP-VAE 42.07 LEBM 37.87 joint 33.60
    CIFAR-10 VAE 106.37 RAE 74.16 2s-VAE 72.90 NCP-VAE 78.06 LEBM 70.15 joint 66.32
"""  # noqa: E501


def write_run(path, *, data="cifar10", method="mle", backbone="vector", **evaluations):
    path.mkdir()
    config = {
        "data": {"name": data},
        "learning": {"method": method},
        "backbone": {"name": backbone},
    }
    (path / "config.json").write_text(json.dumps(config))
    for name, values in evaluations.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return path


def described(about, head, *rows, warnings=()):
    """The report of an eval.json: one table, and what goes with every evaluator."""
    of_chains = {"head": ["", "stiffness"], "rows": [["prior chain", 0.25]]}
    return [
        {
            "about": about,
            "tables": [{"head": head, "rows": [*rows]}],
            "warnings": list(warnings),
            "figures": {},
        },
        {"about": "Chains.", "tables": [of_chains], "warnings": [], "figures": {}},
    ]


INCEPTION = ["", "FID", "Inception score", "KID", "precision", "recall"]
MEASURED = {
    "fid": 71.25,
    "fid_untilted": 99.5,
    "images_per_second_chain": 1234.0,
    "images_per_second_decoder": 2345.0,
    "images_per_second_metric": 34.5,
    "step": 50500,
    "seed": 3,
    "prior": "ebm",
    "protocol": "paper",
    "training_images": 5050000,
    "training_seconds": 36000.0,
    "training_hardware": "8 x TPU v5 lite",
    "hardware": "1 x NVIDIA A100",
    "seconds": 600.0,
    "report": described(
        "At step 50500: 50000 samples by 60 steps in z-space.",
        INCEPTION,
        ["samples", 71.25, 5.125, 0.0625, 0.75, 0.5],
        ["samples of the Gaussian prior", 99.5, None, None, None, None],
        warnings=["The reference is another's."],
    ),
}
CLEAN = MEASURED | {"protocol": "clean"}
FRECHET = {
    "frechet": 2.79,
    "frechet_real": 0.84,
    "step": 25000,
    "seed": 0,
    "prior": "gaussian",
    "protocol": "classifier",
    "report": described(
        "64 features of mnist.npz.",
        ["", "Frechet distance, not FID"],
        ["samples", 2.79],
        ["real halves", 0.84],
    ),
}


def by_title(made, word, part=""):
    (table_made,) = [t for t in made if t.title.startswith(word) and part in t.title]
    return table_made


@pytest.fixture
def made(tmp_path):
    runs = [
        write_run(tmp_path / "joint", eval_paper=MEASURED),
        write_run(tmp_path / "two", method="two_stage", eval_clean=CLEAN),
        write_run(
            tmp_path / "digits", data="digits", eval=FRECHET, eval_paper=MEASURED
        ),
    ]
    return table.tables(runs)


def test_quoted_rows_are_those_of_the_paper(made):
    two_stages = by_title(made, "CIFAR-10", "two stages")
    rows = {
        r[0].replace(" ", "-"): r[1:3] for r in two_stages.rows if r[-2] == "quoted"
    }
    expected = [line.split() for line in CIFAR10.split("\n") if line.strip()]
    assert len(rows) == len(expected)
    assert two_stages.head[1:3] == ["Inception score", "FID"]
    for model, score, fid in expected:
        (cells,) = [v for name, v in rows.items() if name.startswith(model)]
        assert cells == [score, fid]
    for line in FID.strip().split("\n"):
        data, *pairs = line.split()
        part = "joint" if data == "CIFAR-10" else ""
        head = by_title(made, data, part).head
        rows = [r for r in by_title(made, data, part).rows if r[-2] == "quoted"]
        assert len(rows) == len(pairs) // 2
        for model, fid in zip(pairs[::2], pairs[1::2], strict=True):
            (row,) = [r for r in rows if r[0].split(",")[0].split(" ")[0] == model]
            assert row[head.index("FID")] == fid


def test_quoted_tables_are_of_data_sets_of_ours():
    quoted = json.loads(table.PUBLISHED.read_text())["tables"]
    assert {t["data"] for t in quoted} <= set(datasets.LOADERS)


def test_made_up_images_have_no_published_numbers(tmp_path):
    fake = MEASURED | {"data": "made up, in the shape of cifar10"}
    made = table.tables([write_run(tmp_path / "run", eval_paper=fake)])
    placed = [t.title for t in made if any(r[-2] != "quoted" for r in t.rows)]
    assert placed == [
        "made up, in the shape of cifar10, protocol paper: no published row here"
    ]


def test_rows_of_ours_stand_in_the_table_of_their_data_and_stages(made):
    ours = {
        t.title: [r[0].split(",")[0] for r in t.rows if r[-2].startswith("ours")]
        for t in made
    }
    ours = {title: names for title, names in ours.items() if names}
    assert [names for title, names in ours.items() if "two stages" in title] == [
        ["two", "two"]
    ]
    assert [names for title, names in ours.items() if "joint training" in title] == [
        ["joint", "joint"]
    ]
    title = "digits, protocol {}: no published row here"
    assert ours[title.format("paper")] == ["digits", "digits"]
    assert ours[title.format("classifier")] == ["digits", "digits"]
    assert len(ours) == 4


def test_beside_numbers_of_ours_stands_what_they_were_taken_with(made):
    joint = by_title(made, "CIFAR-10", "joint")
    tilted, untilted = (r for r in joint.rows if r[-2].startswith("ours"))
    # The published column first, and those that only we have.
    assert joint.head[1:6] == ["FID", "Inception score", "KID", "precision", "recall"]
    assert tilted[:6] == [
        "joint, joint EBM prior: samples",
        "71.25", "5.125", "0.0625", "0.75", "0.5",
    ]  # fmt: skip
    assert untilted[:3] == [
        "joint, joint EBM prior: samples of the Gaussian prior", "99.5", "-",
    ]  # fmt: skip
    for words in (
        "ours: At step 50500: 50000 samples by 60 steps in z-space.",
        "The reference is another's.", "Protocol paper, seed 3.",
    ):  # fmt: skip
        assert words in tilted[-2]
    for words in (
        "5,050,000 images", "10.0 h on 8 x TPU v5 lite", "10 min on 1 x NVIDIA A100",
        "chain 1,234", "metric 34.5",
    ):  # fmt: skip
        assert words in tilted[-1]


def test_distances_in_other_features_are_no_fids(made):
    frechet = by_title(made, "digits", "classifier")
    assert frechet.head[1] == "Frechet distance, not FID"
    assert frechet.rows[0][:2] == ["digits, Gaussian prior: samples", "2.79"]
    assert "64 features of mnist.npz" in frechet.rows[0][-2]
    assert frechet.rows[0][-1] == "not recorded"


def test_chains_and_seeds_of_an_evaluation_are_named(tmp_path):
    run = write_run(tmp_path / "run", **{"eval_paper_seed=7": MEASURED})
    rows = by_title(table.tables([run]), "CIFAR-10", "joint").rows
    assert rows[-2][0] == "run with seed=7, joint EBM prior: samples"


def test_evaluation_of_an_older_version_has_a_plain_table_of_its_own(tmp_path):
    plain = {k: v for k, v in MEASURED.items() if k != "report"}
    made = table.tables([write_run(tmp_path / "run", eval_paper=plain)])
    older = by_title(made, "cifar10, protocol paper")
    assert older.head[1] == "value"
    assert ["run, joint EBM prior: fid", "71.25"] in [row[:2] for row in older.rows]
    assert "measured by an older version" in older.rows[0][2]


class Cells(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.rows, self.classes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img")
        if tag == "tr":
            self.rows.append([])
            self.classes.append(dict(attrs).get("class", "head"))
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def test_both_pages_hold_every_row(made, tmp_path):
    strange = write_run(tmp_path / "a|b <i>", eval_paper=MEASURED)
    out = tmp_path / "pages" / "table"
    table.main([str(strange), f"--out={out}"])
    made = table.tables([strange])
    expected = [row for t in made for row in (t.head, *t.rows)]
    page = Cells(out.with_name("table.html").read_text())
    # The title of the next table follows on the last cell.
    assert [row[:-1] for row in page.rows] == [row[:-1] for row in expected]
    assert [c.split()[0] for c in page.classes].count("ours") == 2
    assert page.classes.count("quoted strong") == 6
    lines = out.with_name("table.md").read_text().split("\n")
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line[:1] == "|"]
    cells = [[c.strip().strip("*") for c in row] for row in cells]
    cells = [row for row in cells if row[0] != "---"]
    plain = [[c.replace("|", "\\|") for c in row] for row in expected]
    assert cells == plain


@pytest.mark.parametrize("written", [False, True])
def test_what_is_not_an_evaluated_run_is_refused(tmp_path, written):
    run = tmp_path / "run"
    words = "not a run that can be read"
    if written:
        write_run(run)
        words = "no eval.json: evaluate it with --mode=eval and .*protocol=paper"
    with pytest.raises(SystemExit, match=words):
        table.main([str(run), f"--out={tmp_path / 'table'}"])
    assert not (tmp_path / "table.html").exists()
