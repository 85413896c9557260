r"""A cheap level from one network: recompute only where an edited image differs from its original.

Let x^o(t) be the path of the original image and x(t) that of the edited one, with the same noise. They differ mostly
around the edit. With the network's tensors along x^o in memory, the network is recomputed at x on **active tiles**:

    gather the tiles with what their convolutions need around them (from other tiles, or from the reference),
    convolve the blocks, normalise, activate,
    scatter the tiles of the output into the reference's output.

That is a drift :math:`f^1(x, t)`; the network itself is :math:`f^2`, and the multilevel sum f^1 + (B/p)(f^2 - f^1)
removes what f^1 leaves out: how the rest of the image answers to the edit.

What is approximated: nothing outside the active tiles changes, at any resolution (each grows the mask by a margin of
its own pixels, so coarse ones carry the edit farther). Group normalisation sees the active tiles as they are and the
others as in the reference, so that with all tiles active the network's own result is left. `update_statistics=False`
takes its mean and variance from the reference, as SIGE does.

Where the input itself enters the output pixel by pixel (as in a preconditioned network, :math:`c x + d F(x)`), the
actual x is used everywhere; only F is the reference's outside the tiles.

Any module of convolutions, group normalisation, nearest upsampling and operations on each pixel runs sparsely as it is;
anything else in it (attention, other normalisations) runs on whole tensors, completed by the reference.

References:
    Li et al. 2022, Efficient Spatially Sparse Inference for Conditional GANs and Diffusion Models (arXiv 2211.02048).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.sparse.layout import Geometry
from multilevel_diffusion.sparse.tape import Recording, Slot, Tape, Trimming, size_in_bytes
from multilevel_diffusion.sparse.tile_operations import run
from multilevel_sde.cost import Drift

__all__ = ["Reference", "SparseDrift", "changed_region"]


def changed_region(original: Tensor, edited: Tensor, *, tolerance: float = 0.01, grow: int = 0) -> Tensor:
    """Return where two images differ by more than a tolerance in some channel.

    Arguments:
        original: (B, C, H, W).
        edited: The same shape.
        tolerance: Largest difference that does not count.
        grow: By how many pixels to widen the region.

    Returns:
        Bool (B, H, W).

    Raises:
        ValueError: The shapes differ or are not (B, C, H, W), or a number is negative.

    Example:
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> edited = image.clone()
        >>> edited[..., 2, 3] = 1.0
        >>> int(changed_region(image, edited).sum()), int(changed_region(image, edited, grow=1).sum())
        (1, 9)
    """
    if original.dim() != 4 or original.shape != edited.shape:
        raise ValueError(
            f'"edited" has shape {tuple(edited.shape)} and "original" {tuple(original.shape)}, expected one shape '
            "(B, C, H, W); crop or resize one of them"
        )
    if tolerance < 0 or grow < 0:
        raise ValueError(f'"tolerance" is {tolerance} and "grow" {grow}, expected numbers of at least 0; raise them')
    differs = ((original - edited).abs() > tolerance).any(1)
    return F.max_pool2d(differs[:, None].float(), 2 * grow + 1, stride=1, padding=grow)[:, 0] > 0


class Reference:
    """A drift's tensors along the path of the original images, at given times.

    It serves every edit of these images. Making it costs one dense evaluation per time. It holds the input of every
    convolution larger than 1x1, which is much for large images, see `memory`; with keep=False only the states are held,
    and each edit evaluates them again.

    Arguments:
        drift: Callable (x, t) made of one convolutional network, such as a denoiser.
        times: Times (N,) at which the sparse drift will be asked.
        states: State of the original images at each of them, each (B, C, H, W).
        tile: Largest side of a tile, in pixels of every resolution. Larger tiles are faster for each pixel and cover
            more pixels than the edit.
        keep: Whether to hold the tensors for later edits.
        progress: Show a progress bar.

    Raises:
        TypeError: `drift` is not callable.
        ValueError: Not one state per time, states of different or other shapes, or a tile below 1.

    Example:
        >>> conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> original = torch.zeros(1, 1, 16, 16)
        >>> reference = Reference(lambda x, t: conv(x), [0.5], [original])
        >>> mask = torch.zeros(16, 16, dtype=torch.bool)
        >>> mask[5, 5] = True
        >>> sparse = SparseDrift(reference, mask)
        >>> edited = original + mask
        >>> bool(torch.allclose(sparse(edited, torch.tensor(0.5)), conv(edited), atol=1e-6))
        True
    """

    def __init__(
        self,
        drift: Drift,
        times: Tensor | Sequence[float],
        states: Tensor | Sequence[Tensor],
        *,
        tile: int = 4,
        keep: bool = True,
        progress: bool = False,
    ):
        if not callable(drift):
            raise TypeError(f'"drift" is a {type(drift).__name__}, expected a callable (x, t); wrap it in a function')
        self.times = torch.as_tensor(times, dtype=torch.float64).cpu()
        if self.times.dim() != 1 or len(self.times) != len(states) or len(states) == 0:
            raise ValueError(
                f'"states" has {len(states)} entries for "times" of shape {tuple(self.times.shape)}, expected one state'
                " per time; pass solution.ys of a solve with save=True"
            )
        shapes = {tuple(state.shape) for state in states}
        if len(shapes) > 1 or states[0].dim() != 4:
            raise ValueError(f'"states" have shapes {sorted(shapes)}, expected one shape (B, C, H, W); pass images')
        if tile < 1:
            raise ValueError(f'"tile" is {tile}, expected a side of at least 1; 4 is usual')
        self.drift, self.tile, self.states = drift, tile, list(states)
        numbers = tqdm(range(len(states)) if keep else (), "reference", disable=not progress, unit="time")
        self._tapes = [self._record(number) for number in numbers]

    def tape(self, number: int) -> dict[int, Slot]:
        """Return what is stored of one time; a dense evaluation if it was not kept."""
        return self._tapes[number] if self._tapes else self._record(number)

    def _record(self, number: int) -> dict[int, Slot]:
        tape, state = Recording(), self.states[number]
        run(self.drift, state, self.times[number].to(state.device), tape, None, self.tile)
        return tape.slots

    @property
    def memory(self) -> int:
        """Bytes held, of all times."""
        return sum(size_in_bytes(slots) for slots in self._tapes) + sum(
            state.numel() * state.element_size() for state in self.states
        )


class SparseDrift:
    """The drift recomputed on the tiles of an edit, f(x, t); everything else is the reference's.

    It holds only what it reads of the reference: the rim of the tiles, sums, and the output; the reference may be
    dropped after the last edit. Images of a batch are compared with the reference's images in turn, image i with image
    i mod B; so a batch may hold several copies of all of them.

    Arguments:
        reference: What is stored of the original.
        mask: Edited pixels, bool (H, W) or (B, H, W); see :func:`changed_region`.
        margin: By how many of its pixels each resolution grows the mask. A larger one is more expensive and errs less.
        dense_above: A resolution with a larger share of active tiles is computed as a whole.
        update_statistics: Whether group normalisation sees the active tiles, or has the reference's mean and variance.
        progress: Show a progress bar.

    Raises:
        ValueError: The mask does not fit the reference, marks nothing, or a number is out of range; on a call, if the
            time is not one of the reference, the state does not fit it, or a gradient is asked for.

    Example:
        >>> import multilevel_sde as mls
        >>> from multilevel_diffusion.networks.unet import UNet, UNetConfig
        >>> net = UNet(UNetConfig(base_dim=4, bottom_depth=1, mid_depth=1, levels=1, image_size=32))
        >>> mask = torch.zeros(32, 32, dtype=torch.bool)
        >>> mask[8:12, 8:12] = True
        >>> sparse = SparseDrift(Reference(net, [0.5], [torch.zeros(1, 3, 32, 32)]), mask)
        >>> costs = mls.FlopCost(torch.zeros(1, 3, 32, 32), t=0.5)([sparse, net])
        >>> bool(costs[0] < 0.4 * costs[1])
        True
    """

    def __init__(
        self,
        reference: Reference,
        mask: Tensor,
        *,
        margin: int = 1,
        dense_above: float = 0.6,
        update_statistics: bool = True,
        progress: bool = False,
    ):
        shape = reference.states[0].shape
        mask = mask[None] if mask.dim() == 2 else mask
        if mask.dtype != torch.bool or mask.shape[1:] != shape[2:] or mask.shape[0] not in (1, shape[0]):
            raise ValueError(
                f'"mask" is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool ({shape[0]}, {shape[2]}, '
                f"{shape[3]}); make it with changed_region"
            )
        if not mask.any():
            raise ValueError('"mask" marks no pixel, expected an edit; there is nothing to compute')
        if margin < 0 or dense_above < 0:
            raise ValueError(
                f'"margin" is {margin} and "dense_above" {dense_above}, expected numbers of at least 0; raise them'
            )
        self._drift, self._tile, self._update = reference.drift, reference.tile, update_statistics
        self._margin, self._dense_above = margin, dense_above
        self._mask = mask.expand(shape[0], -1, -1).to(reference.states[0].device)
        self._geometries: dict[int, Geometry] = {}
        self._like = reference.states[0]
        self._slots: dict[float, dict[int, Slot]] = {}
        for number in tqdm(range(len(reference.states)), "sparse drift", disable=not progress, unit="time"):
            t, state, tape = reference.times[number], reference.states[number], Trimming(reference.tape(number))
            self._run(state, t.to(state.device), tape)
            self._slots[float(t)] = tape.read

    @property
    def memory(self) -> int:
        """Bytes held, of all times."""
        return sum(size_in_bytes(slots) for slots in self._slots.values())

    def shares(self) -> dict[tuple[int, int], float]:
        """Return the active share of each resolution (H, W) that the network has passed; 1 where it runs as a whole."""
        return self._geometry(len(self._like)).shares()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the drift, shaped like x (B, C, H, W); t is 0-d, one of the reference's times."""
        slots = self._slots.get(float(t))
        if slots is None:
            raise ValueError(
                f'"t" is {float(t)}, which the reference does not have; record it at the times of the grid'
            )
        like = self._like
        if x.shape[1:] != like.shape[1:] or len(x) % len(like) or (x.dtype, x.device) != (like.dtype, like.device):
            raise ValueError(
                f'"x" is {x.dtype} of shape {tuple(x.shape)} on {x.device}, expected {like.dtype} on {like.device} and '
                f"copies of the reference's {tuple(like.shape)}; record the reference for these images"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError('"x" requires a gradient, which a sparse drift has not; solve with gradients=False')
        return self._run(x, t, Tape(slots))

    def _run(self, x: Tensor, t: Tensor, tape: Tape) -> Tensor:
        return run(self._drift, x, t, tape, self._geometry(len(x)), self._tile, self._update)

    def _geometry(self, batch: int) -> Geometry:
        if batch not in self._geometries:
            mask = self._mask.repeat(batch // len(self._like), 1, 1)
            self._geometries[batch] = Geometry(mask, len(self._like), self._tile, self._margin, self._dense_above)
        return self._geometries[batch]
