"""Which memories are stored in the sense of U-Hop's Definition 3, found out by running the dynamics.

Around each z_μ lies a ball S_μ of radius R_Φ, half of the smallest distance, so that the balls are disjoint. ξ_μ is
stored when every start in S_μ comes to rest in S_μ. Starts are tried at the centre and at random places on the sphere,
where the pull of the others is strongest: what is refuted is not stored; what is not is, as far as was seen.
"""

import torch
from torch import Tensor

from hopmem.model.gram import Progress
from hopmem.model.hopfield import Dynamics, settle
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks, unit
from hopmem.model.sieve import states_at_once

STARTS = 4  # for each memory: the centre, and the rest on the sphere
ROUNDING = 1e-6  # of a distance
BYTES_OF_ENTRY = 64  # of a run: its start, where it came to rest, and what lies between them, in float64


def stored(
    memory: Features,
    chosen: Tensor,
    radius: float,
    dynamics: Dynamics,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Tensor:
    """Run memories from their spheres.

    Args:
        memory: unit features of M memories.
        chosen: which of them to run, int64 [m].
        radius: R_Φ, of every ball.
        dynamics: α, β, and the most steps of a run.
        generator: draws the starts, on the CPU.
        progress: told how many runs are done.

    Returns:
        Whether all runs of a memory came to rest in its ball, bool [m].
    """
    runs, inside = chosen.repeat_interleave(STARTS), []
    fitting = max(1, dynamics.budget // (BYTES_OF_ENTRY * memory.dimension))
    for part in blocks(len(runs), min(states_at_once(len(memory), dynamics.budget // 4), fitting)):
        Z = memory[runs[part]].double()  # [r, D]
        draw = torch.randn(Z.shape, generator=generator, dtype=torch.float64).to(Z.device)
        centre = torch.arange(part.start, part.stop, device=Z.device)[:, None] % STARTS == 0
        Y = torch.where(centre, Z, Z + radius * unit(draw))
        rest = settle(Y, memory, memory, memory.dimension, dynamics)
        near = (rest.patterns.double() - Z).norm(dim=1) <= radius + ROUNDING
        inside.append((near & rest.converged).cpu())
        if progress:
            progress(part.stop, len(runs))
    return torch.cat(inside).view(-1, STARTS).all(1)
