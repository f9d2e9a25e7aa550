"""Compares all priors of `jebm.priors` on one trained generator.

    python -m tools.priors --backbone=RUN --workdir=DIR [--priors=joint,flow] \\
        [--minutes=2] [--seeds=0,1,2] [--heldout=4]

All priors learn from the same draws of the encoder, each for the same number of
minutes, and are measured in the same way. Each prior then learns again, for a shorter
time and without the class --heldout, which it must find among the held-out images. DIR
gets priors.md, priors.html and a picture, and DIR/NAME/seed0/run holds each prior as a
run, which `python -m experiments.main --workdir=... --mode=eval` and the other modes
read. After a kill the same command goes on where it stopped; with more seeds or priors
it adds to what is there.
"""

import argparse
import functools
import pathlib

import jax
import numpy as np
from tqdm import tqdm

import jebm
from experiments import options
from experiments.errors import ConfigError
from experiments.evaluation import classifier
from experiments.rundir.settings import write_settings
from experiments.runs import Run
from experiments.runtime.files import read_json, write_json
from jebm import checkpoints, priors
from jebm.files import written_whole
from jebm.spec import to_spec
from tools.arguments import of_backbone, positive
from tools.priors import learn, measure, page, settings
from tools.priors.backbone import open_backbone

_HELDOUT_SHARE = 0.25  # of the minutes, for the learning that does not see a class


class Bench:
    """A generator with all that is drawn from it once, for all priors."""

    def __init__(self, run: Run, workdir: pathlib.Path, minutes: float, heldout: int):
        self.run, self.workdir = run, workdir
        self.seconds, self.heldout = 60 * minutes, heldout
        self.frozen = priors.freeze(run.model, run.params)
        self.settings = settings.backbone(self.frozen)
        self.features, self.facts = classifier.load(run.experiment.data.name)
        self.key = jax.random.key(run.experiment.seed)

    @functools.cached_property
    def data(self) -> learn.Data:
        """Returns the noise behind the images of training."""
        eps = self._kept(
            "draws",
            lambda: {
                "eps": measure.encode(
                    self._key(1), self.frozen, self.run.training, self.settings.passes
                )
            },
        )["eps"]
        return learn.Data(jax.numpy.asarray(eps), jax.numpy.asarray(self.run.training))

    @functools.cached_property
    def held(self) -> measure.Weighed:
        """Returns the noise behind held-out images, with weights."""
        images = self.run.heldout[: self.settings.num_weighed]
        sizes = self.settings.particles, self.settings.temperatures
        weighed = self._kept(
            "weighed",
            lambda: vars(measure.weigh(self._key(2), self.frozen, images, *sizes)),
        )
        return measure.Weighed(**weighed)

    @functools.cached_property
    def floor(self) -> measure.Floor:
        """Measures what posterior samples are at."""
        file = self.workdir / "floor.json"
        if not file.is_file():
            found = measure.floor(
                self._key(3), self.frozen, self.run.heldout, self.data.eps[0],
                self.features, self.settings.num_samples,
            )  # fmt: skip
            write_json(file, found._asdict())
        return measure.Floor(**read_json(file))

    def row(self, name: str, seed: int) -> None:
        """Learns a prior and measures it, unless that has been done."""
        path = self.workdir / name / f"seed{seed}"
        if (path / "measured.json").is_file():
            return
        prior = settings.prior(name, self.frozen)
        path.mkdir(parents=True, exist_ok=True)
        if lacking := prior.lacks(self.frozen):
            write_json(path / "measured.json", {"lacks": lacking})
            return
        given = {"seed": seed, "batch_size": settings.batch_size(name, self.frozen)}
        law, learned = learn.learn(
            name, prior, self.frozen, self.data, seconds=self.seconds,
            path=path / "learned", **given,
        )  # fmt: skip
        write_run(path / "run", self.run, law)
        key = jax.random.fold_in(self._key(4), seed)
        batch = self.settings.sample_batch
        numbers, images = measure.distances(
            key, law, self.run.heldout, self.features, self.settings.num_samples, batch
        )
        numbers |= {
            "parameters": law.prior.num_parameters(law.state),
            "density": law.prior.density or "",
            "cannot": law.prior.cannot,
            "learned": learned,
        }
        page.save_samples(images, self.workdir, name, seed)
        if law.prior.density is not None:
            numbers |= measure.nats(key, law, self.held, batch)
            numbers["auprc"] = self._auprc(name, prior, path, given, batch)
        write_json(path / "measured.json", numbers)

    def _auprc(self, name, prior, path, given, batch):
        keep = self.run.splits["train"].labels != self.heldout
        law, _ = learn.learn(
            name, prior, self.frozen, self.data.without(keep),
            seconds=_HELDOUT_SHARE * self.seconds, path=path / "heldout", **given,
        )  # fmt: skip
        labels = self.run.splits["test"].labels[: self.settings.num_weighed]
        return measure.auprc(law, self.held, labels == self.heldout, batch)

    def _key(self, stream):
        return jax.random.fold_in(self.key, 1000 + stream)

    def _kept(self, name, make):
        """Returns what `make` returns, arrays by name, and keeps it in a file."""
        file = self.workdir / f"{name}.npz"
        if not file.is_file():
            print(f"Drawing {file}.")
            self.workdir.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as partial, partial.open("wb") as opened:
                np.savez(opened, **make())
        with np.load(file, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}


def write_run(path: pathlib.Path, run: Run, law: priors.Law) -> None:
    """Writes a prior that has learned as a run, for the modes of experiments.main."""
    model, params = priors.as_model(law)
    spec = to_spec(model)
    own = {"prior": "ebm", "energy": spec["energy"], "chains": spec["chains"]}
    write_settings(path, options.read(run.experiment.to_dict() | own), spec)
    if run.step not in checkpoints.steps(path):
        jebm.save(path, model, params, run.step)


def main() -> None:
    """Runs the command."""
    parser = of_backbone("python -m tools.priors", __doc__)
    known = ", ".join(priors.PRIORS)
    parser.add_argument(
        "--priors", type=names, default=known, help="names, separated by commas"
    )
    parser.add_argument(
        "--minutes", type=positive, default=2.0, help="training time of each prior"
    )
    parser.add_argument(
        "--seeds", type=_seeds, default="0", help="training seeds, such as 0,1,2"
    )
    parser.add_argument(
        "--heldout", type=int, default=4, help="class to detect (AUPRC)"
    )
    arguments = parser.parse_args()
    try:
        run = open_backbone(arguments.backbone)
        bench = Bench(run, arguments.workdir, arguments.minutes, arguments.heldout)
        _agree(arguments.workdir, bench, arguments)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    rows = [(seed, name) for seed in arguments.seeds for name in arguments.priors]
    for seed, name in tqdm(rows, desc="priors", unit="prior"):
        bench.row(name, seed)
        page.write(arguments.workdir, bench.floor, _about(bench, arguments.minutes))
    print(f"Look at {arguments.workdir / 'priors.html'}")


def _agree(workdir, bench, arguments):
    """Refuses to mix rows of other minutes, classes or generators."""
    asked = {
        "backbone": str(arguments.backbone.resolve()),
        "step": bench.run.step,
        "minutes": arguments.minutes,
        "heldout": arguments.heldout,
    }
    file = workdir / "bench.json"
    if not file.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)
    for name, value in read_json(file).items():
        if asked[name] != value:
            raise ConfigError(
                f"{workdir} was begun with {name} {value}, and {asked[name]} is asked "
                "for: choose another --workdir"
            )


def _about(bench, minutes):
    experiment = bench.run.experiment
    return (
        f"{experiment.data.name}, generator of {bench.frozen.size} latent units at "
        f"step {bench.run.step}. Each prior learned for {minutes:g} minutes on "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}. Frechet distances of "
        f"{bench.settings.num_samples} samples to {len(bench.run.heldout)} held-out "
        f"images, {bench.facts['num_features']} features of {bench.facts['file']}: no "
        f"FIDs. Nats: {len(bench.held.eps)} held-out images, "
        f"{bench.settings.particles} particles annealed in "
        f"{bench.settings.temperatures} steps each. AUPRC: class {bench.heldout} by "
        f"minus log p(eps), {60 * _HELDOUT_SHARE * minutes:g} seconds of learning "
        "that have not seen it, on a generator that has."
    )


def names(text: str) -> list[str]:
    """Reads names of priors, separated by commas.

    Raises:
      ArgumentTypeError: for a name that is none.

    Example:
      >>> names("joint,flow")
      ['joint', 'flow']
    """
    found = [part.strip() for part in text.split(",")]
    if unknown := sorted(set(found) - set(priors.PRIORS)):
        known = ", ".join(priors.PRIORS)
        raise argparse.ArgumentTypeError(f"no prior {unknown[0]!r}; known: {known}")
    return found


def _seeds(text):
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be like 0,1,2, got {text!r}")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
