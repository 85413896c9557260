"""Where drifts live and how fast each runs. Every function here takes a drift, or a ladder, and gives one.

Rooms:
    acceleration   lower precision, torch.compile, CUDA graphs.
    placement      levels on several devices, between which only the state moves.
    offload        expensive levels whose weights are on the device only around their evaluations.
    offload_slot   the buffer in which those weights take turns.
"""

from multilevel_sde.devices.acceleration import Autocast, CudaGraph, compiled
from multilevel_sde.devices.offload import Offload, OffloadStats
from multilevel_sde.devices.placement import OnDevice, place

__all__ = ["Autocast", "CudaGraph", "Offload", "OffloadStats", "OnDevice", "compiled", "place"]
