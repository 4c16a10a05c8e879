"""CMUA's automatic step-size tuning: factors of the models, found by trying whole watermarks.

A trial learns a watermark with the factors that a tree-structured Parzen estimator (TPE, as Optuna has it)
suggests from the trials before, and tries it on faces: its worth is the success rate (sr_mask), the mean over
the models. The first trial has factor 1 for every model, which is the released default; of equals the first
counts, so that the default stays where no factors succeed.

Source: the paper (TPE); its released code: factors in 0-10, at most 1,000 trials, the mean of the success
rates on 20 faces, which are among those that the watermark is learnt on. There AttentionGAN's factor is set
under a name that the attack does not read, and stays 1; here it is searched for, too. Ours: factor 1 first.
"""

import torch

from holdfast.data.pixels import stored
from holdfast.defences.stages import Stage
from holdfast.metrics.image import SUCCESS_THRESHOLD, l2_mask
from holdfast.seeds import seed_of

RANGE = (0.0, 10.0)
FACES = 20


def suggested(names, earlier, *seed_names):
    """The factors of the next trial.

    Args:
        names: of the models.
        earlier: the trials before, [(factors in the order of `names`, worth), ...].
        seed_names: names that seed the sampler, together with the number of the trial: what it suggests
            depends on the trials before, not on when they were made.

    Returns:
        {name: factor}, in RANGE.
    """
    if not earlier:
        return dict.fromkeys(names, 1.0)
    # Here, since it would delay the start of every job that imports the defences.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed_of(*seed_names, len(earlier)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    ranges = {name: optuna.distributions.FloatDistribution(*RANGE) for name in names}
    for factors, worth in earlier:
        params = dict(zip(names, factors, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=worth))
    return study.ask(ranges).params


@torch.no_grad()
def success_rate(surroundings, perturbation, count):
    """sr_mask of a watermark on the first `count` faces that it was learnt on: mean over the models."""
    s, rates = surroundings, []
    for name, model in s.models.items():
        values = []
        for rows in torch.arange(min(count, len(s.images))).split(s.batch):
            x, labels = s.images[rows].to(s.device), s.labels[name][rows].to(s.device)
            protected = stored(x + perturbation)
            for target in model.targets(labels):
                # Clipped as where outputs are measured: HiSD's may leave the range.
                y, changed = (model.edit(images, target).clamp(-1, 1) for images in (x, protected))
                values.append(torch.as_tensor(l2_mask(x, y, changed)))
        # An empty mask is no success: NaN is not above the threshold.
        rates.append((torch.cat(values) > SUCCESS_THRESHOLD).double().mean().item())
    return sum(rates) / len(rates)


class FactorSearch(Stage):
    """The stage (holdfast.defences.stages): a step is a trial; `perturbation` is the best trial's watermark.

    Args:
        surroundings: holdfast.defences.base.Surroundings.
        trials: how many.
        learn: function of {model: factor}: a watermark (1, 3, S, S).
    """

    kept = ("perturbation", "trials")

    def __init__(self, surroundings, trials, learn):
        self.surroundings, self.steps, self.learn = surroundings, trials, learn
        self.names = list(surroundings.models)
        self.perturbation = torch.zeros(surroundings.shape, device=surroundings.device)
        self.trials = torch.zeros(0, len(self.names) + 1, dtype=torch.float64)  # factors, worth

    def step(self, index):
        """One trial; returns its worth and the best so far."""
        s, earlier = self.surroundings, self.earlier()
        factors = suggested(self.names, earlier, *s.seed_names, "factor")
        watermark = self.learn(factors)
        worth = success_rate(s, watermark, FACES)
        if worth > max((value for _, value in earlier), default=-1.0):
            self.perturbation = watermark
        row = self.trials.new_tensor([[*(factors[name] for name in self.names), worth]])
        self.trials = torch.cat([self.trials, row])
        return {"sr_mask": worth, "best": self.trials[:, -1].max().item()}

    def earlier(self):
        """The trials so far: [(factors, worth), ...]."""
        return [(row[:-1], row[-1]) for row in self.trials.tolist()]

    def best(self):
        """What was found: {"factor": {model: factor}, "sr_mask": its worth, "trials": of how many}."""
        factors, worth = max(self.earlier(), key=lambda trial: trial[1])
        return {
            "factor": dict(zip(self.names, factors, strict=True)),
            "sr_mask": worth,
            "trials": len(self.trials),
        }
