"""The training steps of `cifar10` and `mnist` in plain PyTorch, to be timed against.

The same networks and the same algorithm, written from the equations of docs/concepts.md
for one device: no other code of ours or of others is in it. `load` takes our
parameters, so that the numbers of both sides can be compared.

Images are [B, C, H, W] here, as PyTorch's convolutions have them.
"""

import contextlib
import functools
import math

import numpy as np
import torch
from torch import nn

ACTIVATIONS = {
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}


class Peer(nn.Module):
    """Generator, hierarchy, energies and, if the model has one, encoder.

    Args:
      spec: what `jebm.build` takes, with "backbone", "energy", "likelihood" and
        "chains" in full.

    Raises:
      ValueError: for a model of another kind than those of `cifar10` and `mnist`.
    """

    def __init__(self, spec: dict):
        super().__init__()
        backbone, energy = spec["backbone"], spec["energy"]
        kind = (
            backbone["name"],
            backbone["conditioning"],
            energy["name"],
            spec["likelihood"]["name"],
        )
        if kind != ("vector", "next", "layerwise", "gaussian"):
            raise ValueError(f"the peer has no model of the kind {kind}")
        height, width, channels = spec["image_shape"]
        self.image_shape = channels, height, width
        self.dims = backbone["latent_dims"]
        self.bound = backbone["log_scale_bound"]
        self.sigma_x = spec["likelihood"]["scale"]
        self.chains = spec["chains"]
        activation = ACTIVATIONS[backbone["activation"]]
        self.priors = nn.ModuleList(
            mlp(above, backbone["prior_widths"], 2 * dim, activation)
            for dim, above in zip(self.dims[:-1], self.dims[1:], strict=True)
        )
        decoder = deconv if backbone["decoder_type"] == "deconv" else image_mlp
        self.decoder = decoder(
            self.dims[0], backbone["decoder_widths"], self.image_shape, activation
        )
        widths = energy["widths"]
        if not isinstance(widths[0], list | tuple):
            widths = [widths] * len(self.dims)
        energy_activation = ACTIVATIONS[energy["activation"]]
        self.f = nn.ModuleList(
            mlp(dim, w, 1, energy_activation, bias=False)
            for dim, w in zip(self.dims, widths, strict=True)
        )
        self.has_encoder = "encoder_widths" in backbone
        if self.has_encoder:
            *widths, features = backbone["encoder_widths"]
            self.encoder = nn.Sequential(
                mlp(math.prod(self.image_shape), widths, features, activation),
                activation(),
            )
            above = (*self.dims[1:], 0)
            self.posteriors = nn.ModuleList(
                nn.Linear(features + a, 2 * dim)
                for dim, a in zip(self.dims, above, strict=True)
            )

    def normal(self, output):
        """Returns (mu, sigma) of a network's output."""
        loc, log_scale = output.chunk(2, dim=-1)
        return loc, torch.exp(self.bound * torch.tanh(log_scale / self.bound))

    def prior(self, i, z):
        """Returns (mu, sigma) of p(z_i | z_{i+1}); the top layer's is N(0, I)."""
        if i == len(self.dims) - 1:
            return torch.zeros_like(z[i]), torch.ones_like(z[i])
        return self.normal(self.priors[i](z[i + 1]))

    def log_prior(self, z):
        """Computes log p_beta(z), [B]."""
        return sum(log_normal(z[i], *self.prior(i, z)) for i in range(len(z)))

    def energy(self, z):
        """Computes E(z), [B]."""
        return -sum(f(zi)[:, 0] for f, zi in zip(self.f, z, strict=True))

    def transport(self, eps):
        """Computes z = T(eps)."""
        z = list(eps)
        for i in reversed(range(len(z) - 1)):
            loc, scale = self.prior(i, z)
            z[i] = loc + scale * eps[i]
        return z

    def log_likelihood(self, z, x):
        """Computes log p(x | z), [B]."""
        mean = torch.sigmoid(self.decoder(z[0]))
        square = ((x - mean) ** 2).flatten(1).sum(1)
        constant = math.log(self.sigma_x) + 0.5 * math.log(2 * math.pi)
        return -0.5 * square / self.sigma_x**2 - x[0].numel() * constant

    def logdensity(self, position, space, x=None):
        """Computes the prior's log-density or, given `x`, the posterior's, [B]."""
        if space == "eps":
            z = self.transport(position)
            value = sum(log_normal(e, 0.0, torch.ones_like(e)) for e in position)
        else:
            z = position
            value = self.log_prior(z)
        value = value - self.energy(z)
        return value if x is None else value + self.log_likelihood(z, x)

    def gradient(self, position, space, x=None):
        """Computes `logdensity`'s gradient in the position: one per step of a chain."""
        position = [p.detach().requires_grad_() for p in position]
        value = self.logdensity(position, space, x).sum()  # examples are independent
        return torch.autograd.grad(value, position)

    def run(self, position, chain, num_steps, x=None):
        """Returns the positions after so many steps of Langevin dynamics."""
        s = chain["step_size"]
        with frozen(self):
            for _ in range(num_steps):
                grads = self.gradient(position, chain["space"], x)
                with torch.no_grad():
                    position = [
                        p + 0.5 * s**2 * g + s * torch.randn_like(p)
                        for p, g in zip(position, grads, strict=True)
                    ]
        return position

    def start(self, batch):
        """Draws N(0, I) in every layer."""
        return [torch.randn(batch, dim) for dim in self.dims]

    def infer(self, x, noise):
        """Computes z ~ q(z | x) from standard normal noise, and log q(z | x), [B]."""
        features = self.encoder(x.flatten(1))
        z, log_q = [None] * len(self.dims), 0.0
        for i in reversed(range(len(z))):
            context = [features] if i == len(z) - 1 else [features, z[i + 1]]
            loc, scale = self.normal(self.posteriors[i](torch.cat(context, dim=1)))
            z[i] = loc + scale * noise[i]
            log_q = log_q + log_normal(z[i], loc, scale)
        return z, log_q

    def chain_loss(self, x, positive, negative):
        """Computes the loss of docs/concepts.md of both chains' samples, averaged."""
        plus = self.log_likelihood(positive, x) + self.log_prior(positive)
        minus = self.log_prior(negative) - self.energy(negative)
        return (minus - plus + self.energy(positive)).mean()

    def encoder_loss(self, x, noise, negative, gradient_penalty):
        """Computes the loss with an encoder, where energies tilt the prior of a VAE."""
        z, log_q = self.infer(x, noise)
        loss = log_q - self.log_likelihood(z, x) - self.log_prior(z)
        loss = loss + self.energy([zi.detach() for zi in z]) - self.energy(negative)
        with torch.no_grad():
            priors = [self.prior(i, negative) for i in range(len(negative))]
            eps = [
                (z - loc) / scale
                for z, (loc, scale) in zip(negative, priors, strict=True)
            ]
        eps = [e.requires_grad_() for e in eps]
        with frozen(self.priors):
            energy = self.energy(self.transport(eps)).sum()
            grads = torch.autograd.grad(energy, eps, create_graph=True)
        return loss.mean() + gradient_penalty * sum((g**2).sum(1) for g in grads).mean()

    def load(self, params) -> "Peer":
        """Takes the parameters of our model, a `jebm.Params`; returns itself."""
        backbone, energy = params.backbone["params"], params.energy["params"]
        for i, prior in enumerate(self.priors):
            _load_mlp(prior, backbone[f"priors_{i}"])
        for i, f in enumerate(self.f):
            _load_mlp(f, energy[f"f{i + 1}"])
        if "bias" in backbone["decoder"]:  # one per channel of the coarse map
            _load_deconv(self.decoder, backbone["decoder"])
        else:
            _load_mlp(self.decoder[:-1], backbone["decoder"])
            _permute_pixels(self.decoder[-2], self.image_shape)
        if self.has_encoder:
            _load_mlp(self.encoder[0], backbone["encoder"])
            first = self.encoder[0][0]
            channels, height, width = self.image_shape
            pixels = first.weight.data.unflatten(1, (height, width, channels))
            first.weight.data = pixels.permute(0, 3, 1, 2).flatten(1).contiguous()
            for i, posterior in enumerate(self.posteriors):
                _load_mlp([posterior], backbone[f"posteriors_{i}"])
        return self


class Trainer:
    """Takes training steps of a peer.

    Args:
      peer: the peer.
      learning: of `experiments.options`.
    """

    def __init__(self, peer: Peer, learning):
        self.peer, self.learning, self.steps = peer, learning, 0
        energy = list(peer.f.parameters())
        ours = {id(p) for p in energy}
        backbone = [p for p in peer.parameters() if id(p) not in ours]
        self.groups = [(backbone, learning.backbone_lr), (energy, learning.energy_lr)]
        self.optimizer = torch.optim.Adam(
            [{"params": params, "lr": rate} for params, rate in self.groups],
            betas=(learning.adam_b1, learning.adam_b2),
            eps=learning.adam_eps,
            fused=True,
        )
        self.ema = [p.detach().clone() for p in peer.parameters()]
        self.pool = peer.start(learning.persistent_chains)

    def step(self, x: torch.Tensor) -> float:
        """Takes one step on the images x [B, C, H, W] in [0, 1]; returns the loss."""
        peer, learning, chains = self.peer, self.learning, self.peer.chains
        batch = x.shape[0]
        if learning.method == "mle":
            positive = peer.run(
                peer.start(batch),
                chains["posterior"],
                chains["posterior"]["num_steps"],
                x,
            )
            negative = self.negatives(batch)
            loss = peer.chain_loss(x, positive, negative)
        else:
            negative, noise = self.negatives(batch), peer.start(batch)
            loss = peer.encoder_loss(x, noise, negative, learning.gradient_penalty)
        self.optimizer.zero_grad()
        loss.backward()
        done = self.steps / learning.num_steps
        last = learning.final_lr_fraction
        decay = last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))
        for group, (params, rate) in zip(
            self.optimizer.param_groups, self.groups, strict=True
        ):
            group["lr"] = decay * rate
            if learning.clip_norm < 1e30:
                nn.utils.clip_grad_norm_(params, learning.clip_norm)
        self.optimizer.step()
        self.steps += 1
        if learning.ema_decay:
            weight = 1 - min(learning.ema_decay, (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, list(self.peer.parameters()), weight)
        return loss.item()

    def negatives(self, batch):
        """Draws z- by the prior's chains, new ones or a slot of those that go on."""
        chain, learning = self.peer.chains["prior"], self.learning
        position, num_steps = self.peer.start(batch), chain["num_steps"]
        if learning.persistent_chains:
            first = self.steps * batch % learning.persistent_chains
            slot = slice(first, first + batch)
            restart = torch.rand(batch, 1) < learning.reinit_probability
            position = [
                torch.where(restart, new, old[slot])
                for new, old in zip(position, self.pool, strict=True)
            ]
            num_steps = learning.persistent_steps
        position = self.peer.run(position, chain, num_steps)
        if learning.persistent_chains:
            for old, new in zip(self.pool, position, strict=True):
                old[slot] = new
        if chain["space"] == "eps":
            with torch.no_grad():
                position = self.peer.transport(position)
        return position


def log_normal(value, loc, scale):
    """Computes log N(value; loc, scale), summed over all axes but the first."""
    log_density = (
        -0.5 * ((value - loc) / scale) ** 2
        - torch.log(scale)
        - 0.5 * math.log(2 * math.pi)
    )
    return log_density.sum(1)


def mlp(inputs, widths, outputs, activation, bias=True):
    """Makes dense layers with an activation between them; `bias` is of the last."""
    layers = []
    for width in widths:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs, bias=bias))


def image_mlp(inputs, widths, image_shape, activation):
    """Makes an MLP to images [B, *image_shape]."""
    network = mlp(inputs, widths, math.prod(image_shape), activation)
    return network.append(nn.Unflatten(1, image_shape))


def deconv(inputs, widths, image_shape, activation):
    """Makes the generator of arXiv 2306.06323: coarse map, transposed convolutions."""
    first, *others = widths
    channels, height, width = image_shape
    height, width = height >> len(others), width >> len(others)
    layers = [
        nn.Linear(inputs, first * height * width, bias=False),
        nn.Unflatten(1, (first, height, width)),
        PerChannel(first),
        activation(),
    ]
    for features in others:
        layers += [nn.ConvTranspose2d(first, features, 4, 2, 1), activation()]
        first = features
    return nn.Sequential(*layers, nn.Conv2d(first, channels, 3, padding=1))


class PerChannel(nn.Module):
    """Adds a bias per channel, and passes maps on in the layout of convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.layout = torch.contiguous_format

    def forward(self, x):
        """Maps [B, C, H, W] to the same."""
        return (x + self.bias.view(-1, 1, 1)).contiguous(memory_format=self.layout)


def in_channels_last(peer: Peer) -> Peer:
    """Converts the peer to maps with channels innermost in memory."""
    for module in peer.modules():
        if isinstance(module, PerChannel):
            module.layout = torch.channels_last
    return peer.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def frozen(module):
    """Freezes the module's parameters: no gradient is made for them."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def autocast(function):
    """Returns the function with PyTorch's automatic casts to bfloat16."""

    @functools.wraps(function)
    def run(*args):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*args)

    return run


def to_images(x) -> torch.Tensor:
    """Converts our images [B, H, W, C] to those of this module."""
    return _tensor(x).permute(0, 3, 1, 2).contiguous()


def _tensor(array):
    return torch.from_numpy(np.array(array))


def _load_mlp(layers, params):
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    names = sorted(params, key=lambda name: int(name.split("_")[1]))
    for layer, name in zip(linear, names, strict=True):
        layer.weight.data = _tensor(params[name]["kernel"]).T.contiguous()
        if layer.bias is not None:
            layer.bias.data = _tensor(params[name]["bias"])


def _permute_pixels(layer, image_shape):
    """Permutes [H, W, C] to [C, H, W], of a layer that makes images or maps."""
    channels, height, width = image_shape
    pixels = layer.weight.data.unflatten(0, (height, width, channels))
    layer.weight.data = pixels.permute(2, 0, 1, 3).flatten(0, 2).contiguous()
    if layer.bias is not None:
        pixels = layer.bias.data.unflatten(0, (height, width, channels))
        layer.bias.data = pixels.permute(2, 0, 1).flatten().contiguous()


def _load_deconv(network, params):
    linear, shape, per_channel = network[:3]
    _load_mlp([linear], {"Dense_0": params["Dense_0"]})
    _permute_pixels(linear, shape.unflattened_size)
    per_channel.bias.data = _tensor(params["bias"])
    convolutions = [m for m in network if isinstance(m, nn.ConvTranspose2d | nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        kernel = _tensor(params[f"ConvTranspose_{i}"]["kernel"])  # [k, k, out, in]
        if isinstance(layer, nn.Conv2d):  # of the mirrored kernel, at stride 1
            kernel = kernel.flip(0, 1).permute(2, 3, 0, 1)
        else:
            kernel = kernel.permute(3, 2, 0, 1)
        layer.weight.data = kernel.contiguous()
        layer.bias.data = _tensor(params[f"ConvTranspose_{i}"]["bias"])
