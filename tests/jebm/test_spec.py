"""`to_spec` is the inverse of `build`, and "module:Class" names what is the user's."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.backbones import Vector

HERE = __name__


class Own(Vector):
    """A backbone of the user's."""


class OwnEnergy(nn.Module):
    widths: tuple[int, ...] = (4,)

    @nn.compact
    def __call__(self, latents):
        return nn.Dense(1)(latents[0])[:, 0]


@dataclasses.dataclass(frozen=True)
class OwnChain(jebm.MALA):
    """A chain of the user's."""


@dataclasses.dataclass(frozen=True)
class OwnLikelihood(jebm.likelihoods.Gaussian):
    """A likelihood of the user's."""


def init_fn(key, latents):
    return jnp.zeros(())


def apply_fn(weight, latents):
    return weight * latents[0][:, 0]


SPECS = [
    {"image_shape": (8, 8, 1)},
    {
        "image_shape": [4, 4, 3],
        "backbone": {"name": "ladder", "latent_shapes": [[2, 2, 3], [4]]},
        "energy": {"name": "joint_conv", "channels": 3, "widths": [7]},
        "likelihood": {"name": "logistic_mixture", "num_mixtures": 2},
        "chains": {
            "prior": {"name": "mala", "num_steps": 7, "step_size": 0.25},
            "posterior": {"num_steps": 3, "space": "z", "start": "prior"},
        },
        "remat": True,
    },
    {
        "image_shape": [8, 8, 1],
        "backbone": {
            "name": "nvae", "groups": [1, 1], "width": 2, "compute_dtype": "bfloat16",
        },
        "energy": None,
        "chains": {
            "prior": {"name": "tempered", "inverse_temperatures": [0, 0.5, 1]},
            "posterior": {"name": "underdamped", "friction": 0.5},
        },
    },
    {
        "image_shape": [8, 8, 1],
        "backbone": {"name": f"{HERE}:Own", "encoder_widths": [3]},
        "energy": {"name": f"{HERE}:OwnEnergy", "widths": [2, 2]},
        "likelihood": {"name": f"{HERE}:OwnLikelihood", "scale": 0.3},
    },
    {
        "image_shape": [8, 8, 1],
        "energy": {
            "name": "function",
            "init_fn": f"{HERE}:init_fn",
            "apply_fn": f"{HERE}:apply_fn",
        },
    },
    {
        "image_shape": [8, 8, 1],
        "energy": {
            "name": "prior",
            "prior": {
                "name": "tilted_flow",
                "flow": {"prior": {"name": "flow", "width": 4, "depth": 1}},
                "joint": {
                    "prior": {
                        "name": "joint",
                        "energy": {"energy": {"name": "joint", "widths": [3]}},
                    }
                },
            },
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_spec_of_a_model_builds_it_again(spec):
    model = jebm.build(spec)
    written = json.loads(json.dumps(jebm.to_spec(model)))
    again = jebm.build(written)
    assert again == model and hash(again) == hash(model)
    assert jebm.to_spec(again) == written
    for part in ("backbone", "energy", "likelihood"):
        given = spec.get(part)
        if given:
            assert written[part]["name"] == given["name"]
    params = jax.eval_shape(lambda key: jebm.init(key, model), jax.random.key(0))
    assert isinstance(params, jebm.Params)


@pytest.mark.parametrize("name", ["vector", "ladder", "nvae"])
def test_spec_without_a_compute_dtype_is_of_float32(name):
    spec = {"image_shape": (8, 8, 1), "backbone": {"name": name}}
    if name == "ladder":
        spec["backbone"]["latent_shapes"] = ((4, 4, 2), (3,))
    model = jebm.build(spec)
    written = jebm.to_spec(model)
    for part in ("backbone", "energy"):
        assert written[part].pop("compute_dtype") == "float32"
    assert jebm.build(written) == model


@pytest.mark.parametrize("part", ["backbone", "energy"])
def test_unknown_compute_dtype_is_refused_by_name(part):
    with pytest.raises(ValueError) as raised:
        jebm.build({"image_shape": (8, 8, 1), part: {"compute_dtype": "float16"}})
    assert str(raised.value) == (
        "unknown compute_dtype 'float16'; known: ['bfloat16', 'float32']; did you mean "
        "'bfloat16'?"
    )


def test_spec_holds_numbers_of_numpy():
    model = jebm.build({"image_shape": (8, 8, 1)})
    chains = jebm.Chains(jebm.MALA(3, np.float32(0.25)))
    spec = jebm.to_spec(dataclasses.replace(model, chains=chains))
    assert json.loads(json.dumps(spec))["chains"]["prior"]["step_size"] == 0.25


def test_spec_of_every_pretrained_model_is_complete():
    for name in jebm.pretrained.names():
        model, _ = jebm.load_pretrained(name)
        assert jebm.build(json.loads(json.dumps(jebm.to_spec(model)))) == model


def local_class():
    class Local(Vector):
        """Defined inside a function."""

    return Local


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda: jebm.Model((8, 8, 1), local_class()(), None),
            r"'local_class.<locals>.Local' of .* cannot be imported again",
        ),
        (
            lambda: jebm.Model(
                (8, 8, 1), Vector(), jebm.energies.Function(init_fn, lambda p, z: 0)
            ),
            "<lambda>' of .* cannot be imported again",
        ),
    ],
)
def test_what_no_import_finds_again_has_no_spec(model, words):
    with pytest.raises(ValueError, match=words):
        jebm.to_spec(model())


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("backbone", {"name": "no.such:Thing"}, "cannot import 'no.such'"),
        ("backbone", {"name": ":Thing"}, "cannot import ''"),
        ("backbone", {"name": f"{HERE}:Ownn"}, "has no 'Ownn'; did you mean 'Own'"),
        (
            "backbone",
            {"name": f"{HERE}:OwnEnergy"},
            "class of Module with lat",
        ),
        ("backbone", {"name": "json:dumps"}, "must be a class of Module"),
        ("backbone", {"name": f"{HERE}:Own", "depth": 3}, r"\['depth'\]; known: "),
        ("energy", {"name": "json:JSONDecoder"}, "must be a class of Module, got"),
        (
            "energy",
            {"name": "prior", "prior": {"name": "flux"}},
            "unknown prior 'flux'",
        ),
        ("energy", {"name": "prior", "width": 3}, r"energy 'prior': \['width'\]"),
        (
            "energy",
            {"name": "prior", "prior": {"name": "flow", "width": {"a": 1}}},
            "expected no mapping here",
        ),
        ("likelihood", {"name": "json:JSONDecoder"}, "object with num_outputs, mean"),
        ("backbone", {"name": "mine"}, "unknown backbone 'mine'.* 'module:Class'"),
        (
            "energy",
            {"name": "function", "init_fn": "x", "apply_fn": f"{HERE}:apply_fn"},
            "energy init_fn must be the name 'module:function', got 'x'",
        ),
        (
            "chains",
            {"prior": {"name": "hmc"}},
            "unknown kernel of the prior chain 'hmc'",
        ),
        ("chains", {"prior": 5}, "prior chain must be a mapping, got 5"),
    ],
)
def test_wrong_names_are_refused_with_what_is_known(part, value, words):
    with pytest.raises(ValueError, match=words):
        jebm.build({"image_shape": (8, 8, 1), part: value})


def test_chain_of_the_users_comes_back():
    chains = jebm.Chains(prior=OwnChain(3, 0.2))
    model = jebm.Model((8, 8, 1), Vector(), None, chains=chains)
    spec = json.loads(json.dumps(jebm.to_spec(model)))
    assert spec["chains"]["prior"]["name"].endswith("test_spec:OwnChain")
    assert jebm.build(spec) == model
