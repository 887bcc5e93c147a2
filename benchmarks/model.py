"""What the presets cost: parameters, products, memory and time, beside the released network.

Each row is measured in a process of its own: one sample of 40 volumes, template brain, random
values. *saved* is what autograd keeps of the forward pass, weights and inputs left out; *peak* is
how far the process grew; *busy* is processor time by threads, which tells more than seconds where
others are at work. Behind each figure stands its ratio to the dense official network with the same
step and precision, where that is among the rows.

::

    python benchmarks/model.py --models base tiny --steps forward     # a minute
    python benchmarks/model.py                                        # all, on two cores an hour
    python benchmarks/model.py --swift ../SwiFT                       # a checkout of SwiFT beside

The checkout must be importable: monai and einops are not among SlimBrain's dependencies.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from slimbrain_app.model.batches import MaskedView, collate_views, find_places, measure_fill
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor
from slimbrain_app.model.heads import Head, HeadedEncoder, group_parameters
from slimbrain_app.model.jepa import JEPA, Jepa
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.presets import CONTRACTS, PRESETS, EncoderSizes
from slimbrain_app.model.tokens import TokenTable, build_table, keep_brain
from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import PreparedRun
from slimbrain_app.settings import Hide, Rank

SIZES = {
    "official dense": replace(PRESETS["official"], deletion="none"),
    "official units": PRESETS["official"],
    "base": PRESETS["base"],
    "tiny": PRESETS["tiny"],
}
REFERENCE = "official dense"
STEPS = ("forward", "fine-tune", "jepa")
PRECISIONS = ("float32", "bfloat16")
GIB = 2**30

UNITS = {"parameters": 1e6, "flop": 1e9, "saved": GIB, "peak": GIB, "seconds": 1, "busy": 1}

Step = Callable[[AbstractContextManager[object]], None]
# Torch's own counter knows the kernels of GPUs only. Of each, the tensors come first.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda *shapes, **_: sdpa_flop_count(*shapes[:3])  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])  # type: ignore[no-untyped-call]
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a row costs. ``flop`` of the whole step; bytes; seconds."""

    parameters: int
    flop: int
    saved: int
    peak: int
    seconds: float
    busy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--ranking", type=int, default=1200, metavar="VOLUMES", help="0: none")
    parser.add_argument("--swift", type=Path, metavar="PATH", help="a checkout of SwiFT")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        model, step, precision = options.row
        measured = measure(model, step, precision, options.repeats, options.swift)
        print(json.dumps(asdict(measured)))
        return
    print_table(options)
    if options.ranking:
        print_ranking(options.ranking)


def print_table(options: argparse.Namespace) -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    heads = ("parameters M", "GFLOP", "saved GiB", "peak GiB", "seconds", "busy", "GFLOP/s")
    print(f"{'':35s}" + "".join(f"{head:>15s}" for head in heads))
    for step, precision in product(options.steps, options.precisions):
        models = [*options.models, *(["SwiFT"] if options.swift and step != "jepa" else [])]
        reference = None
        for model in sorted(models, key=lambda name: name != REFERENCE):
            measured = measure_apart(model, step, precision, options)
            if model == REFERENCE:
                reference = measured
            print(f"{model:15s}{step:10s}{precision:10s}" + describe(measured, reference))


def measure_apart(
    model: str, step: str, precision: str, options: argparse.Namespace
) -> Measured | None:
    """Measure a row in a new process; None, with the reason told, if it fails."""
    swift = ["--swift", options.swift] if options.swift else []
    command = [sys.executable, "-W", "ignore", __file__, *swift]
    command += ["--repeats", options.repeats, "--row", model, step, precision]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def describe(measured: Measured | None, reference: Measured | None) -> str:
    if measured is None:
        return "   not measured"
    cells = []
    for name, unit in UNITS.items():
        value = getattr(measured, name)
        ratio = f"{value / getattr(reference, name):.3f}" if reference else ""
        cells.append(f"{value / unit:9.4g} {ratio:5s}")
    return "".join(cells) + f"{measured.flop / measured.busy / 1e9:9.4g}"


def measure(model: str, step: str, precision: str, repeats: int, swift: Path | None) -> Measured:
    """Run a step once to count and some times for the clock."""
    before = peak_memory()
    torch.manual_seed(0)
    if model == "SwiFT":
        network, inputs, run = prepare_swift(swift, step)
    else:
        network, inputs, run = prepare_step(SIZES[model], step)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        flop, saved = count(network, inputs, run)
        seconds, busy = clock(run, repeats, step)
    return Measured(
        parameters=sum(parameter.numel() for parameter in counted(network).parameters()),
        flop=flop,
        saved=saved,
        peak=peak_memory() - before,
        seconds=seconds,
        busy=busy,
    )


def prepare_step(sizes: EncoderSizes, step: str) -> tuple[nn.Module, list[Tensor], Step]:
    """Return the network, its inputs, and a step that runs its forward pass in a context."""
    brain = torch.from_numpy(np.array(template_brain()))
    encoder, kept = Encoder(sizes), keep_brain(brain, sizes)
    table = build_table(kept, sizes)
    patches = torch.randn(len(table.tokens), sizes.patch_values)
    if step == "forward":
        return encoder, [patches], forward(encoder, patches, table)
    if step == "fine-tune":
        model = HeadedEncoder(encoder, [Head(sizes.embedding_width, 2)])
        return model, [patches], fine_tune(model, patches, table)
    places = find_places(kept, sizes)
    mask = draw_mask(places, sizes.final_grid[0], Hide(), (0, 0, 0))
    view = MaskedView(patches, kept, measure_fill(brain, sizes), mask)
    preset = next(name for name, known in PRESETS.items() if known.patch == sizes.patch)
    objective = Jepa(encoder, JEPA[preset]).train()
    return objective, [patches], pretrain(objective, view, sizes)


def forward(encoder: Encoder, patches: Tensor, table: TokenTable) -> Step:
    def step(watch: AbstractContextManager[object]) -> None:
        with watch:
            encoder(patches, table)

    return step


def fine_tune(model: HeadedEncoder, patches: Tensor, table: TokenTable) -> Step:
    optimiser = torch.optim.AdamW(group_parameters(model))

    def step(watch: AbstractContextManager[object]) -> None:
        with watch:
            (outputs,) = model(patches, table, (1,))
            loss = functional.cross_entropy(outputs, torch.ones(1, dtype=torch.int64))
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()

    return step


def pretrain(objective: Jepa, view: MaskedView, sizes: EncoderSizes) -> Step:
    batch = collate_views([view], sizes)
    trained = [one for one in objective.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(trained)

    def step(watch: AbstractContextManager[object]) -> None:
        with watch:
            loss = objective(batch).total
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        objective.end_step(0.5)

    return step


def prepare_swift(checkout: Path | None, step: str) -> tuple[nn.Module, list[Tensor], Step]:
    """Return SwiFT in the sizes of its sample script, on the same 40 volumes as two of its 20."""
    sys.path.insert(0, str(checkout))
    try:
        from project.module.models.swin4d_transformer_ver7 import (  # type: ignore[import-not-found]
            SwinTransformer4D,
        )
    except ImportError as error:
        raise SystemExit(f"SwiFT can't be imported from {checkout}: {error}") from error
    if not torch.cuda.is_available():  # It marks ranges for a GPU's profiler all the same.
        torch.cuda.nvtx.range_push = lambda _: None
        torch.cuda.nvtx.range_pop = lambda: None
    network = SwinTransformer4D(
        img_size=(96, 96, 96, 20),
        in_chans=1,
        embed_dim=36,
        window_size=(4, 4, 4, 4),
        first_window_size=(4, 4, 4, 4),
        patch_size=(6, 6, 6, 1),
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        to_float=True,
    )
    volumes = torch.randn(2, 1, 96, 96, 96, 20)
    optimiser = torch.optim.AdamW(network.parameters())

    def run(watch: AbstractContextManager[object]) -> None:
        with watch:
            loss = network(volumes).mean()
        if step == "fine-tune":
            torch.autograd.backward(loss)
            optimiser.step()
            optimiser.zero_grad()

    return network, [volumes], run


def count(network: nn.Module, inputs: Sequence[Tensor], run: Step) -> tuple[int, int]:
    """Return the products of one step, and the bytes that autograd kept of its forward pass."""
    there = {one.untyped_storage()._cdata for one in (*inputs, *network.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Whole numbers are the table's, which is there before and after.
        if tensor.is_floating_point() and storage._cdata not in there:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        run(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
    return counter.get_total_flops(), sum(kept.values())


def clock(run: Step, repeats: int, step: str) -> tuple[float, float]:
    """Return the fastest run's seconds, and its processor time by threads."""
    times = []
    for _ in range(repeats):
        watch = torch.inference_mode() if step == "forward" else nullcontext()
        start, busy = time.perf_counter(), time.process_time()
        run(watch)
        times.append((time.perf_counter() - start, time.process_time() - busy))
    seconds, busy = min(times)
    return seconds, busy / torch.get_num_threads()


def counted(network: nn.Module) -> nn.Module:
    """Return the part whose parameters are told: the encoder, whatever stands around it."""
    if isinstance(network, Jepa):
        return network.context
    return network.encoder if isinstance(network, HeadedEncoder) else network


def peak_memory() -> int:
    """Return the most memory that this process has held (bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def print_ranking(volumes: int) -> None:
    """Time the ranking of a whole run, from the prepared run on disk to the order."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = store_noise(Path(folder), volumes)
        extractor = TemporalExtractor(ExtractorSizes())
        for name, judge in (("weightless", None), ("with an extractor", extractor)):
            start, busy = time.perf_counter(), time.process_time()
            rank_run(prepared, CONTRACTS["tiny"], judge, Rank(), 0, "sub-01_task-rest")
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            print(f"ranking {volumes} volumes, {name}: {seconds:.2f} s, {busy:.2f} s of processor")


def store_noise(folder: Path, volumes: int) -> PreparedRun:
    """Lay down a prepared run of the template's brain, its signal noise."""
    voxels = np.flatnonzero(template_brain()).astype(np.int32)
    draw = np.random.default_rng(0)
    np.save(folder / "voxels.npy", voxels)
    np.save(folder / "mean.npy", np.full(len(voxels), 1000, np.float32))
    np.save(folder / "scale.npy", np.full(len(voxels), 0.3, np.float32))
    signal = draw.integers(-127, 127, (volumes, len(voxels)), np.int8, endpoint=True)
    np.save(folder / "signal.npy", signal)
    return PreparedRun(
        folder=folder,
        volumes=volumes,
        voxels=len(voxels),
        tr=0.72,
        dummy_scans=0,
        coverage=1.0,
        mean=1000.0,
        deviation=20.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=None,
        checksums=(),
        fingerprint="",
        notices=(),
    )


if __name__ == "__main__":
    main()
