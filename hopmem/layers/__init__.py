"""Layers for networks: the kernelized Hopfield memory in the place of attention, with U-Hop's feature map inside.

    Hopfield          queries retrieve from keys, as in `torch.nn.MultiheadAttention`
    HopfieldPooling   learned queries retrieve from a set
    HopfieldLayer     queries retrieve from memories that are learned, or given

Everything is batch first. Arguments mean what they mean in `torch.nn.MultiheadAttention`, and the projections of
`Hopfield` have the names that they have there.
"""

from hopmem.layers.hopfield import Hopfield
from hopmem.layers.memories import HopfieldLayer
from hopmem.layers.pooling import HopfieldPooling
from hopmem.layers.separation import separation_loss
from hopmem.model.entmax import entmax

__all__ = ["Hopfield", "HopfieldLayer", "HopfieldPooling", "entmax", "separation_loss"]
