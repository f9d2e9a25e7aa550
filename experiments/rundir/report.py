"""report.html: one self-contained page that shows what a run is and did."""

import base64
import html
import pathlib

from experiments.data import datasets
from experiments.rundir import curves
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import flat
from experiments.runtime.files import read_json, write_text

_CAPTIONS = {
    "ebm": "Samples of the tilted prior (short-run Langevin)",
    "gaussian": "Samples of the Gaussian prior of the same generator",
    "reconstruction": "Held-out images, each followed by its reconstruction",
    "training": "Training curves",
    "transition": "Langevin transition of the tilted prior",
    "long_run": "The tilted prior's chain far beyond the length of training",
    "posterior_transition": "Langevin transition of the posterior",
    "hierarchical": "Layers above kept, layers below drawn anew, row by row",
    "by_layer": "Held-out images, decoded from ever fewer layers of their posterior",
    "latent_planes": "Latent planes",
    "anomaly": "Scores of held-out images, of classes of training and of the held-out "
    "class, and parts of them",
    "ood": "Scores of held-out images and of images of elsewhere",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto;
       padding: 0 1rem; }}
h1 {{ margin-bottom: 0; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr));
        gap: 1.5rem; }}
figure {{ margin: 0; }}
figcaption {{ opacity: .75; font-size: .9em; }}
img {{ width: 100%; max-width: 62rem; border-radius: 4px; background: white; }}
.samples img {{ image-rendering: pixelated; }}
.grid > * {{ min-width: 0; overflow-x: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .15rem .8rem .15rem 0; text-align: left;
         font-variant-numeric: tabular-nums; vertical-align: top; }}
summary {{ cursor: pointer; font-weight: 600; }}
.rescues {{ color: var(--alarm); }}
.strip {{ display: flex; gap: .5rem; overflow-x: auto; }}
.strip figure {{ flex: 0 0 11rem; }}
{style}</style></head><body>
<h1>{title}</h1>
<p>{subtitle}</p>
{verdict}
<section class="grid samples">{samples}</section>
<h2>Over training</h2>
<section class="strip samples">{history}</section>
{curves}
<h2>Figures</h2>
{figures}
{distances}
{variants}
{scored}
<h2>Last metrics</h2>
{metrics}
<details><summary>Configuration</summary>{config}</details>
</body></html>
"""


def write(path: pathlib.Path) -> None:
    """Writes report.html of the run in `path` from the files that it holds now."""
    config = read_json(path / "config.json")
    lines = read_metrics(path)
    last = next((x for x in reversed(lines) if "rescue" not in x), {})
    history = _by_name(path / "samples")
    step = last.get("step", 0)
    prior = "joint EBM prior" if config["prior"] == "ebm" else "Gaussian prior"
    page = _PAGE.format(
        title=html.escape(path.resolve().name),
        subtitle=html.escape(
            f"{prior} on {datasets.described(config['data'])}, {step} of "
            f"{config['learning']['num_steps']} training steps, seed {config['seed']}"
        ),
        verdict=_warning(config)
        + _rescues(lines)
        + "".join(_evaluation(file) for file in sorted(path.glob("eval*.json"))),
        samples="".join(
            _figure(history[name][-1], caption)
            for name, caption in _CAPTIONS.items()
            if name in history
        ),
        history="".join(
            _figure(file, f"step {int(file.stem.rsplit('_', 1)[1])}")
            for file in _thin(history.get("ebm") or history.get("gaussian") or [], 8)
        ),
        style=curves.STYLE,
        curves=curves.section(lines),
        figures="".join(
            _training(file, caption) if name == "training" else _figure(file, caption)
            for name, caption in _CAPTIONS.items()
            if (file := path / "figures" / f"{name}.png").is_file()
        )
        or "<p>None yet: they are drawn when training ends.</p>",
        distances=_layers(path / "figures"),
        variants="".join(_variants(path)),
        scored="".join(
            f"<h2>Images of {html.escape(str(file.relative_to(path / 'scores')))}</h2>"
            + _figure(file, "From the most to the least anomalous")
            for file in sorted((path / "scores").rglob("*.png"))
        ),
        metrics=_table(last.items()),
        config=_table(flat(config)),
    )
    write_text(path / "report.html", page)


def _warning(config):
    """That nothing on the page comes of real images."""
    if config["data"]["name"] != "fake":
        return ""
    told = f"{datasets.described(config['data'])}: nothing here is a result."
    return f'<p class="rescues"><strong>{html.escape(told)}</strong></p>'


def _rescues(lines):
    """What the guard did, first thing on the page."""
    told = [line["rescue"] for line in lines if "rescue" in line]
    if not told:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in told)
    return f'<ul class="rescues">{items}</ul>'


_MEASURES = {
    "frechet": "samples",
    "frechet_long_chain": "samples by a chain 4 times as long",
    "frechet_tempered": "samples by the tempered sampler, as long as the chain",
    "frechet_untilted": "samples of the Gaussian prior of the same generator",
    "frechet_posterior": "held-out images from their posterior: the floor of any prior",
    "frechet_real": "one half of the held-out images against the other",
}


_MIXING = {
    "acceptance": "acceptance under MALA",
    "stiffness": "stiffness",
    "exchange": "exchange, least of all neighbours",
    "rhat": "R-hat, energy",
    "rhat_features": "R-hat, features",
    "ess": "effective draws, energy",
    "ess_features": "effective draws, features",
    "draws": "draws",
}
_READING = (
    "Unstable from a stiffness of 1 on. An R-hat of 1.1 or more, of chains run four "
    "times as long, says that one chain alone does not visit all that many chains "
    "together do; whether these together are right is told by the distances at one and "
    "at four times the length."
)


def _evaluation(file):
    """The table of distances, and how well the chains can follow."""
    found = read_json(file)
    about, table = _TABLES[found["protocol"]](found)
    variant = file.stem.removeprefix("eval").removeprefix("_")
    variant = variant.removeprefix(found["protocol"]).removeprefix("_")
    if variant:
        about = f"With {variant}. {about}"
    chains = ("prior", "tempered", "posterior")
    shown = {
        name: text
        for name, text in _MIXING.items()
        if any(f"{chain}_{name}" in found for chain in chains)
    }
    rows = [
        (f"{chain} chain", *(found.get(f"{chain}_{name}", "-") for name in shown))
        for chain in chains
        if any(f"{chain}_{name}" in found for name in shown)
    ]
    chains = _table(rows, ("", *shown.values()))
    gap = ""
    if "energy_gap_nats" in found:
        gap = f"<p>Gap E- minus E+: {found['energy_gap_nats']:.3g} nats.</p>"
    return (
        f'<section class="grid"><div><p>{html.escape(about)}</p>{table}</div>'
        f"<div><p>The chains. {_READING}</p>{chains}{gap}</div></section>"
    )


def _distances(found):
    about = (
        f"Frechet distance to {found['num_reference']} held-out images at step "
        f"{found['step']}: {found['num_samples']} samples, {found['features']}."
    )
    return about, _table(
        (text, found[k]) for k, text in _MEASURES.items() if k in found
    )


def _detection(found):
    about = (
        f"Anomaly detection at step {found['step']}: {found['num_anomalous']} images "
        f"of the held-out class {found['heldout_digit']} among {found['num_normal']} "
        f"of the others; chance has an AUPRC of {found['prevalence']:.3f} and an AUROC "
        f"of .5. {found['num_posterior_samples']} posterior samples an image."
    )
    rows = [
        (text, found[f"auprc{part}"], found[f"auroc{part}"])
        for part, text in (
            (
                "",
                f"minus the score, log p(x|z) weighed {found['likelihood_weight']:g}, "
                f"{found['num_maps']} maps, {found['num_neighbours']} neighbours "
                f"weighed {found['neighbours_weight']:g}, the volume to the nearest "
                f"{found['volume_weight']:g}",
            ),
            ("_absolute", "without neighbours and volume"),
            ("_unweighed", "minus score(0)"),
            ("_likelihood", "minus log p(x|z)"),
            ("_prior", "E(z) minus log p_beta(z)"),
            ("_energy", "E(z)"),
            ("_distance", "distance of eps to the nearest of training"),
        )
        if f"auprc{part}" in found
    ]
    return about, _table(rows, ("", "AUPRC", "AUROC"))


def _elsewhere(found):
    about = (
        f"Out-of-distribution detection at step {found['step']}: AUROC of "
        f"{found['num_outside']} images of elsewhere against as many held-out images, "
        f"by every score. {found['chosen']} was chosen on {found['chosen_on']}."
    )
    rows = [
        (name, *found[f"auroc_{name}"])
        for name in (found["chosen_on"], *found["outliers"])
    ]
    return about, _table(rows, ("", *found["statistics"]))


INCEPTION = {  # names of what is measured by Inception's features
    "fid": "FID",
    "inception_score": "Inception score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}
_SETS = {
    "": "samples",
    "_long_chain": "samples by a chain 4 times as long",
    "_untilted": "samples of the Gaussian prior of the same generator",
    "_posterior": "held-out images from their posterior: the floor of any prior",
}


def _inception(found):
    about = (
        f"Protocol {found['protocol']!r} at step {found['step']}: "
        f"{found['num_samples']} samples, chain {found['chain']}, temperature "
        f"{found['temperature']:g}, {found['features']}, reference "
        f"{found['reference']}; Inception score in {found['score_splits']} parts."
    )
    if found["num_compared"]:
        num = found["num_compared"]
        about += f" KID, precision and recall are of {num} samples."
    rows = [
        (text, *(found.get(f"{name}{suffix}", "-") for name in INCEPTION))
        for suffix, text in _SETS.items()
        if any(f"{name}{suffix}" in found for name in INCEPTION)
    ]
    return about, _table(rows, ("", *INCEPTION.values()))


_LIKELIHOOD = {
    "log_likelihood_nats": "log-likelihood, nats",
    "log_likelihood_error": "its standard error, of the estimator",
    "log_likelihood_spread": "standard deviation between images",
    "bits_per_dim": "bits per dimension",
    "effective_samples": "effective samples of the median image",
    "heavy_tailed_share": "share of images with weights of a Pareto k above .7",
    "log_likelihood_nats_untilted": "log-likelihood of the Gaussian prior, nats",
    "log_likelihood_error_untilted": "its standard error",
    "bits_per_dim_untilted": "bits per dimension of the Gaussian prior",
    "heavy_tailed_share_untilted": "share of a Pareto k above .7 under it",
    "log_z_nats": "log Z of the tilted prior, nats",
    "log_z_error": "its standard error",
    "log_z_effective_samples": "its effective samples",
    "log_z_reverse_nats": "log Z backwards from samples of the prior chain, nats",
    "log_z_reverse_error": "its standard error",
    "log_z_reverse_effective_samples": "its effective samples",
    "log_z_gap_nats": "gap of the two, backwards minus forwards, nats",
    "log_z_unseen_share": "share of these samples that forwards cannot reach",
    "log_z_agrees": "the two agree",
}
_MANY_HEAVY_TAILS = 0.05  # share of images


def cautions(found) -> list[str]:
    """What an evaluation tells against its own errors, a sentence each.

    Example:
      >>> cautions({"heavy_tailed_share": 0.01, "log_z_agrees": True})
      []
    """
    told = []
    if not found.get("log_z_agrees", True):
        forward, back, unseen = (
            found.get(f"log_z_{name}", float("nan"))
            for name in ("nats", "reverse_nats", "unseen_share")
        )
        told.append(
            f"log Z and its error are not to be trusted: {forward:.4g} nats by "
            f"annealing from noise, {back:.4g} nats backwards from samples of the "
            f"prior chain, of which a share of {unseen:.2g} is where annealing does "
            "not reach. It has missed a mode, or the chain stays where the prior has "
            "next to no mass."
        )
    for suffix, prior in (("", ""), ("_untilted", " under the Gaussian prior")):
        share = found.get(f"heavy_tailed_share{suffix}", 0.0)
        if share > _MANY_HEAVY_TAILS:
            told.append(
                f"The error of log p(x){prior} is not to be trusted: the weights of "
                f"{share:.0%} of the images have a Pareto k above .7, so that the "
                "log-likelihood is likely higher. Take the estimator 'bridged'."
            )
    return told


def _density(found):
    about = (
        f"Log-likelihood of {found['num_images']} dequantised held-out images at step "
        f"{found['step']}: the mean of log p(x), {found['estimator']} with "
        f"{found['samples_per_image']} samples an image."
    )
    warned = "".join(
        f'<p class="rescues">{html.escape(text)}</p>' for text in cautions(found)
    )
    rows = ((text, found[k]) for k, text in _LIKELIHOOD.items() if k in found)
    return about, warned + _table(rows)


_TABLES = {
    "anomaly": _detection,
    "classifier": _distances,
    "clean": _inception,
    "likelihood": _density,
    "ood": _elsewhere,
    "paper": _inception,
}


def _variants(path):
    """Pictures drawn with other chains or seeds than the run's own."""
    for kind in ("samples", "figures"):
        for folder in sorted(p for p in (path / kind).glob("*") if p.is_dir()):
            shown = "".join(_figure(p, p.stem) for p in sorted(folder.glob("*.png")))
            yield (
                f"<h2>With {html.escape(folder.name)}</h2>"
                f'<section class="grid samples">{shown}</section>'
            )


def _layers(folder):
    """What was measured of the single layers."""
    return (
        _layer_table(
            folder / "latent_planes.json",
            "Energy distance between samples of the prior and of the aggregate "
            "posterior, per layer; the ratio is tilted to untilted.",
            ("layer", "tilted", "untilted", "posterior (floor)", "ratio"),
            lambda found: found.values(),
        )
        + _layer_table(
            folder / "hierarchical.json",
            "How often a classifier gives two images the same label: images of one "
            "row, with the layers above k kept, and any two.",
            (
                "layers drawn anew",
                "tilted, in a row",
                "any",
                "Gaussian, in a row",
                "any",
            ),
            lambda found: [
                found[prior][pairs]
                for prior in ("ebm", "gaussian")
                for pairs in ("in_rows", "overall")
            ],
        )
        + _layer_table(
            folder / "probes.json",
            "How well a small classifier tells the label from one layer alone.",
            ("layer", "accuracy", "by the most frequent class"),
            lambda found: found.values(),
        )
    )


def _layer_table(file, caption, head, values_of):
    if not file.is_file():
        return ""
    rows = [
        (name.replace("k=", "up to "), *(f"{v:.3f}" for v in values_of(found)))
        for name, found in read_json(file).items()
    ]
    return f"<p>{html.escape(caption)}</p>{_table(rows, head)}"


def _by_name(directory):
    files = {}
    for file in sorted(directory.glob("*_*.png")):
        files.setdefault(file.stem.rsplit("_", 1)[0], []).append(file)
    return files


def _thin(files, count):
    if len(files) <= count:
        return files
    return [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]


def _figure(file, caption):
    data = base64.b64encode(file.read_bytes()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _training(file, caption):
    """The picture of the curves, where the page cannot draw them itself."""
    return f"<noscript>{_figure(file, caption)}</noscript>"


def _table(rows, head=()):
    def row(cells, tag):
        return "".join(f"<{tag}>{html.escape(_format(c))}</{tag}>" for c in cells)

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{body}</table>"


def _format(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
