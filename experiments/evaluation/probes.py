"""What each layer holds: how well a small classifier tells labels from it alone."""

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
from experiments.runs import Run
from experiments.runtime.batching import map_batches

_NUM_IMAGES = {"train": 10_000, "test": 5_000}


def probe_layers(key: jax.Array, run: Run) -> dict[str, dict[str, float]]:
    """Measures the accuracy of a probe of each layer, "z_1" and above.

    Samples of the posterior of training images teach the probes, and those of held-out
    images test them.
    """
    drawn, labels = {}, {}
    for i, (name, most) in enumerate(_NUM_IMAGES.items()):
        images = run.training if name == "train" else run.heldout
        known = run.splits[name].labels
        num = min(most, len(images))

        def draw(key, indices, images=images):
            x = to_unit(jnp.asarray(images[indices]))
            return jebm.posterior_sample(key, run.model, run.params, x)

        key_split, size = jax.random.fold_in(key, i), run.experiment.eval.batch_size
        drawn[name] = map_batches(key_split, draw, np.arange(num), size)
        labels[name] = known[:num]
    return {
        f"z_{i + 1}": accuracies(
            *(drawn["train"][i], labels["train"], drawn["test"][i], labels["test"])
        )
        for i in range(len(run.model.backbone.latent_shapes))
    }


def accuracies(
    latents: np.ndarray,
    labels: np.ndarray,
    test_latents: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    """Trains a probe of two linear layers, 256 hidden (arXiv 2310.09604, Table 1).

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
