"""Running a network on the active tiles of its tensors, operation by operation.

The network is not changed. While it runs, a dispatch mode looks at every operation of torch:

- a convolution of images gives an `_Image`, known on the active tiles of its resolution only (or on all pixels, where
  the resolution is computed as a whole); nearest upsampling of one does too;
- an operation that acts on each pixel by itself acts on these tiles;
- group normalisation sums over the active tiles and adds the reference's sums over the others;
- before any other operation, and where an `_Image` meets an ordinary tensor with pixels, its inactive tiles are filled
  from the reference. So everything else (attention, say) runs on whole tensors and costs what it always does.

Recording the reference is the same run with all resolutions computed as a whole and every tensor that might be asked
for kept, in order, so that the numbers of these slots are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from multilevel_diffusion.sparse.layout import Gather, Geometry, Layout, Places, pixels, tile_at
from multilevel_diffusion.sparse.tape import Moments, Tape, shifted_sums

__all__ = ["run"]

aten = torch.ops.aten
_CHANGED_BY_PIXEL = "add addcmul clamp div elu leaky_relu mul neg relu sigmoid sub tanh silu"
_BY_PIXEL = f"{_CHANGED_BY_PIXEL} abs celu clone detach exp gelu hardswish mish pow rsub softplus sqrt _to_copy cat"
BY_PIXEL = {getattr(aten, name) for name in _BY_PIXEL.split()}
IN_PLACE = {getattr(aten, f"{name}_"): getattr(aten, name) for name in _CHANGED_BY_PIXEL.split()}


def run(
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    tape: Tape,
    geometry: Geometry | None,
    tile: int,
    update_statistics: bool = True,
) -> Tensor:
    """Evaluate network(x, t) on active tiles, without gradients.

    Arguments:
        network: What is evaluated.
        x: State (B, C, H, W).
        t: Its time.
        tape: What is remembered of the reference, or records it.
        geometry: The active tiles; None computes everything.
        tile: Largest side of a tile.
        update_statistics: Whether group normalisation sees the active tiles; otherwise it has the reference's numbers.

    Returns:
        The output, shaped like x; inactive tiles are the reference's.
    """
    with torch.inference_mode(False), torch.no_grad(), _Run(tape, geometry, tile, update_statistics, len(x)) as mode:
        return mode.complete(network(x, t)).contiguous()


class _Image(Tensor):
    """A tensor (B, C, H, W) known on active tiles: values (N, C, b, b), or (B, C, H, W) where `known` is None."""

    held: Tensor
    known: Layout | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor, layout: Layout | None, batch: int) -> _Image:
        size = values.shape[2:] if layout is None else layout.size
        shape = (batch, values.shape[1], *size)
        image = Tensor._make_wrapper_subclass(cls, shape, dtype=values.dtype, device=values.device)  # type: ignore[attr-defined]
        image.held, image.known = values, layout
        return image

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise ValueError(f'"drift" kept a tensor of a sparse evaluation and used it in {func} after it; do not keep it')


class _Run(TorchDispatchMode):
    """One evaluation."""

    def __init__(self, tape: Tape, geometry: Geometry | None, tile: int, update_statistics: bool, batch: int):
        super().__init__()
        self.tape, self.geometry, self.tile, self.update_statistics = tape, geometry, tile, update_statistics
        self.batch, self.slots = batch, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten.convolution and args[0].dim() == 4 and args[0].shape[0] == self.batch:
            return self.convolution(func, *args)
        if _Image not in types:
            return func(*args, **kwargs)
        if packet is aten.native_group_norm:
            return self.group_norm(func, *args)
        if packet is aten.upsample_nearest2d:
            return self.upsample(func, args, kwargs)
        if packet in BY_PIXEL:
            return self.by_pixel(func, args, kwargs)
        if func._schema.is_mutable and isinstance(args[0], _Image):
            return self.in_place(func, args, kwargs)
        return self.elsewhere(func, args, kwargs)

    # -- parts of images ------------------------------------------------------------------------------------------

    def slot(self, image: Any) -> int:
        """Return the number of a tensor that the reference may have to complete; an ordinary one is complete."""
        if not isinstance(image, _Image):
            return -1
        self.slots += 1
        self.tape.keep(self.slots, lambda: pixels(image.held).clone())
        return self.slots

    def complete(self, image: Any) -> Any:
        """Return an image as an ordinary tensor, its inactive tiles filled from the reference."""
        return self.filled(image, self.slot(image))

    def filled(self, image: Any, number: int) -> Any:
        if not isinstance(image, _Image):
            return image
        if image.known is None:
            return image.held
        assert self.geometry is not None
        return self.take(self.geometry.whole(image.known), image, number)

    def take(self, gather: Gather, image: Tensor, number: int) -> Tensor:
        """Return windows of a tensor, (N, C, h, w)."""
        if not isinstance(image, _Image) or image.known is None:
            return gather(image.held if isinstance(image, _Image) else image, None)
        return gather(image.held, self.tape.halo(number, gather.halo))

    def tiles(self, image: Tensor, number: int, target: Layout, places: Places, key: object) -> Tensor:
        """Return what the target's tiles need of a tensor, (N, C, h, w)."""
        assert self.geometry is not None
        known = image.known if isinstance(image, _Image) else None
        gather = self.geometry.windows((image.shape[2], image.shape[3]), known, target, places, key)
        return self.take(gather, image, number)

    def layout(self, size: tuple[int, ...]) -> Layout | None:
        return None if self.geometry is None else self.geometry.layout((size[0], size[1]))

    # -- operations -----------------------------------------------------------------------------------------------

    def convolution(self, func, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
        arguments = (weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
        one_by_one = kernel == (1, 1) and max(stride) == 1 and not any(padding) and not transposed
        if isinstance(x, _Image) and one_by_one:
            return _Image(self.one_by_one(func, x, arguments), x.known, x.shape[0])
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if transposed:
            out = tuple(n * s for n, s in zip(size, stride, strict=True))
            aligned = kernel == tuple(stride) and max(dilation) == 1 and not any(padding) and not any(output_padding)
            if not aligned or any(tile_at(self.tile, out) % s for s in stride):
                return self.elsewhere(func, (x, *arguments), {})
        else:
            sides = zip(size, padding, reach, stride, strict=True)
            out = tuple((n + 2 * p - r - 1) // s + 1 for n, p, r, s in sides)
        number, target = self.slot(x), self.layout(out)
        if target is None:
            return _Image(func(self.filled(x, number), *arguments), None, x.shape[0])
        side = target.tile

        def places(origins: Tensor, axis: int) -> Tensor:
            step = stride[axis]
            if transposed:
                return _run_of(origins // step, side // step)
            return _run_of(origins * step - padding[axis], (side - 1) * step + reach[axis] + 1)

        key = (transposed, kernel, tuple(stride), tuple(padding), tuple(dilation))
        windows = self.tiles(x, number, target, places, key)
        values = func(windows, weight, bias, stride, [0, 0], dilation, transposed, [0, 0], groups)
        return _Image(values, target, x.shape[0])

    def one_by_one(self, func, x, arguments):
        if x.known is None or arguments[-1] > 1:
            return func(x.held, *arguments)
        # One matrix product, as a convolution of many tiny images would be one product for each.
        weight, bias = arguments[:2]
        rows = F.linear(pixels(x.held), weight[:, :, 0, 0], bias)
        side = x.known.tile
        return rows.view(-1, side, side, rows.shape[1]).permute(0, 3, 1, 2)

    def upsample(self, func, args, kwargs):
        x, (height, width) = args[0], args[1]
        factors = (height // x.shape[2], width // x.shape[3])
        if (height, width) != (factors[0] * x.shape[2], factors[1] * x.shape[3]):
            return self.elsewhere(func, args, kwargs)
        number, target = self.slot(x), self.layout((height, width))
        if target is None:
            return _Image(func(self.filled(x, number), *args[1:], **kwargs), None, x.shape[0])
        side = target.tile

        def places(origins: Tensor, axis: int) -> Tensor:
            return _run_of(origins, side) // factors[axis]

        return _Image(self.tiles(x, number, target, places, ("upsample", factors)), target, x.shape[0])

    def group_norm(self, func, x, weight, bias, batch, channels, area, groups, eps):
        if not isinstance(x, _Image):
            return self.elsewhere(func, (x, weight, bias, batch, channels, area, groups, eps), {})
        self.slots += 1
        number, layout, count = self.slots, x.known, area * channels // groups
        self.tape.keep(number, lambda: Moments.of(x.held, groups, tile_at(self.tile, (x.shape[2], x.shape[3]))))
        if layout is None:
            values, mean, rstd = func(x.held, weight, bias, batch, channels, area, groups, eps)
            return _Image(values, None, batch), mean, rstd
        past = self.tape.moments(number, layout)
        of = layout.images % len(past.mean)
        copies = batch // len(past.mean)
        sums = past.total.repeat(copies, 1, 1)
        if self.update_statistics:
            fresh = shifted_sums(x.held, past.mean[of])
            sums = past.sums.repeat(copies, 1, 1).index_add_(0, layout.images, fresh)
        first, second = (sums / count).unbind(-1)
        mean = (past.mean.repeat(copies, 1) + first).to(x.dtype)
        rstd = (second - first.square() + eps).rsqrt().to(x.dtype)
        scale, shift = (value.repeat_interleave(channels // groups, 1) for value in (rstd, -mean * rstd))
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        scale, shift = (_for_tiles(value[:, :, None, None], layout) for value in (scale, shift))
        return _Image(torch.addcmul(shift, x.held, scale), layout, batch), mean, rstd

    def by_pixel(self, func, args, kwargs):
        leaves = [*args, *kwargs.values()]
        tensors = [x for leaf in leaves for x in (leaf if isinstance(leaf, list) else [leaf]) if isinstance(x, Tensor)]
        images = [tensor for tensor in tensors if isinstance(tensor, _Image)]
        main = max(images, key=lambda image: image.shape[2] * image.shape[3])
        along = func.overloadpacket is not aten.cat or (args[1] if len(args) > 1 else kwargs.get("dim", 0)) in (1, -3)
        if not along or not all(_fits(tensor, main) for tensor in tensors):
            return self.elsewhere(func, args, kwargs)
        layout = main.known

        def part(leaf: Any) -> Any:
            if isinstance(leaf, _Image) and leaf.shape[2:] == main.shape[2:]:
                return leaf.held
            leaf = self.complete(leaf)
            return _for_tiles(leaf, layout) if isinstance(leaf, Tensor) else leaf

        kwargs = {name: part(value) for name, value in kwargs.items() if name != "memory_format"}
        return _Image(func(*_mapped(part, args), **kwargs), layout, main.shape[0])

    def in_place(self, func, args, kwargs):
        image = args[0]
        if func.overloadpacket in IN_PLACE:
            out = self.by_pixel(getattr(IN_PLACE[func.overloadpacket], func._overloadname), args, kwargs)
            if isinstance(out, _Image) and out.shape == image.shape:
                image.held, image.known = out.held, out.known
                return image
        raise ValueError(f'"drift" changes an image in place by {func}, which cannot run sparsely; use the other form')

    def elsewhere(self, func, args, kwargs):
        """Run any operation on whole tensors."""
        kwargs = {name: self.complete(value) for name, value in kwargs.items()}
        return func(*_mapped(self.complete, args), **kwargs)


def _mapped(function: Callable[[Any], Any], args: tuple) -> list:
    """Apply a function to the arguments of an operation, and to the members of lists among them."""
    return [[function(x) for x in arg] if isinstance(arg, list | tuple) else function(arg) for arg in args]


def _run_of(first: Tensor, count: int) -> Tensor:
    """Return `count` consecutive numbers from each entry of `first`, (N, count)."""
    return first[:, None] + torch.arange(count, device=first.device)


def _fits(tensor: Tensor, main: Tensor) -> bool:
    """Whether a tensor is an image of main's resolution, or has no pixels of its own and broadcasts over main's."""
    if isinstance(tensor, _Image) and tensor.shape[2:] == main.shape[2:]:
        return len(tensor) == len(main)
    if tensor.dim() == 4 and tensor.shape[0] not in (1, main.shape[0]):
        return False
    return tensor.dim() <= 4 and all(side == 1 for side in tensor.shape[-2:])


def _for_tiles(tensor: Tensor, layout: Layout | None) -> Tensor:
    """Return a tensor without pixels of its own, (B, C, 1, 1) or smaller, so that it broadcasts over the tiles."""
    if layout is None or tensor.dim() < 4 or len(tensor) == 1:
        return tensor
    return tensor[layout.images]
