"""Store, optimize, retrieve, inspect and evaluate: files in, result out.

Each verb is a room that its command opens by itself, since inspect may answer without torch.
"""

from hopmem.pipeline.outcome import Machine, Outcome, Picture

__all__ = ["Machine", "Outcome", "Picture"]
