"""Networks with every operation that sparse runs know, states and masks: what the tests of the sparse level share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multilevel_diffusion.networks.unet import UNet, UNetConfig

T = torch.tensor(0.5, dtype=torch.float64)


class Everything(nn.Module):
    """What sparse runs know: strides, dilation, groups, affine group norms, both upsamplings, skips, in-place forms."""

    def __init__(self, extent: int = 2):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8)
        self.down, self.short = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(8, 12, 1, stride=2)
        self.middle = nn.Sequential(nn.GroupNorm(3, 12), nn.SiLU(inplace=True), nn.Conv2d(12, 12, 1, groups=2))
        self.shrink = nn.Conv2d(12, 8, 2, stride=2)
        self.grow = nn.ConvTranspose2d(8, 8, extent, stride=2, padding=(extent - 2) // 2)
        self.wider = nn.Sequential(nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3))
        self.out = nn.Conv2d(16 + 12, 3, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (1 + t.to(x.dtype)).reshape(1, 1, 1, 1).expand(len(x), 8, 1, 1)
        h = F.gelu(self.norm(self.stem(x)) * scale)
        h = self.wider(h + self.depthwise(h))
        low = self.middle(self.down(h)) + self.short(h)
        lower = self.between(self.shrink(low))
        low = torch.cat([F.interpolate(low, scale_factor=2.0), F.interpolate(self.grow(lower), scale_factor=2.0)], 1)
        return self.out(torch.cat([h, low], dim=1)) - 0.5 * torch.sigmoid(x)


class Attention(Everything):
    """With operations that need whole images."""

    def between(self, h: Tensor) -> Tensor:
        h = h * torch.sigmoid(self.wider[0](h.mean((2, 3), keepdim=True))[:, :, 1:2, 1:2])
        h = h * torch.sigmoid(F.conv2d(h.mean((2, 3), keepdim=True), self.wider[0].weight))
        tokens = h.flatten(2).transpose(1, 2)
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        h = h + tokens.transpose(1, 2).reshape(h.shape)
        return F.pad(h, (0, 1, 0, 1), mode="replicate")[:, :, 1:, 1:] * h.mean((2, 3), keepdim=True)


def unet() -> UNet:
    net = UNet(UNetConfig(base_dim=4, bottom_depth=1, mid_depth=1, levels=2, image_size=32))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


class OtherBatches(Everything):
    """With convolutions of one tensor for all images, and of two copies of each."""

    def between(self, h: Tensor) -> Tensor:
        shared = self.short(torch.ones(1, 8, 2 * h.shape[2], 2 * h.shape[3], dtype=h.dtype))[:, :8]
        both = self.stem(torch.cat([h, -h])[:, :3])
        return both.chunk(2)[1] * shared


NETWORKS = {
    "unet": unet,
    "everything": Everything,
    "overlapping": lambda: Everything(4),
    "attention": Attention,
    "batches": OtherBatches,
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A float64 network with weights from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double().eval().requires_grad_(False)


def convolution() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def states(batch: int = 1, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def square(first: int = 9, last: int = 13, side: int = 32) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[first:last, first:last] = True
    return mask


def edited(x: Tensor, mask: Tensor) -> Tensor:
    return x + mask * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
