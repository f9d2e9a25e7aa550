"""Converts a published NVAE checkpoint to a directory that `jebm.load` reads.

    python -m tools.convert.nvae CHECKPOINT.pt OUT [--min_log_scale=-2]

The official code of NVAE (arXiv 2007.03898) or of VAEBM (arXiv 2010.00654) writes
CHECKPOINT.pt, whose own `args` describe the network. The tool unpickles nothing but
tensors, containers and the namespace of these args, and needs PyTorch
(`pip install -e '.[convert]'`). It must know every tensor, and none may be missing.
With a Gaussian decoder VAEBM's likelihood keeps log sigma above -2 and NVAE's does not;
the checkpoint does not say which, so say it by --min_log_scale.

OUT gets model.json, checkpoints/ and nvae_args.json. The model has no energy. Sample
from it, or take it as the backbone of `learning.method = "two_stage"`.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import jebm
from experiments.errors import USER_ERRORS, ConfigError
from experiments.runtime.files import write_json
from tools.arguments import path_argument
from tools.convert import tensors

_MOST = 10_000  # of anything that is counted
_SIZES = {"mnist": 28, "omniglot": 28, "cifar10": 32, "ffhq": 256}
# What `args` hold besides the network's shape: training, paths, processes.
_IRRELEVANT = """
    root save data batch_size learning_rate learning_rate_min weight_decay
    weight_decay_norm weight_decay_norm_init weight_decay_norm_anneal epochs
    warmup_epochs fast_adamax kl_anneal_portion kl_const_portion kl_const_coeff
    cont_training num_proc_node node_rank local_rank global_rank num_process_per_node
    master_address seed distributed num_total_iter
"""


def model_spec(args: dict[str, Any], min_log_scale: float | None) -> dict[str, Any]:
    """Converts the args of a checkpoint to what `jebm.build` takes.

    Raises:
      ConfigError: for an arg that is missing, not known, or of a network that is not
        supported, by its name.
    """
    known = {k: v for k, v in args.items() if k not in _IRRELEVANT.split()}
    # What the first checkpoints do not say yet.
    known = {
        "ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10,
        "num_nf": 0, "num_x_bits": 8,
    } | known  # fmt: skip

    def take(name, *supported):
        if name not in known:
            raise ConfigError(f"the checkpoint's args do not hold {name!r}")
        value = known.pop(name)
        if supported and value not in supported:
            raise ConfigError(
                f"the checkpoint's {name} is {value!r}; supported: {list(supported)}"
            )
        return value

    def take_count(name, least=1):
        value = take(name)
        if type(value) is not int or not least <= value <= _MOST:
            raise ConfigError(
                f"the checkpoint's {name} is {value!r}; expected an integer from "
                f"{least} to {_MOST}"
            )
        return value

    take("arch_instance", "res_mbconv")
    dataset = take("dataset")
    family, _, side = dataset.rpartition("_") if isinstance(dataset, str) else [""] * 3
    sized = family in ("celeba", "imagenet", "lsun_bedroom", "lsun_church")
    sized = sized and side.isascii() and side.isdigit() and len(side) < 5
    if not (sized or (isinstance(dataset, str) and dataset in _SIZES)):
        raise ConfigError(
            f"the checkpoint's dataset is {dataset!r}, which is not known"
        )
    size = int(side) if sized else _SIZES[dataset]
    grey = dataset in ("mnist", "omniglot")

    scales, most = take_count("num_latent_scales"), take_count("num_groups_per_scale")
    least = take_count("min_groups_per_scale")
    adaptive = take("ada_groups", True, False)
    groups = [most]
    while len(groups) < scales:
        groups.append(max(groups[-1] // 2, least) if adaptive else most)
    if sum(groups) == 1:
        raise ConfigError("a checkpoint with a single group is not supported")

    halvings = take_count("num_preprocess_blocks")
    take("num_postprocess_blocks", halvings)
    backbone = {
        "name": "nvae",
        "groups": groups,
        "latent_channels": take_count("num_latent_per_group"),
        "width": take_count("num_channels_dec"),
        "encoder_width": take_count("num_channels_enc"),
        "image_halvings": halvings,
        "preprocess_cells": take_count("num_preprocess_cells"),
        "postprocess_cells": take_count("num_postprocess_cells"),
        "encoder_cells": take_count("num_cell_per_cond_enc"),
        "decoder_cells": take_count("num_cell_per_cond_dec"),
        "num_flows": take_count("num_nf", least=0),
        "squeeze_excitation": take("use_se", True, False),
        "residual_posterior": take("res_dist", True, False),
        "padding": 2 if grey else 0,
        "bits": take_count("num_x_bits"),
    }
    mixtures = take_count("num_mixture_dec")
    if grey:
        likelihood = {"name": "bernoulli"}
    elif mixtures == 1:
        likelihood = {"name": "learned_gaussian", "min_log_scale": min_log_scale}
    else:
        likelihood = {"name": "logistic_mixture", "num_mixtures": mixtures}
        likelihood["bits"] = backbone["bits"]
    if min_log_scale is not None and likelihood["name"] != "learned_gaussian":
        raise ConfigError("--min_log_scale is of a Gaussian decoder; this is not one")
    if known:
        raise ConfigError(
            f"the checkpoint's args hold unknown settings {sorted(known)}"
        )
    return {
        "image_shape": [size, size, 1 if grey else 3],
        "backbone": backbone,
        "energy": None,
        "likelihood": likelihood,
        "chains": {"posterior": {"start": "encoder", "num_steps": 0}},
    }


def convert(model: jebm.Model, state: dict[str, np.ndarray]) -> jebm.Params:
    """Converts `state`, a network's state dict, to parameters of `model`, in its dtype.

    Raises:
      ConfigError: if a tensor is missing, not known, of another shape or not finite.
    """
    template = jax.eval_shape(jebm.init, jax.random.key(0), model)
    leaves = traverse_util.flatten_dict(template.backbone)
    name_of = dict(names(model.backbone, leaves))
    # Counters of the norms; kernels as they were last used, where they were kept.
    derived = ("num_batches_tracked", "weight_normalized")
    given = {name for name in state if not name.endswith(derived)}
    missing, unknown = (
        sorted(set(name_of.values()) - given),
        given - set(name_of.values()),
    )
    if missing or unknown:
        raise ConfigError(
            "the checkpoint's tensors are not those of its args: "
            f"{len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {sorted(unknown)[:3]}"
        )
    converted = {}
    for path, name in name_of.items():
        array = np.asarray(state[name])
        if array.dtype.kind != "f":
            raise ConfigError(
                f"the checkpoint's {name} holds no floating-point numbers"
            )
        if not np.isfinite(array).all():
            raise ConfigError(
                f"the checkpoint's {name} holds values that are not finite"
            )
        try:
            array = _turned(path, array)
            if path[1] == "image":
                array = array[..., order(model.likelihood)]
        except (IndexError, ValueError):
            raise ConfigError(
                f"the checkpoint's {name} has shape {np.shape(state[name])}, which is "
                "not one of its kind"
            ) from None
        if array.shape != leaves[path].shape:
            raise ConfigError(
                f"the checkpoint's {name} has shape {array.shape} after transposing, "
                f"and its args need {leaves[path].shape}"
            )
        converted[path] = np.ascontiguousarray(array)
    return jebm.Params(traverse_util.unflatten_dict(converted), {})


def _turned(path, array):
    """Moves channels last, as in Linen."""
    if path[-1] == "log_length":
        return array.reshape(-1)
    if path[-1] == "kernel":  # [out, in, (height, width)]
        return np.transpose(array, (*range(2, array.ndim), 1, 0))
    return np.moveaxis(array, 0, -1) if path[-1] == "top" else array


def order(likelihood):
    """Returns where each output of the decoder stands among the published ones."""
    if not isinstance(likelihood, jebm.likelihoods.LogisticMixture):
        return slice(None)
    # Published: logits; of each colour its means, log s, and one set of coefficients.
    mixtures = likelihood.num_mixtures
    of_colours = np.arange(9 * mixtures).reshape(3, 3, mixtures).swapaxes(0, 1)
    return np.concatenate([np.arange(mixtures), mixtures + of_colours.reshape(-1)])


def published_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the tensor that makes a leaf of `shape` at `path`."""
    if path[-1] == "log_length":
        return (*shape, 1, 1, 1)
    if path[-1] == "kernel":
        return (*shape[:-3:-1], *shape[:-2])
    return (shape[-1], *shape[:-1])


def names(backbone, paths) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields each path in Linen's variables and the name of its tensor."""
    modules = _module_names(backbone)
    for path in paths:
        _, *parents, leaf = path
        if leaf == "top":
            yield path, "prior_ftr0"
            continue
        is_cell = len(parents) > 1 and parents[1].startswith("layers_")
        depth = 2 if is_cell or parents[0].startswith("flows_") else 1
        name = modules[tuple(parents[:depth])]
        if inner := tuple(parents[depth:]):
            encoder = parents[0].startswith(("preprocess", "encoders"))
            head = ("params", *parents[:depth], "Double_0", "Conv_0", "kernel")
            cell = _ENCODER_CELL if encoder else _decoder_cell(int(head in paths))
            name = f"{name}.{cell[inner]}"
        yield path, f"{name}.{_LEAVES[leaf]}"


def _module_names(backbone) -> dict[tuple[str, ...], str]:
    """Returns the published name of each cell and each convolution outside of cells."""
    depths, names = backbone.halvings, {}
    num = len(depths)
    names[("stem",)], names[("encoder_top",)] = "stem", "enc0.1"
    names[("image",)] = "image_conditional.1"
    for d in range(backbone.image_halvings):
        for kind, published, cells in (
            ("preprocess", "pre_process", backbone.preprocess_cells),
            ("postprocess", "post_process", backbone.postprocess_cells),
        ):
            for c in range(cells):
                names[f"{kind}_{d}", f"layers_{c}"] = f"{published}.{d * cells + c}"

    # The towers count cells and what joins them, in the order that data takes.
    up = []
    for i in range(num):
        halved = i > 0 and depths[i] > depths[i - 1]
        cells = range(backbone.encoder_cells + halved)
        up += [(f"encoders_{i}", f"layers_{c}") for c in cells]
        up += [(f"combiners_{i}",)] * (i < num - 1)
    down = []
    for i in reversed(range(num)):
        if i < num - 1:
            cells = range(backbone.decoder_cells + (depths[i] < depths[i + 1]))
            down += [(f"decoders_{i}", f"layers_{c}") for c in cells]
        down.append((f"writers_{i}",))
    for published, tower in (("enc_tower", up), ("dec_tower", down)):
        for k, module in enumerate(tower):
            joins = len(module) == 1
            names[module] = f"{published}.{k}" + (".conv" if joins else "")

    for i in range(num):
        g = num - 1 - i  # counted from the top
        names[(f"posteriors_{i}",)] = f"enc_sampler.{g}"
        names[(f"priors_{i}",)] = f"dec_sampler.{g - 1}.1"
        for n in range(2 * backbone.num_flows):
            cell = f"nf_cells.{g * backbone.num_flows + n // 2}.cell{n % 2 + 1}"
            parts = ("conv.convz.0", "conv.convz.2", "mu.conv_0")
            for k, part in enumerate(parts):
                names[f"flows_{i}", f"CausalConv_{3 * n + k}"] = f"{cell}.{part}"
    return names


_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "log_length": "log_weight_norm",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_EXCITATION = {
    ("SqueezeExcitation_0", "Dense_0"): "se.se.0",
    ("SqueezeExcitation_0", "Dense_1"): "se.se.2",
}
_ENCODER_CELL = _EXCITATION | {
    ("BatchNorm_0",): "_ops.0.bn_act",
    ("Conv_0",): "_ops.0.conv_0",
    ("BatchNorm_1",): "_ops.1.bn_act",
    ("Conv_1",): "_ops.1.conv_0",
    **{("Halve_0", f"Conv_{k}"): f"skip.conv_{k + 1}" for k in range(4)},
}


def _decoder_cell(first):
    """Names a decoder cell's parts; its list starts at `first`, 1 after a doubling."""
    return _EXCITATION | {
        ("BatchNorm_0",): f"_ops.0.conv.{first}.bn",
        ("PlainConv_0",): f"_ops.0.conv.{first + 1}.conv.0",
        ("BatchNorm_1",): f"_ops.0.conv.{first + 1}.conv.1",
        ("PlainConv_1",): f"_ops.0.conv.{first + 2}.conv.0",
        ("BatchNorm_2",): f"_ops.0.conv.{first + 2}.conv.1",
        ("PlainConv_2",): f"_ops.0.conv.{first + 3}",
        ("BatchNorm_3",): f"_ops.0.conv.{first + 4}.bn",
        ("Double_0", "Conv_0"): "skip.1",
    }


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads the args and the tensors of a checkpoint; no code in it runs.

    Raises:
      ConfigError: if it is no such file, or PyTorch is not installed.
    """
    content = tensors.load(
        path, "a checkpoint of tensors", lambda content: content, (argparse.Namespace,)
    )
    import torch

    args = content.get("args") if isinstance(content, dict) else None
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not (isinstance(args, argparse.Namespace) and isinstance(state, dict)):
        raise ConfigError(
            f"{path} is not an NVAE checkpoint: it must hold 'args' and 'state_dict'"
        )
    if not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in state.items()
    ):
        raise ConfigError(f"{path} holds something else than tensors in 'state_dict'")
    return vars(args), {name: tensor.numpy() for name, tensor in state.items()}


def main(argv: list[str] | None = None) -> None:
    """Converts one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=path_argument)
    parser.add_argument("out", type=path_argument)
    parser.add_argument("--min_log_scale", type=float)
    given = parser.parse_args(argv)
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise ConfigError(f"{given.out} is not empty")
        args, state = read(given.checkpoint)
        spec = model_spec(args, given.min_log_scale)
        try:
            model = jebm.build(spec)
        except ValueError as error:
            raise ConfigError(f"the checkpoint's args: {error}") from error
        params = convert(model, state)
        params = jax.tree.map(lambda a: a.astype(np.float32), params)
        given.out.mkdir(parents=True, exist_ok=True)
        write_json(given.out / "nvae_args.json", {k: str(v) for k, v in args.items()})
        jebm.save(given.out, jebm.build(spec), params)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    size = sum(a.size for a in jax.tree.leaves(params))
    print(
        f"wrote {given.out}: {len(jax.tree.leaves(params))} tensors, {size:,} numbers"
    )


if __name__ == "__main__":
    main()
