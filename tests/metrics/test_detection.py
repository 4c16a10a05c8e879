import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.detectors.boxes import iou
from holdfast.errors import HoldfastError
from holdfast.metrics import METRICS, detection

quick = settings(max_examples=60, deadline=None)
FACE = np.array([[10.0, 10.0, 50.0, 50.0]])
OTHER = np.array([[60.0, 60.0, 90.0, 90.0]])
NONE = (np.zeros((0, 4)), np.zeros(0))


def seen(boxes, *scores):
    return np.asarray(boxes, dtype=np.float32), np.array(scores or [0.9] * len(boxes), dtype=np.float32)


def drawn(seed, images=6, most=4):
    random = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(images):
        low = random.uniform(0, 80, (random.integers(0, most + 1), 2))
        true_boxes = np.concatenate([low, low + random.uniform(5, 40, low.shape)], axis=1)
        boxes = np.concatenate([true_boxes, true_boxes[: random.integers(0, most + 1)]])
        boxes = boxes + np.tile(random.normal(0, 3, (len(boxes), 2)), 2)
        found.append((boxes, random.uniform(0, 1, len(boxes))))
        truth.append(true_boxes)
    truth[0] = np.concatenate([truth[0], FACE])
    return found, truth


@quick
@given(st.integers(0, 2**31))
def test_overlaps_are_those_of_the_detectors(seed):
    (a, _), (b, _) = drawn(seed)[0][:2]
    np.testing.assert_allclose(
        detection.overlaps(a, b), iou(torch.tensor(a), torch.tensor(b)).numpy(), atol=1e-12
    )
    assert (detection.overlaps(np.zeros((2, 4)), FACE) == 0).all()


def test_matching_is_one_to_one_best_score_first():
    boxes = np.concatenate([FACE + 4, FACE, FACE + 2])
    assert detection.match_greedily(boxes, [0.5, 0.9, 0.8], FACE, 0.5).tolist() == [-1, 0, -1]
    assert detection.match_greedily(boxes, [0.9, 0.5, 0.8], FACE, 0.5).tolist() == [0, -1, -1]
    assert detection.match_greedily(boxes, [0.9, 0.5, 0.8], np.zeros((0, 4)), 0.5).tolist() == [-1, -1, -1]
    # The weaker box takes what the stronger has left.
    twice, faces = np.concatenate([FACE, FACE]), np.concatenate([FACE, FACE + 3])
    assert detection.match_greedily(twice, [0.5, 0.9], faces, 0.5).tolist() == [1, 0]


def test_a_perfect_detector():
    clean = [seen(FACE), seen(np.concatenate([FACE, OTHER]))]
    truth = [FACE, np.concatenate([OTHER, FACE])]
    assert detection.f1_released(clean, clean)["value"] == 1.0
    assert detection.f1_truth(clean, truth)["value"] == 1.0
    assert detection.ap(clean, truth)["value"] == 1.0
    assert detection.harvest_yield(clean, truth)["value"] == 1.0


def test_a_blinded_detector():
    clean, blind, truth = [seen(FACE)] * 3, [NONE] * 3, [FACE] * 3
    released = detection.f1_released(clean, blind)
    assert released["value"] == 0.0 and released["extra"]["precision"] == 1.0  # the papers' rule
    measured = detection.f1_truth(blind, truth)
    assert measured["value"] == 0.0 and measured["extra"]["precision"] is None
    assert detection.ap(blind, truth)["value"] == 0.0
    assert detection.harvest_yield(blind, truth)["value"] == 0.0


def test_nothing_on_either_side():
    assert detection.f1_released([NONE], [NONE])["value"] == 1.0
    assert detection.f1_released([NONE], [NONE])["extra"]["n_without_truth"] == 1
    for measure in (detection.f1_truth, detection.ap):
        answer = measure([NONE], [np.zeros((0, 4))])
        assert answer["value"] is None and "annotated" in answer["why"]
    assert detection.harvest_yield([NONE], [np.zeros((0, 4))])["value"] == 0.0


def test_f1_released_is_of_the_means_not_of_the_counts():
    # One of two truths found (P 1, R 1/2); a duplicate (P 1/2, R 1); blind (P 1, R 0).
    clean = [seen(np.concatenate([FACE, OTHER])), seen(FACE), seen(FACE)]
    after = [seen(FACE), seen(np.concatenate([FACE, FACE + 1])), NONE]
    answer = detection.f1_released(clean, after)
    precision, recall = 2.5 / 3, 1.5 / 3
    assert answer["extra"]["precision"] == pytest.approx(precision)
    assert answer["extra"]["recall"] == pytest.approx(recall)
    assert answer["value"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert answer["n"] == 3 and answer["extra"]["n_without_detections"] == 1


def test_f1_released_thresholds():
    moved = FACE + np.array([[0, 0, 0, 14.0]])  # IoU 40/54 = 0.74
    far = FACE + np.array([[0, 0, 0, 20.0]])  # IoU 40/60 = 0.67
    assert detection.f1_released([seen(FACE)], [seen(moved)])["value"] == 1.0
    assert detection.f1_released([seen(FACE)], [seen(far)])["value"] == 0.0
    assert detection.f1_released([seen(FACE)], [seen(FACE, 0.69)])["value"] == 0.0
    # A clean box at 0.7 or less is no truth, so missing it costs nothing.
    assert detection.f1_released([seen(FACE, 0.69)], [NONE])["value"] == 1.0


def test_duplicates_cost_precision():
    flooded = [seen(np.concatenate([FACE, FACE + 1, OTHER]))]
    answer = detection.f1_truth(flooded, [FACE])
    assert answer["extra"]["precision"] == pytest.approx(1 / 3) and answer["extra"]["recall"] == 1.0
    assert answer["value"] == pytest.approx(0.5)
    # Flooding does not keep the attacker from the face, as long as the true box is the best one.
    assert detection.harvest_yield(flooded, [FACE])["value"] == 1.0


def test_f1_truth_pools_counts():
    found = [seen(FACE), seen(np.concatenate([OTHER, OTHER + 40, OTHER + 80]))]
    answer = detection.f1_truth(found, [FACE, FACE])
    assert answer["extra"]["precision"] == pytest.approx(1 / 4) and answer["extra"][
        "recall"
    ] == pytest.approx(1 / 2)
    assert answer["value"] == pytest.approx(2 * 1 / (4 + 2))


def test_false_positives_are_counted_per_image():
    flooded = seen(np.concatenate([FACE, FACE + 1, OTHER]))
    weak = seen(np.concatenate([FACE, OTHER]), 0.9, 0.5)
    answer = detection.false_positives([flooded, weak, NONE], [FACE] * 3)
    assert (answer["value"], answer["n"]) == (pytest.approx(2 / 3), 3)
    assert answer["std"] == pytest.approx(np.std([2, 0, 0], ddof=1)) and answer["extra"]["largest"] == 2
    # Blinded and perfect detectors have none; without a face every box is one.
    assert detection.false_positives([NONE, seen(FACE)], [FACE] * 2)["value"] == 0
    assert detection.false_positives([flooded], [np.zeros((0, 4))])["value"] == 3
    unknown = detection.false_positives([flooded, weak], np.concatenate([FACE, np.full((1, 4), np.nan)]))
    assert (unknown["value"], unknown["n"], unknown["extra"]["n_unknown"]) == (2, 1, 1)
    none = detection.false_positives([flooded], np.full((1, 4), np.nan))
    assert none["value"] is None and "known" in none["why"] and none["extra"]["n_unknown"] == 1


@quick
@given(st.integers(0, 2**31))
def test_false_positives_agree_with_the_precision_of_f1_truth(seed):
    found, truth = drawn(seed)
    extra = detection.f1_truth(found, truth)["extra"]
    wrong = extra["n_detections"] * (1 - (extra["precision"] or 0))
    assert detection.false_positives(found, truth)["value"] == pytest.approx(wrong / len(found))


def test_false_positives_are_registered_without_a_direction():
    metric = METRICS["false_positives"]
    assert metric.better_defence is None and metric.unit == "boxes per image"
    flooded = seen(np.concatenate([FACE, OTHER]))
    answer = metric.compute([seen(FACE)] * 2, [flooded, NONE], np.concatenate([FACE, FACE]))
    assert answer["value"] == 0.5 and answer["extra"]["clean"] == 0.0


def test_ap_closed_forms():
    truth = [np.concatenate([FACE, OTHER])]
    # hit, miss, hit: precision 1 up to recall 1/2, then 2/3.
    found = [seen(np.concatenate([FACE, FACE + 200, OTHER]), 0.9, 0.8, 0.7)]
    assert detection.ap(found, truth)["value"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # miss, hit; the other face is never found: 1/2 up to recall 1/2.
    found = [seen(np.concatenate([FACE + 200, OTHER]), 0.9, 0.8)]
    assert detection.ap(found, truth)["value"] == pytest.approx(0.25)
    # A hit and a miss of one score enter together, whichever is named first.
    for order in ([0, 1], [1, 0]):
        tied = [seen(np.concatenate([FACE, FACE + 200])[order], 0.5, 0.5)]
        assert detection.ap(tied, [FACE])["value"] == pytest.approx(0.5)


def test_ap_equals_an_independent_sum():
    """Average precision of distinct scores = mean over truths of the best precision from there on."""
    for seed in range(20):
        found, truth = drawn(seed)
        rows = []
        for (boxes, scores), true_boxes in zip(found, truth, strict=True):
            matched = detection.match_greedily(boxes, scores, true_boxes, 0.5) >= 0
            rows += list(zip(scores, matched, strict=True))
        rows.sort(reverse=True)
        hits = [bool(hit) for _, hit in rows]
        precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
        expected = sum(max(precisions[k:]) for k in range(len(hits)) if hits[k]) / sum(map(len, truth))
        assert detection.ap(found, truth)["value"] == pytest.approx(expected)


@quick
@given(st.integers(0, 2**31), st.randoms())
def test_values_are_fractions_and_ignore_the_order(seed, shuffler):
    found, truth = drawn(seed)
    order = list(range(len(found)))
    shuffler.shuffle(order)
    within = [np.random.default_rng(seed + i).permutation(len(scores)) for i, (_, scores) in enumerate(found)]
    shuffled = [(found[i][0][within[i]], found[i][1][within[i]]) for i in order]
    for measure in (detection.f1_truth, detection.ap, detection.harvest_yield):
        value = measure(found, truth)["value"]
        assert 0 <= value <= 1
        assert measure(shuffled, [truth[i] for i in order])["value"] == pytest.approx(value)
    against = [(boxes, np.full(len(boxes), 0.9)) for boxes in truth]
    assert 0 <= detection.f1_released(against, found)["value"] <= 1
    assert detection.f1_released(found, found)["value"] == 1.0


@quick
@given(st.integers(0, 2**31), st.floats(0.05, 0.9), st.floats(0.0, 0.09))
def test_a_stricter_overlap_never_helps_the_attacker(seed, overlap, more):
    found, truth = drawn(seed)
    loose = detection.harvest_yield(found, truth, overlap=overlap)["value"]
    assert detection.harvest_yield(found, truth, overlap=overlap + more)["value"] <= loose


def test_harvest_takes_one_box_per_image():
    wrong_first = seen(np.concatenate([OTHER, FACE]), 0.95, 0.9)
    assert detection.harvest_yield([wrong_first], [FACE])["value"] == 0.0
    assert detection.harvest_yield([wrong_first], [FACE], pick="largest")["value"] == 1.0
    answer = detection.harvest_yield([wrong_first, seen(FACE), seen(FACE, 0.4)], [FACE] * 3)
    assert answer["value"] == pytest.approx(1 / 3) and answer["extra"]["n_detected"] == 2
    assert detection.pick_face(*wrong_first) == 0 and detection.pick_face(*NONE) is None
    with pytest.raises(HoldfastError, match="pick a face"):
        detection.harvest_yield([wrong_first], [FACE], pick="luckiest")


def test_images_without_a_known_truth_are_left_out_and_counted():
    truth = np.concatenate([FACE, np.full((1, 4), np.nan)])
    for measure in (detection.f1_truth, detection.ap, detection.harvest_yield):
        answer = measure([seen(FACE), seen(OTHER)], truth)
        assert (answer["value"], answer["n"], answer["extra"]["n_unknown"]) == (1.0, 1, 1)
        answer = measure([seen(FACE)], truth[1:])
        assert answer["value"] is None and answer["why"]


def test_sets_of_different_length():
    with pytest.raises(HoldfastError, match="same images"):
        detection.f1_released([NONE], [NONE, NONE])
    with pytest.raises(HoldfastError, match="same images"):
        detection.ap([NONE], np.concatenate([FACE, FACE]))


def test_registered_metrics():
    clean, after, truth = [seen(FACE)] * 2, [seen(FACE), NONE], np.concatenate([FACE, FACE])
    for name in ("f1_released", "f1_truth", "ap", "harvest_yield"):
        metric = METRICS[name]
        assert metric.better_defence == "down" and metric.inputs == "detections"
        answer = metric.compute(clean, after, truth)
        assert 0 < answer["value"] < 1 and answer["n"] == 2
        if name != "f1_released":
            assert answer["extra"]["clean"] == 1.0
    assert METRICS["harvest_yield"].compute(clean, after, truth)["value"] == 0.5
