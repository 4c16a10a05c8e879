"""The part that the public checkpoints of S3FD and DSFD have in common, written out."""

# conv1_1 to conv5_3, fc6, fc7: number in the list of layers, channels out and in, kernel.
VGG = [
    (0, 64, 3, 3), (2, 64, 64, 3),
    (5, 128, 64, 3), (7, 128, 128, 3),
    (10, 256, 128, 3), (12, 256, 256, 3), (14, 256, 256, 3),
    (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3),
    (24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3),
    (31, 1024, 512, 3), (33, 1024, 1024, 1),
]  # fmt: skip
EXTRAS = [(256, 1024, 1), (512, 256, 3), (128, 512, 1), (256, 128, 3)]
MAPS = [256, 512, 512, 1024, 512, 256]


def convolution(name, outputs, inputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def backbone():
    """{name: shape} of `vgg` and `extras`."""
    found = {}
    for number, *shape in VGG:
        found |= convolution(f"vgg.{number}", *shape)
    for number, shape in enumerate(EXTRAS):
        found |= convolution(f"extras.{number}", *shape)
    return found


def head(name, *outputs):
    """{name: shape} of six 3x3 convolutions over the maps."""
    counts = outputs if len(outputs) == 6 else outputs * 6
    found = {}
    for number, (channels, count) in enumerate(zip(MAPS, counts, strict=True)):
        found |= convolution(f"{name}.{number}", count, channels, 3)
    return found
