"""CMUA's search for factors: what it suggests and keeps, and whose watermark it gives."""

import dataclasses

import numpy as np
import pytest
import torch

from holdfast.data.pixels import stored
from holdfast.defences import factor_search
from holdfast.defences.base import Surroundings
from holdfast.defences.cmua import CMUA
from holdfast.defences.factor_search import FactorSearch, success_rate, suggested
from holdfast.metrics import METRICS
from holdfast.metrics.image import l2_mask

SETTINGS = {"steps": 2, "batch": 4, "search_trials": 4}
NAMES = ["one", "two"]


@pytest.fixture(scope="module")
def surroundings(small_stargan):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {name: small_stargan() for name in NAMES}
        images, labels = torch.rand(6, 3, 32, 32) * 2 - 1, (torch.rand(6, 5) > 0.5).float()
    labels = dict.fromkeys(NAMES, labels)
    return Surroundings(models, {}, images, labels, 0.05, seed_names=("test", 0), batch=4)


def walked(worth, trials, names=NAMES, seed="walk"):
    """[(factors, worth), ...] of a search on a function of the factors."""
    found = []
    for _ in range(trials):
        factors = suggested(names, found, seed)
        found.append(([factors[name] for name in names], worth(factors)))
    return found


def test_the_first_trial_has_the_released_factor_and_later_ones_are_in_the_range():
    found = walked(lambda factors: 0.0, 14)
    assert found[0][0] == [1.0, 1.0]
    later = np.array([factors for factors, _ in found[1:]])
    assert later.min() >= 0 and later.max() <= 10 and np.ptp(later, axis=0).min() > 3
    assert len(np.unique(later)) == later.size


def test_suggestions_follow_the_trials_before_and_the_seed_alone():
    def worth(factors):
        return -abs(factors["one"] - 7)

    found = walked(worth, 13)
    assert walked(worth, 13) == found
    assert suggested(NAMES, found[:12], "walk") == dict(zip(NAMES, found[12][0], strict=True))
    assert suggested(NAMES, found[:12], "other") != suggested(NAMES, found[:12], "walk")


def test_the_search_comes_nearer_than_chance():
    """A narrow optimum in four dimensions; 60 draws at random come as near as their nearest one."""
    names, at = ["a", "b", "c", "d"], np.array([7.0, 2.0, 5.0, 9.0])

    def distance(factors):
        return float(np.linalg.norm(np.array([factors[name] for name in names]) - at))

    searched = [
        min(-worth for _, worth in walked(lambda f: -distance(f), 60, names, seed)) for seed in range(3)
    ]
    random = np.random.default_rng(0).uniform(0, 10, (3, 60, 4))
    chance = np.linalg.norm(random - at, axis=2).min(axis=1)
    assert np.mean(searched) < 0.75 * chance.mean()


def test_the_worth_is_the_mean_of_the_models_success_rates(surroundings):
    models = {"one": Painter(3), "two": Painter(0)}
    s = dataclasses.replace(surroundings, models=models)
    watermark = torch.rand(s.shape, generator=torch.Generator().manual_seed(1)).sub(0.5).sign() * 0.05
    x, rates = s.images[:5], []
    for model in models.values():
        edits = [
            [model.edit(images, target).clamp(-1, 1) for images in (x, stored(x + watermark))]
            for target in model.targets(s.labels["one"][:5])
        ]
        values = np.concatenate([l2_mask(x, *pair) for pair in edits])
        rates.append(METRICS["sr_mask"].reduce(values)["value"])
    assert rates == [3 / 4, 0]
    assert success_rate(s, watermark, 5) == np.mean(rates)


class Painter:
    """Paints pixels -3 or 3 in four edits: the first `fragile` by their lowest bit, the others all 3."""

    def __init__(self, fragile):
        self.fragile = fragile

    def targets(self, labels):
        return torch.arange(4)[:, None, None, None].expand(4, len(labels), 1, 1)

    def edit(self, x, target):
        lowest_bit = (x * 127.5 + 127.5).round().remainder(2)
        return 3 * torch.where(target[..., None] < self.fragile, 2 * lowest_bit - 1, torch.ones_like(x))


def test_the_watermark_is_that_of_the_best_trial_and_of_equals_the_first(surroundings, monkeypatch):
    worths = iter([0.25, 0.5, 0.5, 0.25])
    monkeypatch.setattr(factor_search, "success_rate", lambda *_: next(worths))
    learnt = []

    def learn(factors):
        learnt.append(factors)
        return torch.full(surroundings.shape, len(learnt) / 1000)

    stage = FactorSearch(surroundings, 4, learn)
    logs = [stage.step(index) for index in range(stage.steps)]
    assert [(row["sr_mask"], row["best"]) for row in logs] == [
        (0.25, 0.25),
        (0.5, 0.5),
        (0.5, 0.5),
        (0.25, 0.5),
    ]
    assert stage.best() == {"factor": learnt[1], "sr_mask": 0.5, "trials": 4}
    assert torch.equal(stage.perturbation, torch.full(surroundings.shape, 2 / 1000))


def test_a_searched_watermark_is_the_one_that_its_factors_give(surroundings, monkeypatch):
    worths = iter([0.1, 0.2, 0.4, 0.3])
    with monkeypatch.context() as patch:
        patch.setattr(factor_search, "success_rate", lambda *_: next(worths))
        searched = CMUA(SETTINGS, surroundings).fit()
    factors = searched.found["factor"]
    assert searched.found["sr_mask"] == 0.4 and set(factors) == set(NAMES) and 1.0 not in factors.values()
    given = CMUA(SETTINGS | {"factor": factors}, surroundings).fit()
    assert given.found is None and torch.equal(given.perturbation, searched.perturbation)


def test_where_nothing_succeeds_the_released_default_stays(surroundings, monkeypatch):
    monkeypatch.setattr(factor_search, "success_rate", lambda *_: 0.0)
    searched = CMUA(SETTINGS, surroundings).fit()
    assert searched.found == {"factor": dict.fromkeys(NAMES, 1.0), "sr_mask": 0.0, "trials": 4}
    assert torch.equal(searched.perturbation, CMUA(SETTINGS | {"factor": 1}, surroundings).fit().perturbation)


def test_an_interrupted_search_ends_like_an_uninterrupted_one(surroundings, tmp_path, killed_before):
    whole = CMUA(SETTINGS, surroundings).fit()
    kept = dataclasses.replace(surroundings, state_path=tmp_path / "state.pt")
    for index in (1, 3):
        killed_before(index, CMUA(SETTINGS, kept).fit)
    again = CMUA(SETTINGS, kept).fit()
    assert torch.equal(again.perturbation, whole.perturbation) and again.found == whole.found
