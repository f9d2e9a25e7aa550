"""What each layer holds: how well a small classifier tells labels from it alone."""

import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jebm
from experiments.data.pixels import to_unit
from experiments.runtime.batching import map_batches
from experiments.runtime.files import write_json

_NUM_IMAGES = {"train": 10_000, "test": 5_000}


def write_probes(key, model, params, splits, file: pathlib.Path, batch_size: int):
    """Writes the accuracy of a probe of each layer, see `accuracies`.

    Samples of the posterior of training images teach the probes, and those of held-out
    images test them.
    """
    drawn, labels = {}, {}
    for i, (name, most) in enumerate(_NUM_IMAGES.items()):
        images, known = splits[name]
        num = min(most, len(images))

        def draw(key, indices, images=images):
            x = to_unit(jnp.asarray(images[indices]))
            return jebm.posterior_sample(key, model, params, x)

        key_split = jax.random.fold_in(key, i)
        drawn[name] = map_batches(key_split, draw, np.arange(num), batch_size)
        labels[name] = known[:num]
    found = {
        f"z_{i + 1}": accuracies(
            *(drawn["train"][i], labels["train"], drawn["test"][i], labels["test"])
        )
        for i in range(len(model.backbone.latent_shapes))
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return file


def accuracies(
    latents: np.ndarray,
    labels: np.ndarray,
    test_latents: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    """Accuracy of a probe of two linear layers, 256 hidden (arXiv 2310.09604, Table 1).

    Latents are [N, *shape], labels [N]. With it goes what is reached by always naming
    the most frequent class, "chance".

    Example:
      >>> labels = np.arange(200) % 2
      >>> accuracies(labels[:, None], labels, labels[:20, None], labels[:20])
      {'accuracy': 1.0, 'chance': 0.5}
    """
    probe = make_pipeline(
        StandardScaler(),
        MLPClassifier((256,), max_iter=30, random_state=0),
    )
    with warnings.catch_warnings():
        # Fixed and short: it compares layers, and is not to be the best classifier.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(latents.reshape(len(latents), -1), labels)
    predicted = probe.predict(test_latents.reshape(len(test_latents), -1))
    most_frequent = np.bincount(labels).argmax()
    return {
        "accuracy": float(np.mean(predicted == test_labels)),
        "chance": float(np.mean(test_labels == most_frequent)),
    }
