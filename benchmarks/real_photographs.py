"""RetinaFace's official weights on real photographs: what they find, and a picture of it.

    python benchmarks/real_photographs.py LAB [FIGURE]

LAB holds photos/*.jpg with photos/boxes.xml (top, left, width, height), celeba/img_align_celeba/*.jpg,
lfw/NAME/*.jpg and weights/retinaface_mobilenet0.25.pth. Prints, at a score above 0.5, how many of the
annotated faces of at least 30 px are found at an IoU of 0.4, and in what share of the aligned faces, at
256 px, there is a detection. FIGURE: the photographs, as thumbnails, with the boxes drawn in.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

import torch  # noqa: E402

from holdfast.data.pixels import to_float  # noqa: E402
from holdfast.detectors.retinaface import RetinaFace  # noqa: E402
from holdfast.metrics.detection import match_greedily  # noqa: E402
from holdfast.papers.figures import figure_7  # noqa: E402

SCORE, OVERLAP, SMALLEST, SIDE = 0.5, 0.4, 30, 256
ALIGNED = {"CelebA": ("celeba/img_align_celeba/*.jpg", 2000), "LFW": ("lfw/*/*.jpg", None)}


def pixels_of(path):
    with Image.open(path) as file:
        return np.array(file.convert("RGB"))


def square(path):
    """The largest square in the middle of an image, at 256 px."""
    with Image.open(path) as file:
        side = min(file.size)
        left, top = (file.width - side) // 2, (file.height - side) // 2
        face = file.convert("RGB").crop((left, top, left + side, top + side))
        return np.array(face.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def main(lab, figure=None):
    torch.set_num_threads(1)
    lab, detector = Path(lab), RetinaFace()
    detector.load(lab / "weights" / "retinaface_mobilenet0.25.pth")
    photographs, boxes, counts = [], [], np.zeros(3, dtype=int)
    for image in ElementTree.parse(lab / "photos" / "boxes.xml").iter("image"):
        pixels = pixels_of(lab / "photos" / image.get("file"))
        found, scores = (part.numpy() for part in detector.detect(to_float(pixels[None]), SCORE)[0])
        sides = np.array(
            [[float(box.get(key)) for key in ("left", "top", "width", "height")] for box in image.iter("box")]
        )
        sides = sides[sides[:, 2:].min(axis=1) >= SMALLEST]
        truth = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
        matched = match_greedily(found, scores, truth, OVERLAP)
        counts += np.array([(matched >= 0).sum(), len(truth), (matched < 0).sum()])
        for missed in sorted(set(range(len(truth))) - set(matched)):
            print(f"missed in {image.get('file')}: {truth[missed].astype(int).tolist()}")
        photographs.append(pixels)
        boxes.append(found)
    print(
        f"photographs: {counts[0]} of {counts[1]} annotated faces of {SMALLEST} px found "
        f"(IoU {OVERLAP}, score > {SCORE}); {counts[2]} boxes beside them"
    )
    for title, (pattern, limit) in ALIGNED.items():
        paths = sorted(lab.glob(pattern))[:limit]
        with_face = 0
        for start in range(0, len(paths), 16):
            faces = np.stack([square(path) for path in paths[start : start + 16]])
            with_face += sum(len(scores) > 0 for _, scores in detector.detect(to_float(faces), SCORE))
        print(f"{title}: a detection in {with_face} of {len(paths)} faces ({with_face / len(paths):.2%})")
    if figure:
        figure_7(figure, photographs, {}, {"RetinaFace": boxes}, {})
        print(f"written: {figure}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
