"""Checks whether a backbone keeps the contract of `jebm.hierarchy`.

A backbone that breaks the contract often still runs, but samples something else: a
scale that is not positive, a verb that draws by itself, examples that mix. The check
runs the backbone with random parameters on three examples.
"""

import copy
import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jebm.distributions import Normal
from jebm.hierarchy import (
    has_encoder,
    infer,
    log_standard_normal,
    top_down,
    transport,
)
from jebm.langevin import normal_like
from jebm.model import Model, init

_BATCH = 3
_VERBS = ("start", "prior", "merge", "decode")
_ENCODER_VERBS = ("encode", "posterior")


def check_backbone(model: Model, *, seed: int = 0) -> None:
    """Raises one clear error where the model's backbone breaks the contract.

    Args:
      model: the model; its `image_shape` and likelihood say what `decode` must return.
      seed: of the parameters and the noise that the verbs are tried with.

    Raises:
      ValueError: naming the verb or attribute, what it must be and what it is.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> check_backbone(model)
      >>> from jebm.backbones.vector import Vector
      >>> wrong = Vector(output_shape=(8, 8, 3))
      >>> check_backbone(jebm.Model((8, 8, 1), wrong, energy=None))
      Traceback (most recent call last):
        ...
      ValueError: backbone.decode(state) must return [3, 8, 8, 1], got [3, 8, 8, 3]
    """
    _check_declared(model.backbone)
    try:
        variables, eps = _check_generator(model, jax.random.key(seed))
        if has_encoder(model.backbone):
            _check_encoder(model, variables, eps)
    except _BrokenError as error:
        # Anew, without what the tracing between there and here has to say.
        raise ValueError(str(error)) from error.__cause__


class _BrokenError(ValueError):
    """The sentence that `check_backbone` ends with."""


def _check_declared(backbone):
    """Checks what can be told of a backbone without running it."""
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"backbone must be a Linen module, got {type(backbone).__name__}"
        )
    missing = [v for v in _VERBS if not callable(getattr(backbone, v, None))]
    if has_encoder(backbone):
        missing += [
            v for v in _ENCODER_VERBS if not callable(getattr(backbone, v, None))
        ]
    if missing:
        raise ValueError(f"backbone lacks the verbs {missing}, see jebm.hierarchy")
    if hasattr(type(backbone), "posterior") and not hasattr(backbone, "has_encoder"):
        raise ValueError(
            "backbone has a posterior and no attribute has_encoder: set it to True, "
            "or to False where the encoder is not to be used"
        )
    shapes = getattr(backbone, "latent_shapes", None)
    if (
        not isinstance(shapes, tuple)
        or not shapes
        or not all(isinstance(shape, tuple) and shape for shape in shapes)
        or not all(isinstance(n, int) and n > 0 for shape in shapes for n in shape)
    ):
        raise ValueError(
            "backbone.latent_shapes must be a tuple of one shape per layer, bottom to "
            f"top, such as ((16,), (8,)), got {shapes!r}"
        )
    for field in dataclasses.fields(backbone):
        if field.name not in ("parent", "name"):
            _check_value(field.name, getattr(backbone, field.name))


def _check_value(name, value):
    """Demands a value that compares and hashes: equal models then share one trace."""
    try:
        hash(value)
    except TypeError:
        raise ValueError(
            f"backbone.{name} must be hashable, got {type(value).__name__}: "
            "a tuple does for a list, and arrays belong to the parameters"
        ) from None
    if copy.deepcopy(value) != value:
        raise ValueError(
            f"backbone.{name} does not compare by value, so that equal models would "
            f"not share one trace: {value!r}"
        )


class _Watched:
    """A bound backbone whose verbs check the shapes that they return, by name."""

    def __init__(self, backbone: Any, output_shape: tuple[int, ...]):
        self._backbone, self._output_shape = backbone, output_shape
        self.latent_shapes = backbone.latent_shapes

    def start(self, batch):
        return self._call("start", f"{batch}", batch)

    def prior(self, i, state):
        prior = self._call("prior", f"{i}, state", i, state)
        description = f"backbone.prior({i}, state)"
        if not isinstance(prior, Normal):
            raise _BrokenError(
                f"{description} must return a jebm.distributions.Normal, "
                f"got {type(prior).__name__}"
            )
        for name, value in prior._asdict().items():
            _check_array(f"{description}.{name}", value, self.latent_shapes[i])
        return prior

    def merge(self, i, state, z):
        return self._call("merge", f"{i}, state, z", i, state, z)

    def decode(self, state):
        output = self._call("decode", "state", state)
        _check_array("backbone.decode(state)", output, self._output_shape)
        return output

    def encode(self, x):
        return self._call("encode", "x", x)

    def posterior(self, i, state, features, prior, noise):
        arguments = f"{i}, state, features, prior, noise"
        returned = self._call("posterior", arguments, i, state, features, prior, noise)
        description = f"backbone.posterior({arguments})"
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise _BrokenError(
                f"{description} must return (z, log q), got {returned!r}"
            )
        _check_array(f"z of {description}", returned[0], self.latent_shapes[i])
        _check_array(f"log q of {description}", returned[1], ())
        return returned

    def _call(self, verb, description, *arguments):
        try:
            return getattr(self._backbone, verb)(*arguments)
        except Exception as error:  # of any kind: it is the user's code
            line = next(iter(str(error).splitlines()), "")
            raise _BrokenError(
                f"backbone.{verb}({description}) failed with "
                f"{type(error).__name__}: {line}"
            ) from error


def _check_array(description, value, shape):
    shape = (_BATCH, *shape)
    if jnp.shape(value) != shape:
        got = list(jnp.shape(value)) if hasattr(value, "shape") else repr(value)
        raise _BrokenError(f"{description} must return {list(shape)}, got {got}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise _BrokenError(f"{description} must be floating-point, got {value.dtype}")


def _check_generator(model, key):
    backbone = model.backbone
    height, width, channels = model.image_shape
    output_shape = (height, width, model.likelihood.num_outputs(channels))

    def generate(eps, wrap=lambda backbone: backbone):
        def generated(backbone):
            backbone = wrap(backbone)
            _, priors, state = top_down(backbone, len(eps[0]), transport(eps))
            return priors, backbone.decode(state)

        return generated

    def watched(eps):
        return generate(eps, lambda backbone: _Watched(backbone, output_shape))

    @_jit
    def first_try(key):
        key_init, key_move, key_noise = jax.random.split(key, 3)
        shapes = backbone.latent_shapes
        zeros = tuple(jnp.zeros((_BATCH, *shape)) for shape in shapes)
        eps = normal_like(key_noise, zeros)
        nn.init(watched(eps), backbone)(key_init)
        if has_encoder(backbone):
            x = jnp.zeros((_BATCH, *model.image_shape))
            nn.init(lambda b: infer(_Watched(b, ()), x, eps), backbone)(key_init)
        return _moved(init(key_init, model).backbone, key_move), eps

    # Here nothing may be written and there is no key: a verb that does either fails by
    # its name. It is traced each time, so that draws of NumPy's differ.
    def together(variables, eps):
        return nn.apply(watched(eps), backbone)(variables)

    @_jit
    def alone_and_slopes(variables, eps):
        def below(eps):
            """Reduces all that is drawn and decoded below any layer to one number."""
            results = nn.apply(generate(eps), backbone)(variables)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(results))

        second = tuple(e[1:2] for e in eps)
        alone = nn.apply(generate(second), backbone)(variables)
        return together(variables, eps), alone, jax.grad(below)(eps)

    variables, eps = first_try(key)
    priors, output = results = _jit(together)(variables, eps)
    for i, prior in _top_first(priors):
        scale = np.asarray(prior.scale)
        if not (scale > 0).all():  # NaN included
            raise _BrokenError(
                f"backbone.prior({i}, state).scale must be positive, got {scale.min()}"
            )
        if not np.isfinite(prior.loc).all():
            raise _BrokenError(f"backbone.prior({i}, state).loc must be finite")
    if not np.isfinite(output).all():
        raise _BrokenError("backbone.decode(state) must be finite")
    again, alone, slopes = alone_and_slopes(variables, eps)
    _check_equal(
        "two calls with the same arguments differ: a verb must be pure", results, again
    )
    _check_equal(
        "what an example draws depends on the others of its batch",
        jax.tree.map(lambda a: a[1:2], results),
        alone,
    )
    for i, slope in _top_first(slopes):
        if not np.isfinite(slope).all():
            raise _BrokenError(f"the generator's gradient at z_{i + 1} is not finite")
        if not np.any(slope):
            raise _BrokenError(
                f"z_{i + 1} reaches neither a prior below it nor the output: "
                f"does backbone.merge({i}, state, z) drop it?"
            )
    return variables, eps


def _check_encoder(model, variables, noise):
    backbone = model.backbone
    _check_modules(backbone, variables, noise)
    x = jax.random.uniform(jax.random.key(0), (_BATCH, *model.image_shape))

    def inferred(variables, x, noise, wrap=lambda backbone: backbone):
        def draw(backbone):
            return infer(wrap(backbone), x, noise)[:2]

        return nn.apply(draw, backbone)(variables)

    def together(variables, x, noise):
        return inferred(variables, x, noise, lambda b: _Watched(b, ()))

    small = [
        i for i, shape in enumerate(backbone.latent_shapes) if math.prod(shape) <= 1024
    ]

    @_jit
    def alone_and_volumes(variables, x, noise):
        second = tuple(n[1:2] for n in noise)
        alone = inferred(variables, x[1:2], second)

        def log_volume(i):
            """Computes log |det dz_i / dnoise_i| of the second example."""

            def moved(flat):
                moved = flat.reshape(second[i].shape)
                changed = (*second[:i], moved, *second[i + 1 :])
                return inferred(variables, x[1:2], changed)[0][i].ravel()

            return jnp.linalg.slogdet(jax.jacrev(moved)(second[i].ravel()))[1]

        return together(variables, x, noise), alone, [log_volume(i) for i in small]

    results = _jit(together)(variables, x, noise)
    for i, (z, log_q) in _top_first(zip(*results, strict=True)):
        if not (np.isfinite(z).all() and np.isfinite(log_q).all()):
            raise _BrokenError(f"backbone.posterior({i}, ...) must be finite")
    again, alone, volumes = alone_and_volumes(variables, x, noise)
    _check_equal(
        "two calls with the same arguments differ: a verb must be pure", results, again
    )
    _check_equal(
        "what is inferred of an example depends on the others of its batch",
        jax.tree.map(lambda a: a[1:2], results),
        alone,
    )
    for i, volume in zip(small, volumes, strict=True):
        expected = log_standard_normal((noise[i][1:2],))[0] - volume
        difference = float(alone[1][i][0] - expected)
        if not abs(difference) < 1e-3 * noise[i][0].size + 1e-3:
            raise _BrokenError(
                f"log q of backbone.posterior({i}, ...) is not the log-density, in "
                f"nats, that its map of standard normal noise gives to z_{i + 1}: off "
                f"by {difference:.3g}, for example"
            )


def _check_modules(backbone, variables, eps):
    """Demands that `encoder_modules` be those that the generator does not make."""

    def generate(backbone):
        _, _, state = top_down(backbone, _BATCH, transport(eps))
        return backbone.decode(state)

    generator = jax.eval_shape(nn.init(generate, backbone), jax.random.key(0))
    alone = sorted(variables["params"].keys() - generator.get("params", {}).keys())
    named = getattr(backbone, "encoder_modules", None)
    if not isinstance(named, tuple) or sorted(named) != alone:
        raise _BrokenError(
            "backbone.encoder_modules must name the entries of the parameters that "
            "encode and posterior alone make, "
            + (f"{tuple(alone)}" if alone else "(), as the generator makes them all")
            + f"; got {named!r}"
        )


def _top_first(layers):
    return reversed(list(enumerate(layers)))


# Each program runs once: what a compiler gains is less than it takes.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _moved(variables, key):
    """Moves parameters off their start: maps that begin at zero hide what they do."""
    params = variables.get("params", {})
    moved = jax.tree.map(
        lambda leaf, noise: leaf + 0.5 * noise / max((1, *leaf.shape[:1])) ** 0.5,
        params,
        normal_like(key, params),
    )
    return {**variables, "params": moved}


def _check_equal(description, first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        difference = np.abs(np.asarray(a) - np.asarray(b)).max()
        if difference > 1e-4 * (1 + np.abs(a).max()):
            raise _BrokenError(f"{description}; by up to {difference:.3g}")
