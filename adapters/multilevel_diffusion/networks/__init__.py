"""Networks: what they predict, a family of UNets, their training, and ladders on disk.

Rooms:
    denoisers             (x_t, t) -> x_0 for every convention of networks. Add a denoiser here.
    guidance              Guided: a conditional network with classifier-free guidance.
    unet, patches         the families of networks: UNets, dense layers on patches. Add one beside them.
    families, modulated   families by their names; what all of them share.
    data                  sources of training images.
    image_folder          folders of image files as such a source, with labels from their subfolders.
    variations            small changes of training images; which images are near copies.
    dead_leaves_images    procedural images.
    emoji_images          the emoji of Noto as a folder of images, from an npm package.
    training              train(), train_ladder(): resumable to the bit.
    training_order        where a ladder's runs live, in which order they go, how long they will take.
    training_state        the state of a training run, its checkpoint, one step.
    store, ladder_json    ladders on disk, and those that the package ships.
    image_ladders         what sampling and pilots know of a ladder: DiffusionLadder, or an OwnLadder of yours.
    fingerprints          digests of what denoisers hold.
    by_name               what a command line names: a ladder, a source of images, a preset.
    scaling, power        error against cost, and the exponent gamma.
"""

from multilevel_diffusion.networks.denoisers import (
    DataDenoiser,
    EDMDenoiser,
    EpsilonDenoiser,
    FlowDenoiser,
    TableIndex,
    VDenoiser,
)
from multilevel_diffusion.networks.guidance import Guided
from multilevel_diffusion.networks.image_ladders import DiffusionLadder, ImageLadder, OwnLadder
from multilevel_diffusion.networks.store import (
    load_ladder,
    save_ladder,
    shipped_ladder,
    shipped_ladders,
)
from multilevel_diffusion.networks.training import train_ladder
from multilevel_diffusion.networks.training_state import TrainSettings
from multilevel_diffusion.networks.unet import UNet, UNetConfig

__all__ = [
    "DataDenoiser",
    "DiffusionLadder",
    "EDMDenoiser",
    "EpsilonDenoiser",
    "FlowDenoiser",
    "Guided",
    "ImageLadder",
    "OwnLadder",
    "TableIndex",
    "TrainSettings",
    "UNet",
    "UNetConfig",
    "VDenoiser",
    "load_ladder",
    "save_ladder",
    "shipped_ladder",
    "shipped_ladders",
    "train_ladder",
]
