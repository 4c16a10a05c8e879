"""AttentionGAN, v1 for several attributes (Tang et al., IJCNN 2019 and TNNLS 2021); "AGGAN" in TSDF's tables.

StarGAN's generator with four output channels instead of three: the first, through a sigmoid, is an
attention mask; the other three are the content as it is, without tanh. The output is
content * mask + x * (1 - mask), so that what the mask leaves out is the input itself. Discriminator,
losses and schedule are StarGAN's. At its published size (256 px, 64 channels, 5 attributes) the generator
has 8,433,664 parameters; keys and shapes are those of the public checkpoint.
"""

from torch import nn

from holdfast.deepfakes import stargan

SETTINGS = stargan.SETTINGS


class Generator(stargan.Generator):
    """(N, 3, S, S) in [-1, 1] and labels (N, A) to (N, 3, S, S); the content may leave [-1, 1]."""

    def __init__(self, channels=64, attributes=5, blocks=6):
        super().__init__(channels, attributes, blocks)
        # The last convolution has a channel for the mask, and there is no tanh behind it.
        self.main = self.main[:-2].append(nn.Conv2d(channels, 4, 7, 1, 3, bias=False))

    def attention(self, x, labels):
        """The mask (N, 1, S, S) in [0, 1] and the content (N, 3, S, S)."""
        output = self.main(stargan.with_label_maps(x, labels))
        return output[:, :1].sigmoid(), output[:, 1:]

    def forward(self, x, labels):
        mask, content = self.attention(x, labels)
        return content * mask + x * (1 - mask)


class AttentionGAN(stargan.StarGAN):
    """The deepfake model as the rest of Holdfast sees it (interface: deepfakes/model.py)."""

    title = "AGGAN"
    paper = "Tang et al., IJCNN 2019"
    licence = "CC BY-NC-SA 4.0 (code); weights for research on CelebA's terms"
    make_generator = Generator


REGISTER = {"attentiongan": AttentionGAN}
