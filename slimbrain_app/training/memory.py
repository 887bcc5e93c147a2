"""How many windows a process holds at once, and whether it keeps their activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slimbrain_app.settings import Pace

# GiB that a window takes in a training step: what autograd keeps of both encoders' and the
# predictor's passes over the template's brain, as measured in bfloat16, twice that for whatever
# else is alive at the peak.
GIB_PER_WINDOW = {"tiny": 0.07, "base": 0.7, "official": 3.0}
# A fine-tuning has gradients of all tokens, not of those that are seen; its one encoder is all.
_WHOLE = 2.0
# What float32 takes of bfloat16's, and what is left of it where activations are recomputed.
_FLOAT32, _RECOMPUTED = 1.8, 0.35
# Weights, gradients, two moments and the target encoder; torch itself.
_GIB_BESIDE = {"tiny": 0.6, "base": 1.5, "official": 1.5}
# Below it a GPU idles between kernels; a CPU gains nothing above it.
_GOOD = 8
_USED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Load:
    """Windows at once, whether activations are recomputed, and what that takes (GiB)."""

    at_once: int
    recompute: bool
    gib: float


def choose_load(
    preset: str,
    share: int,
    precision: torch.dtype,
    gib: float,
    on_gpu: bool,
    pace: Pace,
    *,
    whole: bool = False,
) -> Load:
    """Fill the memory at hand with windows, up to ``share`` of them.

    Parameters
    ----------
    share : int
        A process's windows of a step.
    gib : float
        Memory at hand, for one process.
    on_gpu : bool
    pace : Pace
        What it states is not chosen.
    whole : bool
        Whether nothing of a window is hidden.
    """
    each = GIB_PER_WINDOW[preset] * (_FLOAT32 if precision == torch.float32 else 1)
    each *= _WHOLE if whole else 1
    room = max(gib * _USED_SHARE - _GIB_BESIDE[preset], 0)
    most = share if on_gpu else min(share, _GOOD)
    recompute = pace.recompute
    if recompute is None:
        recompute = room < each * min(pace.at_once or _GOOD, most)
    each *= _RECOMPUTED if recompute else 1
    at_once = pace.at_once or max(1, min(most, int(room / each)))
    return Load(at_once, recompute, _GIB_BESIDE[preset] + at_once * each)


def measure_free(device: torch.device, host_gib: float) -> float:
    """Return the memory at hand in GiB: a GPU's own, or the process's share of the host's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free / 2**30)
    return host_gib
