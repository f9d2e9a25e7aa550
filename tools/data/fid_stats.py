"""Makes the statistics of real images that FID, KID, precision and recall need.

    python -m tools.data.fid_stats --data=NAME [--split=train] [--protocol=paper]
        [--data_dir=DIR] [--inception=FILE] [--batch_size=500] [--against=FILE.npz]

The file goes to the cache where evaluation looks for it, named by data set, split,
resolution, protocol and a digest of the pixels. Evaluation makes it too if it is not
there. An existing file stays as it is. --against prints the Frechet distance to other
statistics, such as those that the authors of the FID publish (TTUR: `mu` and `sigma` in
an .npz), which `--config.eval.fid.reference` also reads.
"""

import argparse
import sys

import jax

from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation import reference
from experiments.evaluation.inception_features import PROTOCOLS, Extractor
from jebm.metrics import frechet_distance
from tools.arguments import path_argument
from tools.data.named import named


def statistics(given: argparse.Namespace) -> None:
    """Makes the file, if it is not there, and compares it."""
    extractor = Extractor.load(PROTOCOLS[given.protocol], given.inception)
    devices = jax.local_device_count()
    if given.batch_size < 1 or given.batch_size % devices:
        raise ConfigError(
            f"--batch_size must be a positive multiple of the {devices} devices, got "
            f"{given.batch_size}"
        )
    other = given.against and reference.read(given.against, extractor)
    data = named(given.data, given.data_dir)
    images = reference.images_of(data, given.split)
    file = reference.cached(data, given.split, images, extractor)
    if file.is_file():
        print(f"{file} is there already")
    else:
        reference.make(file, images, given.batch_size, extractor)
        print(f"wrote {file}")
    made = reference.read(file, extractor)
    print(
        f"{made.about['num_reference']} images, {extractor.described()}, Inception "
        f"score {made.about['reference_inception_score']:.4g}"
    )
    if other:
        distance = frechet_distance(*made[:2], *other[:2])
        print(f"Frechet distance to {given.against}: {distance:.4g}")


def main(argv: list[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--protocol", default="paper", choices=list(PROTOCOLS))
    parser.add_argument("--data_dir")
    parser.add_argument("--inception")
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--against", type=path_argument)
    given = parser.parse_args(argv)
    try:
        statistics(given)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
