"""The merged config that is published names no folder of the machine it ran on."""

from holdfast.stages.publish import without_paths


def test_absolute_paths_are_cut_and_the_rest_is_kept():
    config = {"results": "results/lab", "datasets": {"celeba": {"source": "/data/x/celeba", "size": [1, 2]}}}
    assert without_paths(config) == {
        "results": "results/lab",
        "datasets": {"celeba": {"source": "celeba", "size": [1, 2]}},
    }


def test_paths_in_lists_and_in_the_home_folder():
    given = ["/data/G.ckpt", {"path": "~/secret/D.ckpt", "sha256": "0" * 64}]
    assert without_paths({"weights": given}) == {
        "weights": ["G.ckpt", {"path": "D.ckpt", "sha256": "0" * 64}]
    }
