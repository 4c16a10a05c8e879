"""Training of a deepfake model: for pretraining on clean faces and for the attacker's retraining alike.

A model brings its own losses (deepfakes/model.py); the schedule is StarGAN's: `iterations` critic steps,
a generator step every `critic_steps` of them, Adam(0.5, 0.999), rates that fall linearly over the second
half.
"""

import torch

from holdfast.errors import HoldfastError
from holdfast.seeds import generator
from holdfast.training.loop import batch_positions, linear_decay, run_steps

BETAS = (0.5, 0.999)

# What the schedule below needs of every model's settings; a model's module adds its own to these.
SETTINGS = {
    "iterations": {"type": "integer", "minimum": 1, "default": 200000, "description": "Critic steps."},
    "batch": {"type": "integer", "minimum": 2, "default": 16, "description": "Images per step."},
    "generator_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.0001,
        "description": "Adam's learning rate of the generator.",
    },
    "discriminator_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.0001,
        "description": "Adam's learning rate of the discriminator.",
    },
    "critic_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 5,
        "description": "Discriminator steps per generator step.",
    },
    "precision": {
        "enum": ["float32", "bfloat16"],
        "default": "float32",
        "description": "Arithmetic of convolutions in training; weights are float32 in either case.",
    },
}


def train_deepfake(model, faces, settings, seed_names, *, state_path=None, device="cpu", on_sample=None):
    """Train all networks of `model` on the split `train` of `faces`.

    Args:
        model: a deepfake model; trained in place, on `device`, and returned there.
        faces: a FaceSet that has the model's attributes.
        settings: iterations, batch, generator_rate, discriminator_rate, critic_steps, precision.
        seed_names: names that seed batches, target labels and the gradient penalty.
        state_path: see training/loop.py.
        on_sample: optional, called with the fraction done, ten times and at the end.

    Returns:
        The log, one row per iteration.

    Raises:
        HoldfastError: there are fewer than two faces to train on, or the losses diverge.
    """
    positions = faces.positions("train")
    if len(positions) < 2:
        raise HoldfastError(
            f"{model.title} cannot be trained on {faces.folder}",
            found=f"{len(positions)} training faces",
            expected="at least 2",
            repair="lower attacker.threshold, or protect more images (attacker.images)",
        )
    networks, batch = model.networks, settings["batch"]
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last).train().requires_grad_(True)
    critic, maker = networks["discriminator"], networks["generator"]
    optimisers = {
        "generator": torch.optim.Adam(maker.parameters(), settings["generator_rate"], BETAS),
        "discriminator": torch.optim.Adam(critic.parameters(), settings["discriminator_rate"], BETAS),
    }
    rates = {name: settings[f"{name}_rate"] for name in optimisers}
    device_type = torch.device(device).type
    iterations = settings["iterations"]

    def take_step(name, loss):
        optimisers[name].zero_grad(set_to_none=True)
        loss.backward()
        for group in optimisers[name].param_groups:
            group["lr"] = rates[name] * linear_decay(take_step.at, iterations)
        optimisers[name].step()

    def step_fn(step):
        take_step.at = step
        random = generator(*seed_names, "step", step)
        chosen = batch_positions(positions, batch, step, *seed_names)
        x = faces.pixels(chosen).to(device, memory_format=torch.channels_last)
        labels = faces.labels(chosen, model.attributes).to(device)
        target = labels[torch.randperm(batch, generator=random)]
        mix = torch.rand(batch, 1, 1, 1, generator=random).to(device)
        losses = {}
        with torch.autocast(device_type, torch.bfloat16, enabled=settings["precision"] == "bfloat16"):
            critic.requires_grad_(True)
            loss, shown = model.discriminator_loss(x, labels, target, mix)
        take_step("discriminator", loss)
        losses |= shown
        if (step + 1) % settings["critic_steps"] == 0:
            # The generator's loss flows through the discriminator; its own gradients are not needed.
            critic.requires_grad_(False)
            with torch.autocast(device_type, torch.bfloat16, enabled=settings["precision"] == "bfloat16"):
                loss, shown = model.generator_loss(x, labels, target)
            take_step("generator", loss)
            losses |= shown
        return losses

    def after_step(step, log):
        if on_sample is not None and (step + 1) % max(1, iterations // 10) == 0:
            on_sample((step + 1) / iterations)

    state = {**networks, **{f"{name} optimiser": thing for name, thing in optimisers.items()}}
    return run_steps(
        iterations,
        step_fn,
        state,
        state_path,
        description=f"training {model.title}",
        after_step=after_step,
    )
