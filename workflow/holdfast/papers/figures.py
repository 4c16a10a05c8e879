"""The figures of the tables' runs: pure functions from arrays to PNG files.

Images are uint8 (n, S, S, 3), RGB. The same arrays give the same file, byte for byte, with the same
version of Matplotlib. Faces are drawn at thumbnail size; when a file would exceed :data:`LIMIT` bytes
(Fig. 5: :data:`LIMIT_OF_MANY`), it is drawn again with smaller thumbnails.
"""

import io
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from holdfast.errors import HoldfastError
from holdfast.files import writing

LIMIT = 400_000
LIMIT_OF_MANY = 1_500_000  # of Fig. 5, which has a thumbnail for each face, model and defence
_DPI = 100
_GAP = 4  # pixels between thumbnails
_INK, _PALE = "#1a1a1a", "#8a8a8a"
_FONT = 8.5
_LETTER = 7.0  # pixels that a letter of that size takes, on average

#: Colours of the detectors' boxes as in Fig. 7 of the TSDF paper; further detectors take the others.
BOX_COLOURS = {"S3FD": "#1fa82e", "DSFD": "#e0241b", "RetinaFace": "#1d62f0"}
_MORE_COLOURS = ["#e69f00", "#b3339f", "#00a5a5", "#7a5230"]


def figure_5(path, inputs, outputs, protected, edits=None):
    """What the protections do to the edits, as the TSDF paper's Fig. 5.

    One block of rows for each deepfake model, and one row for each face, named after its edit; columns:
    input, its edit G(x), and the edit of the protected input G(x') for each defence.

    Args:
        path: the PNG file.
        inputs: uint8 (n, S, S, 3).
        outputs: {model: uint8 (n, S, S, 3)}, G(x).
        protected: {defence: {model: uint8 (n, S, S, 3)}}, G(x'); for a missing model the figure says so.
        edits: {model: the n edits' names}, or None.

    Raises:
        HoldfastError: shapes differ, or the disk refuses.
    """
    _check({"inputs": inputs, **{f"outputs of {model}": part for model, part in outputs.items()}})
    for defence, by_model in protected.items():
        _check({"inputs": inputs, **{f"{defence} outputs of {m}": part for m, part in by_model.items()}})
    cells, rows = [], []
    for model, clean in outputs.items():
        for i in range(len(inputs)):
            of_defences = [
                by_model[model][i] if model in by_model else "not\nmeasured"
                for by_model in protected.values()
            ]
            cells.append([inputs[i], clean[i], *of_defences])
            edit = edits[model][i] if edits else ""
            rows.append(f"{model}\n{edit}".strip() if i == 0 else edit)
    columns = ["input x", "edit G(x)", *(f"{defence}\nG(x')" for defence in protected)]
    _write_grid(path, cells, columns, rows, blocks=len(inputs), limit=LIMIT_OF_MANY)


def figure_6(path, originals, protected, texts=None, amplify=10):
    """Protected images beside the originals, and their difference amplified, as the paper's Fig. 6.

    Args:
        path: the PNG file.
        originals: uint8 (n, S, S, 3).
        protected: {defence: uint8 (n, S, S, 3)}, as stored.
        texts: {defence: text under its column, or a list of n texts, one under each face}.
        amplify: factor of the difference, which is drawn around middle grey.

    Raises:
        HoldfastError: shapes differ, or the disk refuses.
    """
    _check({"originals": originals, **protected})
    texts = {defence: (texts or {}).get(defence, "") for defence in protected}
    cells, rows, captions = [], [], []
    for i, face in enumerate(originals):
        images = {defence: part[i] for defence, part in protected.items()}
        last = i == len(originals) - 1
        cells += [[face, *images.values()]]
        cells += [[None, *(_difference(face, image, amplify) for image in images.values())]]
        rows += ["image", f"difference\n× {amplify}"]
        # A text for the whole column goes under its last row, a text for each face under the face.
        captions += [["", *("" if isinstance(text, str) else text[i] for text in texts.values())]]
        captions += [["", *(text if isinstance(text, str) and last else "" for text in texts.values())]]
    _write_grid(
        path, cells, ["original x", *(f"{d} x'" for d in protected)], rows, captions, blocks=2, thumb=144
    )


def figure_7(path, originals, protected, boxes_before, boxes_after):
    """Detected faces before and after the protection, as the TSDF paper's Fig. 7.

    Columns: the original, then each defence; under each image the number of boxes by detector. Colours
    as in the paper: S3FD green, DSFD red, RetinaFace blue.

    Args:
        path: the PNG file.
        originals: n images, uint8 (H, W, 3) each; sizes may differ.
        protected: {defence: n images of the originals' sizes}.
        boxes_before: {detector: n arrays (k, 4)}, x1, y1, x2, y2 in the original's pixels.
        boxes_after: {defence: {detector: n arrays (k, 4)}}.

    Raises:
        HoldfastError: numbers of images differ, or the disk refuses.
    """
    for title, part in {**protected, **boxes_before}.items():
        if len(part) != len(originals):
            raise HoldfastError(
                f"figure 7: {title} has another number of images", found=len(part), expected=len(originals)
            )
    colours, spare = {}, iter(_MORE_COLOURS * 8)
    for detector in boxes_before:
        colours[detector] = BOX_COLOURS.get(detector) or next(spare)
    cells, boxes = [], []
    for i, image in enumerate(originals):
        cells.append([image, *(part[i] for part in protected.values())])
        groups = [boxes_before, *(boxes_after.get(defence, {}) for defence in protected)]
        boxes.append([{d: group[d][i] for d in boxes_before if d in group} for group in groups])
    columns = ["original", *protected]
    _write_grid(path, cells, columns, [""] * len(cells), boxes=boxes, colours=colours, thumb=144)


def sample_sheet(path, grid, columns, rows=None):
    """A sheet of images, such as the edits that a model in training makes.

    Args:
        path: the PNG file.
        grid: uint8 (rows, columns, S, S, 3).
        columns: titles of the columns.
        rows: titles of the rows, or None.

    Raises:
        HoldfastError: the number of titles is wrong, or the disk refuses.
    """
    if grid.ndim != 5 or len(columns) != grid.shape[1]:
        raise HoldfastError(
            "sample sheet: the titles do not fit the images",
            found=f"{len(columns)} titles, images of shape {grid.shape}",
            expected="(rows, columns, S, S, 3) and a title for each column",
        )
    # Names of attributes are long, and a long title makes a wide column.
    titles = [title.replace("_", "\n") for title in columns]
    _write_grid(path, [list(row) for row in grid], titles, list(rows or [""] * len(grid)))


def loss_curves(path, log):
    """One small panel for each logged quantity: every step in grey, its running mean in ink.

    Args:
        path: the PNG file.
        log: DataFrame, one row per step; the column ``step`` (or else the index) is the abscissa, each
            other column of numbers a panel.

    Raises:
        HoldfastError: the log has no numbers, or the disk refuses.
    """
    steps = log["step"] if "step" in log else log.index.to_series()
    names = [name for name in log.select_dtypes("number").columns if name != "step"]
    if not names or log.empty:
        raise HoldfastError(
            "loss curves: the log has no numbers", found=list(log.columns), expected="losses by step"
        )
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = _figure(270 * across, 190 * down)
    window = max(1, len(log) // 50)
    # More points than pixels only make the file large.
    shown = np.unique(np.linspace(0, len(log) - 1, min(len(log), 600)).astype(int))
    for i, name in enumerate(names):
        axes = figure.add_subplot(down, across, i + 1)
        smooth = log[name].rolling(window, min_periods=1).mean()
        axes.plot(steps.iloc[shown], log[name].iloc[shown], color="#c9c9c9", linewidth=0.7)
        axes.plot(steps.iloc[shown], smooth.iloc[shown], color="#1d62f0", linewidth=1.3)
        axes.set_title(name, fontsize=_FONT, color=_INK)
        axes.tick_params(labelsize=7, colors=_INK)
        axes.grid(color="#ececec", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.ticklabel_format(axis="x", style="plain")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if i >= len(names) - across:
            axes.set_xlabel("step", fontsize=7.5, color=_INK)
    figure.tight_layout(pad=0.8)
    _save(path, _png(figure))


def picture_of_text(path, text):
    """A picture that says why there is none."""
    figure = _figure(540, 190)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=_FONT, color=_INK, wrap=True)
    _save(path, _png(figure))


def _check(parts):
    first, *_ = shapes = {name: np.shape(part) for name, part in parts.items()}
    for name, shape in shapes.items():
        if shape != shapes[first] or len(shape) != 4 or shape[-1] != 3:
            raise HoldfastError(
                f"figure: '{name}' has a wrong shape", found=shape, expected=f"{shapes[first]}, as {first}"
            )


def _difference(image, protected, amplify):
    change = protected.astype(np.float32) - image.astype(np.float32)
    return np.clip(127.5 + amplify * change, 0, 255).round().astype(np.uint8)


def _write_grid(
    path,
    cells,
    columns,
    rows,
    captions=None,
    blocks=None,
    thumb=112,
    boxes=None,
    colours=None,
    limit=LIMIT,
):
    """Draw with smaller thumbnails until the file has no more than `limit` bytes."""
    sizes, data = [thumb, *(s for s in (112, 96, 80, 64, 48, 32) if s < thumb)], None
    while sizes and (data is None or len(data) > limit):
        size = sizes.pop(0)
        data = _png(_grid(cells, columns, rows, captions, blocks, size, boxes, colours))
        # Files grow about as their pixels; what would be too large anyway is not drawn.
        fitting = size * (limit / len(data)) ** 0.5
        sizes = [s for s in sizes if s <= 1.1 * fitting] or sizes[-1:]
    _save(path, data)


def _grid(cells, columns, rows, captions, blocks, size, boxes, colours):
    """A figure of thumbnails `size` pixels high with titles above, at the left and under them."""
    left = 12 + max(_text_width(row) for row in rows) if any(rows) else _GAP
    columns = [_wrapped(column, size) for column in columns]
    top = 8 + 15 * max(column.count("\n") + 1 for column in columns)
    under = [16 if boxes else 0] * len(cells)
    if captions:
        lines = [max(text.count("\n") + 1 if text else 0 for text in row) for row in captions]
        under = [4 + 12 * number if number else 0 for number in lines]
    widths = [
        max(
            _text_width(columns[c]) + _GAP,
            *(_width(row[c], size) for row in cells),
            *(_text_width(row[c]) for row in captions or []),
        )
        for c in range(len(columns))
    ]
    bottom = 22 if boxes else _GAP
    spare = [0 if not blocks or r % blocks or r == 0 else 8 for r in range(len(cells))]
    width = left + sum(w + _GAP for w in widths)
    height = top + sum(size + _GAP + u + s for u, s in zip(under, spare, strict=True)) + bottom
    figure = _figure(width, height)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    page.axis("off")
    x_of = np.cumsum([left] + [w + _GAP for w in widths])
    for c, title in enumerate(columns):
        page.text(
            x_of[c] + widths[c] / 2, top - 4, title, ha="center", va="bottom", fontsize=_FONT, color=_INK
        )
    y = top
    for r, row in enumerate(cells):
        y += spare[r]
        page.text(left - 6, y + size / 2, rows[r], ha="right", va="center", fontsize=_FONT, color=_INK)
        for c, cell in enumerate(row):
            middle = x_of[c] + widths[c] / 2
            if cell is None:
                continue
            if isinstance(cell, str):
                style = {"fontsize": 7.5, "color": _PALE}
                page.text(middle, y + size / 2, cell, ha="center", va="center", **style)
                continue
            wide = _width(cell, size)
            x = round(middle - wide / 2)
            page.imshow(
                _thumbnail(cell, wide, size), extent=(x, x + wide, y + size, y), interpolation="nearest"
            )
            if boxes:
                _draw_boxes(page, boxes[r][c], colours, x, y, size / cell.shape[0], wide, size)
            elif captions and captions[r][c]:
                page.text(
                    middle, y + size + 3, captions[r][c], ha="center", va="top", fontsize=7.5, color=_INK
                )
        y += size + _GAP + under[r]
    if boxes:
        _legend(page, colours, left, height - 9)
    page.set_xlim(0, width)
    page.set_ylim(height, 0)
    page.set_aspect("auto")
    return figure


def _draw_boxes(page, by_detector, colours, x, y, scale, wide, size):
    for i, (detector, found) in enumerate(by_detector.items()):
        for x1, y1, x2, y2 in np.reshape(found, (-1, 4)):
            place = (x + x1 * scale, y + y1 * scale)
            # Agreeing detectors draw one box over the other: the first drawn is the widest line.
            line = 2.6 - 0.8 * min(i, 2)
            box = Rectangle(place, (x2 - x1) * scale, (y2 - y1) * scale, fill=False)
            box.set(edgecolor=colours[detector], linewidth=line, joinstyle="miter")
            page.add_patch(box)
            # After it is added, which sets another clip: a box beyond the image ends at its edge.
            box.set_clip_path(Rectangle((x, y), wide, size, transform=page.transData))
    step = min(26, size / max(1, len(by_detector)))  # no wider than the image: beside it stands the next
    start = x + wide / 2 - step * (len(by_detector) - 1) / 2
    for i, (detector, found) in enumerate(by_detector.items()):
        number = len(np.reshape(found, (-1, 4)))
        style = {"fontsize": 8, "color": colours[detector], "fontweight": "bold"}
        page.text(start + i * step, y + size + 3, str(number), ha="center", va="top", **style)


def _legend(page, colours, left, y):
    x = left + 2
    for detector, colour in colours.items():
        page.add_patch(Rectangle((x, y - 5), 10, 10, fill=False, edgecolor=colour, linewidth=2))
        page.text(x + 15, y, detector, ha="left", va="center", fontsize=8, color=_INK)
        x += 30 + _text_width(detector)
    page.text(x, y, "numbers: boxes found", ha="left", va="center", fontsize=8, color=_PALE)


def _wrapped(title, size):
    """A title in lines about as wide as the column: a long one would make the column as wide."""
    letters = max(8, round(size / _LETTER))
    lines = [textwrap.wrap(line, letters, break_long_words=False) for line in title.split("\n")]
    return "\n".join(part for parts in lines for part in parts)


def _text_width(text):
    return max(round(_LETTER * len(line)) for line in text.split("\n"))


def _width(cell, size):
    if not isinstance(cell, np.ndarray):  # a gap, or a text in one
        return size
    return max(1, round(size * cell.shape[1] / cell.shape[0]))


def _thumbnail(cell, width, height):
    image = Image.fromarray(np.ascontiguousarray(cell))
    if image.size == (width, height):
        return cell
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _figure(width, height):
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure):
    buffer = io.BytesIO()
    # The software's version in the file would make two versions' files differ for nothing.
    figure.canvas.print_png(buffer, metadata={"Software": None}, pil_kwargs={"compress_level": 6})
    return buffer.getvalue()


def _save(path, data):
    with writing(Path(path)) as temporary:
        temporary.write_bytes(data)
