"""Models as plain values, and back: `build` and its inverse, `to_spec`.

A spec is what a run's `model.json` holds. Parts are named by the registries below, or
by "module:Class" where they are yours: that module is imported then, so build a spec
only if you would run its author's code.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jebm.backbones import NVAE, Ladder, Vector
from jebm.energies import Conv, Function, Joint, JointConv, Layerwise, State
from jebm.kernels import KERNELS, RENAMED_SPACES, Chain, Chains, Langevin
from jebm.likelihoods import Bernoulli, Gaussian, LearnedGaussian, LogisticMixture
from jebm.model import Model, check_image_shape
from jebm.names import did_you_mean, unknown_name_message
from jebm.priors import PRIORS, Prior
from jebm.priors.energy import Tilt, tilted_by

BACKBONES = {"vector": Vector, "ladder": Ladder, "nvae": NVAE}
ENERGIES = {
    "layerwise": Layerwise,
    "joint": Joint,
    "conv": Conv,
    "joint_conv": JointConv,
    "state": State,
    "function": Function,
}
LIKELIHOODS = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "learned_gaussian": LearnedGaussian,
    "logistic_mixture": LogisticMixture,
}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A part of the model: what may be named, and what a class of yours must be."""

    name: str
    registry: Mapping[str, type]
    base: type = nn.Module
    verbs: tuple[str, ...] = ()


_BACKBONE = _Kind(
    "backbone",
    BACKBONES,
    verbs=("latent_shapes", "start", "prior", "merge", "decode"),
)
_ENERGY = _Kind("energy", ENERGIES)
_LIKELIHOOD = _Kind(
    "likelihood", LIKELIHOODS, object, ("num_outputs", "mean", "log_prob")
)
_PRIOR = _Kind("prior", PRIORS, Prior)
_CHAIN = _Kind("chain", KERNELS, Chain)
_LAW = "prior"  # the name of an energy that is the tilt of a prior of `jebm.priors`


def build(spec: Mapping[str, Any]) -> Model:
    """Builds a model from plain values, as stored in a run's `model.json`.

    Args:
      spec: a mapping with `image_shape` and, all optional, `backbone`, `energy` and
        `likelihood`, each a mapping of `name` and that class's attributes, and
        `chains`, a mapping of `prior` and `posterior`, each of a kernel's `name`,
        "langevin" where it is left out, and its attributes, and `remat`.
        `energy=None` makes the Gaussian twin. An energy of the name "prior" is that of
        `jebm.priors.as_model`: its `prior` has a name of `jebm.priors.PRIORS` and
        attributes. Lists are read as tuples. A name of the form "module:Class" is that
        of a class of yours.

    Returns:
      The model; `build(spec) == build(spec)`.

    Raises:
      ValueError: for an unknown name or attribute (the message lists the known ones),
        a missing `image_shape`, or a value that the named class refuses.

    Example:
      >>> model = build({"image_shape": [8, 8, 1], "backbone": {"latent_dims": [4, 2]}})
      >>> model.backbone.latent_shapes
      ((4,), (2,))
    """
    _check_known("field of the model", spec, _fields(Model))
    if "image_shape" not in spec:
        raise ValueError("the model needs an image_shape, (H, W, C)")
    image_shape = _freeze(spec["image_shape"])
    check_image_shape(image_shape)
    likelihood = _make(_LIKELIHOOD, spec.get("likelihood", {}))
    height, width, channels = image_shape
    outputs = (height, width, likelihood.num_outputs(channels))
    backbone = _make(_BACKBONE, spec.get("backbone", {}), output_shape=outputs)
    energy, law = spec.get("energy", {}), None
    if isinstance(energy, Mapping) and energy.get("name") == _LAW:
        _check_known("field of energy 'prior'", energy, ("name", "prior"))
        law, energy = _make(_PRIOR, energy.get("prior", {"name": "gaussian"})), None
    if energy is not None:
        energy = _make(_ENERGY, energy)
    chains = spec.get("chains", {})
    _check_known("chain", chains, _fields(Chains))
    defaults = {"prior": Chains().prior, "posterior": Langevin(20, 0.1)}
    made = {name: _chain(name, defaults[name], chains[name]) for name in chains}
    remat = spec.get("remat", False)
    model = Model(image_shape, backbone, energy, likelihood, Chains(**made), remat)
    return model if law is None else tilted_by(law, model)


def to_spec(model: Model) -> dict[str, Any]:
    """Describes a model by plain values: the inverse of `build`.

    Returns:
      A spec for JSON, with `build(to_spec(model)) == model`; every attribute is in it,
      so that it means the same where defaults change.

    Raises:
      ValueError: for a part that no import finds again: a class or a function that was
        defined inside a function or in the main program.

    Example:
      >>> model = build({"image_shape": (8, 8, 1)})
      >>> to_spec(model)["likelihood"]
      {'name': 'gaussian', 'scale': 0.15}
      >>> build(to_spec(model)) == model
      True
    """
    backbone = _describe(_BACKBONE, model.backbone)
    backbone.pop("output_shape", None)  # follows from image and likelihood
    energy: dict[str, Any] | None = None
    if isinstance(model.energy, Tilt):
        energy = {"name": _LAW, "prior": _describe(_PRIOR, model.energy.prior)}
    elif model.energy is not None:
        energy = _describe(_ENERGY, model.energy)
    return {
        "image_shape": list(model.image_shape),
        "backbone": backbone,
        "energy": energy,
        "likelihood": _describe(_LIKELIHOOD, model.likelihood),
        "chains": {
            name: _describe(_Kind(f"{name} chain", KERNELS, Chain), chain)
            for name, chain in vars(model.chains).items()
        },
        "remat": model.remat,
    }


def _make(kind: _Kind, options, **fixed):
    """Makes a part; of `fixed` attributes those that its class has."""
    if not isinstance(options, Mapping):
        raise ValueError(f"{kind.name} must be a mapping, got {options!r}")
    options = dict(options)
    name = options.pop("name", next(iter(kind.registry)))
    cls = _class(kind, name)
    fixed = {k: v for k, v in fixed.items() if k in _fields(cls)}
    _check_known(
        f"field of {kind.name} {name!r}", options, set(_fields(cls)) - set(fixed)
    )
    values = {k: _freeze(v) for k, v in (fixed | options).items()}
    if cls is Function:
        values = {k: _function(kind, k, v) for k, v in values.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a value of another type than the class expects
        raise ValueError(f"{kind.name} {name!r}: {error}") from error


def _class(kind: _Kind, name) -> Any:
    """Returns the class of that name, of the registry or of the user."""
    if isinstance(name, str) and ":" in name:
        cls = _imported(kind.name, name)
        missing = [verb for verb in kind.verbs if not hasattr(cls, verb)]
        if not (isinstance(cls, type) and issubclass(cls, kind.base)) or missing:
            lacks = f" with {', '.join(missing)}" if missing else ""
            raise ValueError(
                f"{kind.name} {name!r} must be a class of {kind.base.__name__}{lacks}, "
                f"got {cls!r}"
            )
        if not dataclasses.is_dataclass(cls):
            raise ValueError(f"{kind.name} {name!r} must be a dataclass, got {cls!r}")
        return cls
    if not isinstance(name, str) or name not in kind.registry:
        raise ValueError(
            f"{unknown_name_message(kind.name, name, kind.registry)}; "
            "one of yours is 'module:Class'"
        )
    return kind.registry[name]


def _imported(what: str, name: str) -> Any:
    """Imports what "module:attribute" names."""
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"{what} {name!r}: cannot import {module!r}: {error}"
        ) from error
    if not hasattr(imported, attribute):
        known = [n for n, value in vars(imported).items() if callable(value)]
        raise ValueError(
            f"{what} {name!r}: {module} has no {attribute!r}"
            f"{did_you_mean(attribute, known)}"
        )
    return getattr(imported, attribute)


def _function(kind: _Kind, field: str, name) -> Callable:
    """Returns a function by its name, as a field of `energies.Function`."""
    if callable(name):
        return name
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(
            f"{kind.name} {field} must be the name 'module:function', got {name!r}"
        )
    return _imported(f"{kind.name} {field}", name)


def _describe(kind: _Kind, part) -> dict[str, Any]:
    """Returns the name of a part and its attributes as plain values."""
    cls = type(part)
    names = {c: name for name, c in kind.registry.items()}
    name = names.get(cls) or _importable(kind.name, cls)
    fields = {f: _thaw(kind.name, getattr(part, f)) for f in _fields(cls)}
    return {"name": name, **fields}


def _importable(what: str, value) -> str:
    """Returns "module:name" of a class or a function, if that leads back to it."""
    module, name = value.__module__, value.__qualname__
    if (
        module == "__main__"
        or getattr(sys.modules.get(module), name, None) is not value
    ):
        raise ValueError(
            f"{what} {name!r} of {module} cannot be imported again: define it at the "
            "top level of a module"
        )
    return f"{module}:{name}"


_LINEN_FIELDS = ("parent", "name")


def _fields(cls) -> list[str]:
    """Names a dataclass's own fields."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in _LINEN_FIELDS]


def _chain(name: str, default: Chain, options) -> Chain:
    """Makes a chain, with the values of `default` where `options` has none."""
    what = f"{name} chain"
    if not isinstance(options, Mapping):
        raise ValueError(f"{what} must be a mapping, got {options!r}")
    options = {k: _freeze(v) for k, v in options.items()}
    kernel = options.pop("name", "langevin")
    cls = _class(_Kind(f"kernel of the {what}", KERNELS, Chain), kernel)
    _check_known(f"field of the {what}", options, _fields(cls))
    # Specs of older runs hold names that chains themselves refuse.
    if (space := str(options.get("space"))) in RENAMED_SPACES:
        options["space"] = RENAMED_SPACES[space]
    try:
        return cls(**(dataclasses.asdict(default) | options))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _check_known(what, options, known):
    if not isinstance(options, Mapping):
        raise ValueError(f"{what}: expected a mapping, got {options!r}")
    strange = sorted(set(options) - set(known))
    if strange:
        raise ValueError(
            f"unknown {what}: {strange}; known: {sorted(known)}"
            f"{did_you_mean(strange[0], known)}"
        )


def _freeze(value):
    """Makes lists, also nested ones, into tuples: module fields must hash."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, Mapping):
        parts = [kind for kind in _PARTS if set(value) == {kind.name}]
        if not parts:
            raise ValueError(f"expected no mapping here, got {value!r}")
        return _make(parts[0], value[parts[0].name])
    return value


# What an attribute may itself be, written {"energy": {"name": ...}}.
_PARTS = (_PRIOR, _ENERGY, _CHAIN)


def _thaw(what, value):
    """Makes tuples into lists and functions into their names: what JSON holds."""
    if isinstance(value, list | tuple):
        return [_thaw(what, v) for v in value]
    for kind in _PARTS:
        if isinstance(value, kind.base):
            return {kind.name: _describe(kind, value)}
    if callable(value):
        return _importable(what, value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{what}: {value!r} is no plain value")
