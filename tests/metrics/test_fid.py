import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.metrics import METRICS
from holdfast.metrics.fid import (
    FeatureNetwork,
    FeatureStatistics,
    frechet_distance,
    in_features_of,
    inception,
    inception_weights,
    statistics_of,
)


def features(seed, n=60, dimensions=5):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, dimensions)) @ random.normal(size=(dimensions, dimensions))


def pooled(images):
    """A small feature network: means over a 2x2 grid of each channel."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


# statistics


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_streaming_statistics_equal_numpys(seed, cuts, offset):
    data = features(seed, n=40, dimensions=3) + offset
    statistics = FeatureStatistics()
    for part in np.split(data, sorted(cuts)):
        statistics.update(part)
    assert statistics.n == 40
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(data, rowvar=False), rtol=1e-7, atol=1e-7)


def test_merged_statistics_equal_those_of_all():
    data = features(1)
    left, right = FeatureStatistics().update(data[:17]), FeatureStatistics().update(data[17:])
    whole = FeatureStatistics().update(data)
    merged = FeatureStatistics().merge(left).merge(right).merge(FeatureStatistics())
    assert merged.n == 60 and left.n == 17
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-12)
    np.testing.assert_allclose(merged.covariance, whole.covariance, atol=1e-12)


def test_float32_torch_features_are_summed_in_float64():
    data = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) + 4096
    statistics = FeatureStatistics()
    for part in data.split(10):
        statistics.update(part)
    exact = data.double().numpy()
    assert statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.covariance, np.cov(exact, rowvar=False), rtol=1e-9)


def test_wrong_features_are_refused():
    statistics = FeatureStatistics().update(features(0))
    with pytest.raises(HoldfastError, match="shape"):
        statistics.update(features(0, dimensions=4))
    with pytest.raises(HoldfastError, match="shape"):
        statistics.update(np.zeros((2, 3, 4)))
    with pytest.raises(HoldfastError, match="not finite"):
        statistics.update(np.full((2, 5), np.nan))
    with pytest.raises(HoldfastError, match="width"):
        statistics.merge(FeatureStatistics().update(features(0, dimensions=4)))
    with pytest.raises(HoldfastError, match="too few"):
        _ = FeatureStatistics().update(np.zeros((1, 3))).covariance
    assert statistics.n == 60


# the distance


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    data = features(2)
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    assert frechet_distance(data, data + shift) == pytest.approx(shift @ shift, rel=1e-6)


def test_identity():
    data = features(3)
    assert 0 <= frechet_distance(data, data) < 1e-6


def test_equal_means_and_diagonal_covariances():
    # All corners of a box: covariance diag(s^2) 8/7 exactly, so the distance is sum (s - t)^2 8/7.
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=float)
    s, t = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    expected = ((s - t) ** 2).sum() * 8 / 7
    assert frechet_distance(corners * s, corners * t) == pytest.approx(expected, rel=1e-6)


def frechet_by_eigenvalues(a, b):
    """Tr (C_a C_b)^(1/2) as the sum of the roots of the product's eigenvalues, without a matrix root."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real.clip(0)
    shift = a.mean(0) - b.mean(0)
    return shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(eigenvalues).sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-3, 3))
def test_distance_equals_the_eigenvalue_form_and_is_symmetric(seed, shift):
    a, b = features(seed), features(seed + 1) + shift
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert distance == pytest.approx(frechet_by_eigenvalues(a, b), rel=1e-5, abs=1e-6)
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-5, abs=1e-6)


def test_distance_takes_statistics_and_prints_nothing(capsys):
    a, b = features(4), features(5)
    from_statistics = frechet_distance(FeatureStatistics().update(a), FeatureStatistics().update(b))
    assert from_statistics == frechet_distance(a, b)
    frechet_distance(a, np.zeros((10, 5)))  # a singular product, of which pytorch-fid prints
    assert capsys.readouterr().out == ""


def test_sets_of_different_width_are_refused():
    with pytest.raises(HoldfastError, match="width"):
        frechet_distance(features(0), features(0, dimensions=4))
    with pytest.raises(HoldfastError, match="width"):
        METRICS["fid"].compute(features(0), features(0, dimensions=4))


# the metric


def test_result_counts_and_enough_images():
    answer = METRICS["fid"].compute(features(6), features(7, n=40))
    assert answer["n"] == 40
    assert answer["extra"] == {
        "n_first": 60,
        "n_second": 40,
        "features": 5,
        "constant_features": 0,
        "rank_deficient": False,
    }
    assert answer["value"] == pytest.approx(frechet_by_eigenvalues(features(6), features(7, n=40)), rel=1e-5)


@pytest.mark.parametrize("n, deficient", [(4, True), (5, True), (6, False)])
def test_rank_deficiency_is_stated(n, deficient):
    answer = METRICS["fid"].compute(features(8, n=n), features(9))
    assert answer["extra"]["rank_deficient"] is deficient
    # n points span n - 1 dimensions: what the flag claims.
    rank = np.linalg.matrix_rank(FeatureStatistics().update(features(8, n=n)).covariance)
    assert bool(rank < 5) is deficient


def test_a_feature_that_never_changes_makes_the_covariance_singular():
    data = features(8)
    data[:, 2] = 0.1  # its mean is rounded, so that its variance need not be 0
    answer = METRICS["fid"].compute(data, features(9))
    assert answer["extra"]["rank_deficient"] is True and answer["extra"]["constant_features"] == 1
    assert answer["value"] == pytest.approx(frechet_by_eigenvalues(data, features(9)), rel=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_have_no_distance_and_say_why(n):
    answer = METRICS["fid"].compute(features(0, n=n) if n else FeatureStatistics(), features(1))
    assert answer["value"] is None and answer["n"] == n
    assert "two images" in answer["why"] and answer["extra"]["rank_deficient"] is True


def test_streamed_images_equal_the_whole_set():
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network = FeatureNetwork("pooled", pooled)
    whole = statistics_of([images], network)
    streamed = statistics_of(images.split(3), network)
    assert streamed.n == 20 and streamed.dimensions == 12
    np.testing.assert_allclose(streamed.covariance, whole.covariance, atol=1e-12)
    np.testing.assert_allclose(whole.mean, pooled(images).double().mean(0).numpy(), atol=1e-7)


def test_the_name_carries_the_network():
    other = in_features_of(METRICS["fid_clean"], FeatureNetwork("attributes", pooled))
    assert other.name == "fid_clean[attributes]"
    assert "'attributes'" in other.definition and "Inception" not in other.definition
    assert other.better() == "up"
    own = in_features_of(METRICS["fid"], FeatureNetwork("inception", pooled))
    assert own is METRICS["fid"] and "Inception" in own.definition


# Inception


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A state of the FID Inception's shapes with random numbers, and the architecture's own keys."""
    import pytorch_fid.inception as package

    import holdfast.compat  # noqa: F401

    state = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, _: state.update(self.state_dict()))
        torch.manual_seed(0)
        package.fid_inception_v3()
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_gives_2048_features_of_images_in_the_models_range(random_weights):
    import pytorch_fid.inception as package

    fetch = package.load_state_dict_from_url
    network = inception(random_weights, sha256=sha256_of(random_weights)[:8])
    assert network.name == "inception"
    assert package.load_state_dict_from_url is fetch
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = network.features(images)
    assert given.shape == (2, 2048)
    # pytorch-fid's own network, given [0,1] as it asks for.
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        state = torch.load(random_weights, weights_only=True)
        patch.setattr(package, "load_state_dict_from_url", lambda *_, **__: state)
        expected = package.InceptionV3().eval()((images + 1) / 2)[0][:, :, 0, 0]
    torch.testing.assert_close(given, expected)


def test_other_weights_are_refused_by_their_sha256(random_weights):
    with pytest.raises(HoldfastError, match="does not hold the weights") as caught:
        inception(random_weights)
    assert "6726825d" in caught.value.expected


def test_a_file_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(HoldfastError, match="not a state of the FID Inception"):
        inception(path, sha256=sha256_of(path)[:8])


def test_pickled_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "weights.pth"
    torch.save({"weight": Trap()}, path)
    with pytest.raises(HoldfastError, match="not a state of the FID Inception"):
        inception(path, sha256=sha256_of(path)[:8])
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert inception_weights() is None
    with pytest.raises(HoldfastError, match="not at hand"):
        inception()
    assert not any(tmp_path.iterdir())
    place = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert inception_weights() == place
    assert inception_weights(tmp_path / "elsewhere.pth") is None
