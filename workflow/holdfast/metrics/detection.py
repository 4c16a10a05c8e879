"""What a perturbation does to a face detector, and to an attacker who depends on one.

Detections of a set are a list with one pair per image: boxes (k, 4), corner form in pixels, and
scores (k,). Ask the detector for them with a low threshold (0.05 or less) and give that one list to
every metric: each applies its own score threshold, and `ap` needs the weak boxes too.

Truth is one entry per image: an array (k, 4), k may be 0; or, for sets with one face per image, an
array (N, 4). A row of NaN says that the image's faces are unknown; such images are left out by the
metrics that need a truth, and counted in ``n_unknown``.
"""

import numpy as np

from holdfast.errors import HoldfastError
from holdfast.metrics.metric import Metric, mean_of, result

RELEASED_SCORE, RELEASED_OVERLAP = 0.7, 0.7
TRUTH_SCORE, TRUTH_OVERLAP = 0.5, 0.5


def overlaps(first, second):
    """IoU of every pair of boxes (n, 4) and (m, 4): float64 (n, m) in [0, 1]; without area: 0."""
    first, second = _boxes(first), _boxes(second)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_greedily(boxes, scores, truth, overlap):
    """One-to-one matching: the boxes, best score first, each take the free true box they overlap most.

    Args:
        boxes: (k, 4).
        scores: (k,); equal scores keep their order.
        truth: (m, 4).
        overlap: least IoU of a match.

    Returns:
        int64 (k,), in the order given: the row of `truth` that the box matches, or -1.
    """
    matched = np.full(len(boxes), -1, dtype=np.int64)
    table = overlaps(boxes, truth)
    if table.size == 0:
        return matched
    for row in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        best = int(np.argmax(table[row]))
        if table[row, best] >= overlap:
            matched[row] = best
            table[:, best] = -1.0
    return matched


def f1_released(clean, protected, *, score=RELEASED_SCORE, overlap=RELEASED_OVERLAP):
    """The released code's rule (Table II): how far the detector agrees with itself on the clean image.

    The truth of an image are the detections on its clean version. An image without detections has
    precision 1; an image without such a truth has nothing to miss and has recall 1 (our
    choice; ``n_without_truth`` counts them). F1 is that of the two means.

    Args:
        clean, protected: detections of the same images.

    Returns:
        A result in [0, 1]; extra: precision, recall, n_without_truth, n_without_detections.

    Raises:
        HoldfastError: the sets differ in length.
    """
    _same_length(clean=clean, protected=protected)
    precisions, recalls, without_truth, without_detections = [], [], 0, 0
    for before, after in zip(clean, protected, strict=True):
        truth, _ = _above(before, score)
        boxes, scores = _above(after, score)
        hits = int((match_greedily(boxes, scores, truth, overlap) >= 0).sum())
        precisions.append(hits / len(boxes) if len(boxes) else 1.0)
        recalls.append(hits / len(truth) if len(truth) else 1.0)
        without_truth += not len(truth)
        without_detections += not len(boxes)
    if not precisions:
        return result(None, 0, why="no images were given")
    precision, recall = float(np.mean(precisions)), float(np.mean(recalls))
    return result(
        _f1(precision, recall),
        len(precisions),
        precision=precision,
        recall=recall,
        n_without_truth=without_truth,
        n_without_detections=without_detections,
    )


def f1_truth(detections, truth, *, score=TRUTH_SCORE, overlap=TRUTH_OVERLAP):
    """F1 against annotated boxes, with the counts of hits, misses and false alarms pooled over the set.

    Returns:
        A result in [0, 1] (no value where there is no true box); extra: precision (None without any
        detection), recall, n_truth, n_detections, n_unknown.

    Raises:
        HoldfastError: the sets differ in length.
    """
    known, n_unknown = _known(detections, truth)
    hits = found = faces = 0
    for pair, true_boxes in known:
        boxes, scores = _above(pair, score)
        hits += int((match_greedily(boxes, scores, true_boxes, overlap) >= 0).sum())
        found += len(boxes)
        faces += len(true_boxes)
    if not faces:
        return result(None, len(known), why="no image has an annotated face", n_unknown=n_unknown)
    return result(
        2 * hits / (found + faces),
        len(known),
        precision=hits / found if found else None,
        recall=hits / faces,
        n_truth=faces,
        n_detections=found,
        n_unknown=n_unknown,
    )


def false_positives(detections, truth, *, score=TRUTH_SCORE, overlap=TRUTH_OVERLAP):
    """False positives per image: boxes above `score` that :func:`f1_truth` matches with no true face.

    A second box on a face counts too. This tells a detector that is flooded from one that is blinded: both
    lower F1, but a flooded one may still give the attacker every face (:func:`harvest_yield`).

    Returns:
        A result, the mean number of boxes per image, 0 or more, with its deviation over the images; extra:
        largest (the most in one image), n_unknown.

    Raises:
        HoldfastError: the sets differ in length.
    """
    known, n_unknown = _known(detections, truth)
    counts = []
    for pair, true_boxes in known:
        boxes, scores = _above(pair, score)
        counts.append(int((match_greedily(boxes, scores, true_boxes, overlap) < 0).sum()))
    if not known:
        return result(None, 0, why="no image has a known face box", n_unknown=n_unknown)
    return mean_of(counts) | {"extra": {"largest": max(counts), "n_unknown": n_unknown}}


def ap(detections, truth, *, overlap=TRUTH_OVERLAP):
    """Average precision: the area under the precision-recall curve of the whole set's detections.

    All detections, best score first, are walked down; the precision at a recall is the best one at
    that recall or a higher one (PASCAL VOC 2010 and later: every point, no eleven-point sampling).

    Returns:
        A result in [0, 1] (no value where there is no true box); extra: n_truth, n_detections, n_unknown.

    Raises:
        HoldfastError: the sets differ in length.
    """
    known, n_unknown = _known(detections, truth)
    scores, hits, faces = [np.zeros(0)], [np.zeros(0, dtype=bool)], 0
    for (boxes, box_scores), true_boxes in known:
        scores.append(np.asarray(box_scores, dtype=np.float64).reshape(-1))
        hits.append(match_greedily(boxes, box_scores, true_boxes, overlap) >= 0)
        faces += len(true_boxes)
    if not faces:
        return result(None, len(known), why="no image has an annotated face", n_unknown=n_unknown)
    scores, hits = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(hits[order])
    precision = true_positives / np.arange(1, len(hits) + 1)
    # Boxes with one score enter together, so that the value does not hang on the order of the images.
    ends = np.append(np.diff(scores[order]) != 0, True)[: len(hits)]
    recall, precision = true_positives[ends] / faces, precision[ends]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    return result(area, len(known), n_truth=faces, n_detections=len(hits), n_unknown=n_unknown)


def pick_face(boxes, scores, *, score=TRUTH_SCORE, pick="best"):
    """The row of the box that an attacker keeps of an image, or None where none is above `score`.

    Args:
        pick: "best" (highest score) or "largest" (largest area).
    """
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    rows = np.flatnonzero(scores > score)
    if not len(rows):
        return None
    worth = {"best": scores, "largest": _areas(_boxes(boxes))}
    if pick not in worth:
        raise HoldfastError("unknown way to pick a face", found=pick, expected="best or largest")
    return int(rows[np.argmax(worth[pick][rows])])


def definition_of_yield(score):
    """The definition of :func:`harvest_yield` at a score."""
    return (
        f"fraction of the images whose best-scored box above {score} overlaps the true face at IoU >= "
        f"{TRUTH_OVERLAP}"
    )


def harvest_yield(detections, truth, *, score=TRUTH_SCORE, overlap=TRUTH_OVERLAP, pick="best"):
    """The fraction of images from which the attacker gets a true face: what retraining feeds on.

    The attacker keeps one box per image (:func:`pick_face`); it counts if it overlaps a true box of
    that image at `overlap` or more. Images with known truth count, also those without a face.

    Returns:
        A result in [0, 1]; extra: n_detected (images that gave any box), n_unknown.

    Raises:
        HoldfastError: the sets differ in length, or `pick` is unknown.
    """
    known, n_unknown = _known(detections, truth)
    detected = good = 0
    for (boxes, scores), true_boxes in known:
        row = pick_face(boxes, scores, score=score, pick=pick)
        if row is None:
            continue
        detected += 1
        good += bool(overlaps(_boxes(boxes)[row], true_boxes).max(initial=0.0) >= overlap)
    if not known:
        return result(None, 0, why="no image has a known face box", n_unknown=n_unknown)
    return result(good / len(known), len(known), n_detected=detected, n_unknown=n_unknown)


def _boxes(boxes):
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _areas(boxes):
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)


def _f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _above(pair, score):
    boxes, scores = _boxes(pair[0]), np.asarray(pair[1], dtype=np.float64).reshape(-1)
    return boxes[scores > score], scores[scores > score]


def _same_length(**sets):
    lengths = {name: len(given) for name, given in sets.items()}
    if len(set(lengths.values())) > 1:
        raise HoldfastError(
            "detection metric: the sets do not belong to the same images",
            found=", ".join(f"{count} of {name}" for name, count in lengths.items()),
            expected="one entry per image in each",
        )


def _known(detections, truth):
    """The (detections, true boxes) of the images whose truth is known, and how many are not."""
    _same_length(detections=detections, truth=truth)
    pairs = [(pair, _boxes(boxes)) for pair, boxes in zip(detections, truth, strict=True)]
    known = [(pair, boxes) for pair, boxes in pairs if not np.isnan(boxes).any()]
    return known, len(pairs) - len(known)


def _before_and_after(measure):
    """A metric's compute: the value on the protected images; extra ``clean``, that on the clean ones."""

    def compute(clean, protected, truth):
        answer = measure(protected, truth)
        answer.setdefault("extra", {})["clean"] = measure(clean, truth)["value"]
        return answer

    return compute


def _register(name, definition, compute, unit="fraction", better_defence="down"):
    return Metric(
        name=name,
        definition=definition,
        unit=unit,
        better_defence=better_defence,
        compute=compute,
        inputs="detections",
    )


#: ``compute(clean, protected, truth)``: detections of the clean and of the protected images, and truth.
REGISTER = {
    "f1_released": _register(
        "f1_released",
        "truth = the same detector's detections on the clean image; score > 0.7; greedy one-to-one "
        "matching at IoU >= 0.7; an image without detections has precision 1, one without truth recall 1; "
        "F1 of the mean precision and the mean recall",
        lambda clean, protected, truth: f1_released(clean, protected),
    ),
    "f1_truth": _register(
        "f1_truth",
        "truth = annotated boxes; score > 0.5; greedy one-to-one matching at IoU >= 0.5; F1 of the counts "
        "pooled over the set",
        _before_and_after(f1_truth),
    ),
    # No direction: a flood lowers f1 and protects nobody by itself.
    "false_positives": _register(
        "false_positives",
        "boxes per image with a score > 0.5 that match no annotated box, greedily one-to-one at IoU >= 0.5; "
        "mean over the images whose boxes are known",
        _before_and_after(false_positives),
        unit="boxes per image",
        better_defence=None,
    ),
    "ap": _register(
        "ap",
        "truth = annotated boxes; greedy one-to-one matching at IoU >= 0.5; area under the interpolated "
        "precision-recall curve of all detections of the set",
        _before_and_after(ap),
    ),
    "harvest_yield": _register(
        "harvest_yield",
        definition_of_yield(TRUTH_SCORE),
        _before_and_after(harvest_yield),
    ),
}
