"""How a ladder's error falls with its cost: the scaling plot, and the exponent gamma.

Under the scaling law of the multilevel method an error e costs T ~ e^-gamma, so squared errors fall as A T^(-2/gamma).
Three of the noise estimate are measured on held-out images, all levels seeing the same noisy images:

- the denoising loss, mean (eps_k - eps)^2, which has an irreducible part: the noise cannot be told exactly from the
  noisy image. It is fitted without (a plain power law, which overestimates gamma) and with that part;
- the difference of neighbours, mean (eps_k - eps_{k+1})^2, which has none and is what multilevel sampling pays for;
- the distance to the top level, mean (eps_k - eps_K)^2, for the plot only: it is zero for the top by construction.

References:
    Jacot, "Polynomial Speedup in Diffusion Models with the Multilevel Euler-Maruyama Method", 2026, figure 2.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from multilevel_diffusion.networks.power import PowerFit, fit_power, fit_power_with_floor
from multilevel_diffusion.process.schedule_base import NoiseSchedule
from multilevel_sde.files import write_atomically

__all__ = ["LevelErrors", "Scaling", "measure_errors"]

Net = Callable[..., Tensor]


@dataclass(frozen=True)
class LevelErrors:
    """Squared errors of the noise estimate per number, on held-out images.

    Arguments:
        loss: Denoising loss of each level, (K,).
        loss_error: Its standard error over the images, (K,).
        to_next: Squared difference of each level to the next, (K - 1,).
        to_top: Squared difference of each level to the top one, (K - 1,).
        images: Number of held-out images.
        draws: Noisy versions of each.
    """

    loss: list[float]
    loss_error: list[float]
    to_next: list[float]
    to_top: list[float]
    images: int
    draws: int

    def per_level(self) -> list[dict[str, float]]:
        """Return one JSON record per level, for `save_ladder`.

        Example:
            >>> LevelErrors([0.5, 0.3], [0.1, 0.1], [0.04], [0.04], 10, 1).per_level()[1]
            {'loss': 0.3, 'loss_error': 0.1, 'images': 10, 'draws': 1}
        """
        levels = []
        for level, (loss, error) in enumerate(zip(self.loss, self.loss_error, strict=True)):
            record = {"loss": loss, "loss_error": error, "images": self.images, "draws": self.draws}
            if level < len(self.to_next):
                record |= {"rms_to_next": self.to_next[level] ** 0.5, "rms_to_top": self.to_top[level] ** 0.5}
            levels.append(record)
        return levels


@torch.no_grad()
def measure_errors(
    networks: Sequence[Net],
    schedule: NoiseSchedule,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    draws: int = 16,
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> LevelErrors:
    """Measure what each network gets wrong on noisy versions of the same held-out images.

    Arguments:
        networks: Callables eps(x, t), cheapest first.
        schedule: The noise schedule, times in [0, 1].
        images: Held-out images (n, C, H, W) in [-1, 1].
        labels: Their classes (n,), for networks eps(x, t, label=...).
        draws: Noisy versions of each image, at times evenly spaced behind a random phase per image.
        seed: Seed of the noise and the times.
        batch: Noisy images evaluated at once.
        device: Where the networks are.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ValueError: There is no network, no image or no draw.

    Example:
        >>> from multilevel_diffusion.process.schedules import CosineSchedule
        >>> zero, wrong = (lambda x, t: 0 * x), (lambda x, t: 0 * x + 2)
        >>> errors = measure_errors([wrong, zero], CosineSchedule(), torch.zeros(4, 1, 8, 8))
        >>> errors.to_next
        [4.0]
    """
    if not networks or not len(images) or draws < 1:
        raise ValueError(
            f'"networks" has {len(networks)} entries, "images" {len(images)} and "draws" is {draws}, expected at least '
            "one of each; give more"
        )
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(len(images), generator=generator)
    levels = len(networks)
    sums = torch.zeros(3 * levels, len(images), dtype=torch.float64)
    rows = torch.arange(len(images)).split(batch)
    for draw in tqdm(range(draws), desc="measure", unit="draw", disable=not progress):
        t = schedule.t_min + (1 - schedule.t_min) * ((phase + draw / draws) % 1)
        noise = torch.randn(images.shape, generator=generator)
        x = schedule.perturb(images, noise, t)
        for row in rows:
            here = [value[row].to(device) for value in (x, t, noise)]
            told = {} if labels is None else {"label": labels[row].to(device)}
            estimates = [network(here[0], here[1], **told) for network in networks]
            pairs = [(estimate, here[2]) for estimate in estimates]
            pairs += [(a, b) for a, b in zip(estimates, [*estimates[1:], estimates[-1]], strict=True)]
            pairs += [(estimate, estimates[-1]) for estimate in estimates]
            squares = [(a - b).double().square().flatten(1).mean(dim=1) for a, b in pairs]
            sums[:, row] += torch.stack(squares).cpu()
    loss, to_next, to_top = (sums / draws).reshape(3, levels, len(images))
    spread = loss.std(dim=1) / math.sqrt(len(images)) if len(images) > 1 else torch.full((levels,), math.nan)
    return LevelErrors(
        loss=loss.mean(dim=1).tolist(),
        loss_error=spread.tolist(),
        to_next=to_next.mean(dim=1)[:-1].tolist(),
        to_top=to_top.mean(dim=1)[:-1].tolist(),
        images=len(images),
        draws=draws,
    )


@dataclass(frozen=True)
class Scaling:
    """The scaling plot of a ladder: errors, costs and the fitted laws.

    Arguments:
        errors: The measured errors.
        parameters: Number of parameters of each level.
        costs: Unit ("FLOPs", "seconds") to the cost of one image on each level.

    Example:
        >>> errors = LevelErrors([0.5, 0.3, 0.2], [0.0] * 3, [0.2, 0.1], [0.3, 0.1], 10, 1)
        >>> scaling = Scaling(errors, [10, 100, 1000], {"FLOPs": [1.0, 4.0, 16.0]})
        >>> round(scaling.fits("FLOPs")["difference of neighbours"].gamma, 3)
        4.0
    """

    errors: LevelErrors
    parameters: list[int]
    costs: dict[str, list[float]]

    def fits(self, unit: str) -> dict[str, PowerFit]:
        """Return the laws in one unit of cost, by what was fitted; laws with too few levels are left out."""
        cost, fits = self.costs[unit], {}
        if len(cost) >= 2:
            fits["loss, irreducible part included"] = fit_power(cost, self.errors.loss)
        if len(cost) >= 3:
            fits["difference of neighbours"] = fit_power(cost[:-1], self.errors.to_next)
            fits["loss, irreducible part fitted"] = fit_power_with_floor(cost, self.errors.loss)
        return fits

    def table(self) -> str:
        """Return the errors and the laws as text."""
        units = list(self.costs)
        lines = [
            f"{'level':>5} {'parameters':>11} "
            + " ".join(f"{unit:>11}" for unit in units)
            + f" {'loss':>9} {'+-':>8} {'rms to next':>12} {'rms to top':>11}"
        ]
        errors = self.errors
        for level, parameters in enumerate(self.parameters):
            row = f"{level + 1:>5} {parameters:>11} " + " ".join(f"{self.costs[unit][level]:>11.3g}" for unit in units)
            row += f" {errors.loss[level]:>9.5f} {errors.loss_error[level]:>8.5f}"
            if level < len(errors.to_next):
                row += f" {math.sqrt(errors.to_next[level]):>12.5f} {math.sqrt(errors.to_top[level]):>11.5f}"
            lines.append(row)
        for unit in units:
            lines += ["", f"gamma, cost in {unit} (95 % interval)"]
            for name, fit in self.fits(unit).items():
                floor = f", irreducible {fit.floor:.5f}" if fit.floor else ""
                lines.append(f"  {name:<34} {fit.gamma:7.2f}  ({fit.low:.2f} ... {fit.high:.2f}){floor}")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write `scaling.json` and, where matplotlib is installed, `scaling.png`."""
        fits = {unit: {name: asdict(fit) for name, fit in self.fits(unit).items()} for unit in self.costs}
        content = json.dumps(_finite({**asdict(self), "fits": fits}), indent=1, allow_nan=False) + "\n"
        write_atomically(Path(folder) / "scaling.json", content.encode())
        self._plot(Path(folder) / "scaling.png")

    def _plot(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter
        except ImportError:
            return
        figure = Figure(figsize=(5 * len(self.costs), 5), layout="constrained")
        panels = figure.subplots(1, len(self.costs), sharey=True, squeeze=False)[0]
        for axes, (unit, cost) in zip(panels, self.costs.items(), strict=True):
            fits, errors = self.fits(unit), self.errors
            floor = fits["loss, irreducible part fitted"].floor if len(cost) >= 3 else 0.0
            series = [
                ("loss, irreducible part included", "root of the loss", cost, errors.loss, 0.0),
                ("loss, irreducible part fitted", "root of the loss above its floor", cost, errors.loss, floor),
                ("difference of neighbours", "RMS distance to the next level", cost[:-1], errors.to_next, 0.0),
                (None, "RMS distance to the top level", cost[:-1], errors.to_top, 0.0),
            ]
            for colour, (name, label, x, squared, below) in enumerate(series):
                excess = np.sqrt(np.maximum(np.array(squared) - below, 0))
                fit = fits.get(name) if name else None
                text = f"{label}, γ = {fit.gamma:.1f}" if fit else label
                axes.loglog(x, np.where(excess > 0, excess, np.nan), "o", color=f"C{colour}", label=text)
                if fit:
                    line = np.geomspace(x[0], x[-1], 50)
                    axes.loglog(line, np.sqrt(np.maximum(fit(line) - below, 1e-300)), color=f"C{colour}", linewidth=1)
            axes.set_xlabel(f"{unit} per image and evaluation")
            axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
            for axis in (axes.xaxis, axes.yaxis):  # labels at 1, 2 and 5 only: in between they would overlap
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
                axis.set_minor_formatter(NullFormatter())
        panels[0].set_ylabel("error of the noise estimate")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        write_atomically(path, content.getvalue())


def _finite(value):
    """Replace infinities and NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
