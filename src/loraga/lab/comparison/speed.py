"""How fast this device computes, by a short matrix product, and what share of that a run comes to.

The shares were measured once, on SmolLM2-135M-Instruct with 23 tokens a row on one core (docs/comparing.md has the
figures). Another model, another device or longer rows have others: what comes out is an order of magnitude.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..recipe import Recipe
    from .estimate import Cost

TRAINING_SHARE = 0.55
EVALUATION_SHARE = 0.6
GENERATION_SHARE = 0.6
SECONDS_OF_A_CELL = 5.0  # to load the model twice, and to write
SECONDS_TO_MEASURE = 0.2
SIZES = {"cpu": 1024, "cuda": 4096}  # of the square matrices


@dataclass(frozen=True)
class Speed:
    """A device and its rate.

    Attributes:
        device: its name.
        dtype: of the matrices.
        rate: floating point operations a second.
        is_cpu: whether it is this machine's processor, whose memory holds Python too.
    """

    device: str
    dtype: str
    rate: float
    is_cpu: bool

    def seconds(self, cost: Cost) -> float:
        """About how long a run takes."""
        shares = (
            (cost.training, TRAINING_SHARE),
            (cost.evaluation, EVALUATION_SHARE),
            (cost.generation, GENERATION_SHARE),
        )
        return SECONDS_OF_A_CELL + sum(operations / (self.rate * share) for operations, share in shares)


def speed_of(recipe: Recipe) -> Speed:
    """Measures a matrix product of the device that a recipe would run on, in the dtype that it computes in.

    Args:
        recipe: dtype, and what Trainer's device depends on.

    Returns:
        The speed, by the fastest of some products.
    """
    import torch

    from ..arguments import training_arguments

    device = training_arguments(recipe).device
    computes_in_half = recipe.trainer.get("bf16") or recipe.dtype in ("bfloat16", "auto")
    dtype = torch.bfloat16 if computes_in_half else torch.float16 if recipe.dtype == "float16" else torch.float32
    is_cuda = device.type == "cuda"
    size = SIZES.get(device.type, SIZES["cpu"])
    factors = torch.ones(size, size, dtype=dtype, device=device)
    fastest, until = float("inf"), time.perf_counter() + SECONDS_TO_MEASURE
    for number in range(1_000_000):
        seconds = _seconds_of_a_product(factors, is_cuda)
        if number:  # the first one sets things up
            fastest = min(fastest, seconds)
        if number and time.perf_counter() > until:
            break
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU" if device.type == "cpu" else device.type
    return Speed(name, str(dtype).removeprefix("torch."), 2 * size**3 / fastest, device.type == "cpu")


def _seconds_of_a_product(factors: torch.Tensor, is_cuda: bool) -> float:
    import torch

    began = time.perf_counter()
    factors @ factors
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
