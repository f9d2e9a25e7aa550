"""One statistic of two tests: unlikely latents, and images that are not as expected.

An image from elsewhere may show in its latents, which the prior finds unlikely, or in
its pixels, which the upper layers do not expect. One score cannot weigh the two: a
generator with maps of latents may reconstruct images of elsewhere better than its own.
So each is compared with images of training, and the tail probabilities are combined
(Fisher, Statistical Methods for Research Workers, 1932; for generative models
arXiv 2203.01097):

    surprise(x) = - log P( T_1 >= T_1(x) ) - log P( T_2 >= T_2(x) )
    T_1 = -log p_beta(z) + E(z), with all layers given the image
    T_2 = -log p(x|z), with the lowest layer drawn from the prior given those above
"""

import numpy as np

from experiments.evaluation.layer_scores import LayerTerms

NAME = "surprise"
_TAIL = 0.05  # of the known values, beyond which the tail is an exponential


def surprise(terms: LayerTerms, known: LayerTerms) -> np.ndarray:
    """Returns the statistic of the module's docstring, [N]: high for elsewhere.

    Args:
      terms: of the images.
      known: of images of training, which the tail probabilities are of.

    Example:
      >>> nats = lambda *values: (np.array(values),)
      >>> known = LayerTerms(nats(-1.0, -2.0, -3.0), nats(-1.0, -2.0, -3.0))
      >>> images = LayerTerms(nats(-2.0, -9.0), nats(-2.0, -9.0))
      >>> usual, unusual = surprise(images, known)
      >>> bool(unusual > usual)
      True
    """
    total = np.zeros(len(terms.log_latents[0]))
    for values, of_known in zip(_tests(terms), _tests(known), strict=True):
        total += -log_tail(values, of_known)
    return total


def _tests(terms):
    lowest_drawn = min(1, len(terms.log_likelihood) - 1)  # one layer has none above
    return -terms.log_latents[0], -terms.log_likelihood[lowest_drawn]


def log_tail(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the log of the probability that a known value is as large, [N].

    It is the share of known values, and beyond the largest twentieth of these an
    exponential of their mean excess, so that values beyond all known ones are ranked.

    Example:
      >>> known = np.arange(100.0)
      >>> np.exp(log_tail(np.array([49.5, 94.05]), known)).round(2)
      array([0.5 , 0.05])
    """
    ordered = np.sort(known)
    start = np.quantile(ordered, 1 - _TAIL)
    excess = max(float(np.mean(ordered[ordered >= start] - start)), 1e-12)
    above = len(ordered) - np.searchsorted(ordered, values, side="left")
    body = np.log(np.clip(above / len(ordered), _TAIL, 1.0))
    return np.where(values > start, np.log(_TAIL) - (values - start) / excess, body)
