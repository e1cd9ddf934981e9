"""What docs/trainers.md lists: every trainer on every base that runs here, with every offset, saved in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

import loraga
from loraga.layers import lora_layers
from loraga.offset import offset_of, trained_factors
from tests.integration.common import train_logits
from tests.integration.trainers import TRAINERS, TrainerKind
from tests.models import relative_difference, with_lora
from tests.quantised import CONFIG, KINDS

UNQUANTISED = "unquantised"
# those whose packages `make` installs; HQQ, which has no wheel, is in tests/integration/test_quantized.py
BASES = [UNQUANTISED, *(name for name, kind in KINDS.items() if kind.package in ("bitsandbytes", "torchao"))]
OFFSETS = ("adapter", "none", "weights")
BY_CONFIG = ", peft_config"  # TRL is given the base model and a LoraConfig
GIVEN = {**TRAINERS, **{f"{name}{BY_CONFIG}": kind for name, kind in TRAINERS.items() if kind.has_reference}}

# sizes that quantisation's blocks fit
T5_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "dropout_rate": 0.0}
BATCHES, STEPS = 2, 2
MERGED = "export(merge=True)"


@dataclass(frozen=True)
class Cell:
    """One combination of a trainer, the base that it trains on, and the way to keep the function."""

    trainer: str
    base: str
    offset: str

    @property
    def name(self) -> str:
        return f"{self.trainer} / {self.base} / {self.offset}"

    @property
    def kind(self) -> TrainerKind:
        return GIVEN[self.trainer]

    @property
    def rounds_its_head(self) -> bool:
        """TRL casts all that is trained on bitsandbytes' bases to bfloat16, a head too, so that it needs autocast."""
        is_bitsandbytes = self.base != UNQUANTISED and KINDS[self.base].package == "bitsandbytes"
        return is_bitsandbytes and self.kind.is_trls and self.kind.lora.get("task_type") == "SEQ_CLS"

    @property
    def refusal(self) -> str | None:
        """How the error of `initialize_trainer` starts, where it is one."""
        if self.offset != "weights":
            return None
        if self.kind.has_reference and BY_CONFIG not in self.trainer:
            return "offset='weights' changes the base under the model's other adapters (ref)"
        return None if self.base == UNQUANTISED else "a layer: offset='weights' cannot change a quantised weight"

    def refusal_to_save(self, way: str) -> str | None:
        """How the error of a way of saving starts, where it is one."""
        if way == MERGED and self.base != UNQUANTISED:
            return "a layer: its base weight is quantised, so merging would round the adapter away"
        return None

    @property
    def is_sampled(self) -> bool:
        """Tried by `make test` too: every trainer on NF4, every base with two trainers, every offset with one."""
        of_every_base = self.trainer in ("Trainer", "SFTTrainer") and self.offset == "adapter"
        of_every_offset = self.trainer == "Trainer" and self.base in (UNQUANTISED, "NF4")
        return of_every_base or of_every_offset or (self.base == "NF4" and self.offset == "adapter")


CELLS = {
    cell.name: cell
    for offset in OFFSETS
    for trainer in GIVEN
    for base in BASES
    for cell in [Cell(trainer, base, offset)]
}
WORKING = [cell for cell in CELLS.values() if cell.refusal is None]
REFUSED = [cell for cell in CELLS.values() if cell.refusal is not None]


@cache
def float_directory(trainer: str, folder: Path) -> Path:
    """Where the trainer's kind of model lies, unquantised, of sizes that can be quantised."""
    tiny: Any = GIVEN[trainer].base()
    sizes = T5_SIZES if tiny.config.model_type == "t5" else CONFIG
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = type(tiny)(type(tiny.config)(**{**tiny.config.to_dict(), **sizes}))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    if hasattr(tiny, "generation_config"):
        model.generation_config = tiny.generation_config
    directory = folder / trainer
    model.save_pretrained(directory)
    return directory


class Run:
    """A cell's trainer, started and trained for two steps, with what the model gave on the way."""

    def __init__(self, cell: Cell, folder: Path, models: Path) -> None:
        self.cell, self.folder = cell, folder
        self._directory = float_directory(cell.trainer, models)
        self.probe = cell.kind.probe_batch()
        self.trainer = self._trainer()
        self.model = self.trainer.model

    def base(self) -> Any:
        """The base model, anew, in eval mode."""
        if self.cell.base == UNQUANTISED:
            model = type(self.cell.kind.base()).from_pretrained(self._directory)
        else:
            model = KINDS[self.cell.base].make(self._directory)
        for parameter in model.parameters():  # products differ in the last bit where memory is mapped from a file
            if type(parameter) is nn.Parameter and type(parameter.data) is Tensor:
                parameter.data = parameter.data.clone()
        return model

    def start(self) -> loraga.Report:
        settings = {"keep_original": True} if self.cell.offset == "weights" else {}
        return loraga.initialize_trainer(self.trainer, BATCHES, offset=self.cell.offset, progress=False, **settings)

    def train(self) -> None:
        self.before = self.logits()
        self.report = self.start()
        self.started = self.logits()
        self.trainer.train()
        self.trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # without Trainer's autocast
        self.trained = self.logits()
        self.changes = {name: change(layer) for name, layer in lora_layers(self.model, "default").items()}
        with self.model.disable_adapter():
            self.disabled = self.logits()

    def logits(self, model: Any = None) -> Tensor:
        """In train mode, whose kernels are those of training; there is no dropout."""
        with in_float32(self.model if model is None else model) as model:
            return train_logits(model, self.probe)

    def _trainer(self) -> Any:
        kind = self.cell.kind
        settings = {"max_steps": STEPS, "save_steps": STEPS, "bf16": self.cell.rounds_its_head}
        if BY_CONFIG in self.cell.trainer:
            peft_config = kind.peft_config(lora_dropout=0.0)
            return kind.make(self.folder, self.base(), peft_config=peft_config, **settings)
        return kind.make(self.folder, with_lora(self.base(), **{**kind.lora, "lora_dropout": 0.0}), **settings)


def change(layer: Any, adapter_name: str = "default") -> Tensor:
    """eta (B A - B0 A0) in float64, (d_out, d_in); PEFT's own layer has no start."""
    now = trained_factors(layer, adapter_name)
    product = now.B.double() @ now.A.double()
    if hasattr(layer, "lora_offset_A"):
        start = offset_of(layer, adapter_name)
        product = product - start.B.double() @ start.A.double()
    return layer.scaling[adapter_name] * product


@contextmanager
def in_float32(model: nn.Module) -> Iterator[nn.Module]:
    """Computes without rounding products, from the same values: TRL casts what is trained to bfloat16."""
    tensors = [tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if ".default" in name]
    dtypes = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    yield model
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        tensor.data = tensor.data.to(dtype)


# ---- ways of saving


def checkpoint(run: Run, _: Path) -> None:
    assert_loads(run, run.folder / f"checkpoint-{STEPS}")


def save_pretrained(run: Run, folder: Path) -> None:
    run.model.save_pretrained(str(folder))
    assert_loads(run, folder)


def export(run: Run, folder: Path) -> None:
    loraga.export(run.model, folder)
    assert_loads(run, folder)


def export_of_the_trained_rank(run: Run, folder: Path) -> None:
    """It holds the best approximation of each layer's change, and says how far that is from all of it."""
    exported = loraga.export(run.model, folder, rank=2)
    plain = PeftModel.from_pretrained(run.base(), str(folder))
    assert plain.peft_config["default"].r == 2
    is_half = any(parameter.dtype != torch.float32 for parameter in trained_parameters(run.model))
    for name, layer in lora_layers(plain, "default").items():
        U, S, Vh = torch.linalg.svd(run.changes[name])
        best = U[:, :2] * S[:2] @ Vh[:2]
        assert relative_difference(change(layer), best) < (2**-6 if is_half else 1e-4), name
        assert abs(exported.relative_errors[name] - float(S[2:].norm() / S.norm())) < 1e-3, name
    assert relative_difference(run.logits(plain), run.logits(run.base())) > 1e-4


def export_merged(run: Run, folder: Path) -> None:
    loraga.export(run.model, folder, merge=True)
    merged = type(run.cell.kind.base()).from_pretrained(folder)
    assert relative_difference(run.logits(merged), run.trained) < 1e-5


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_loads(run: Run, directory: Path) -> None:
    """Plain PEFT gives the trained logits on the base."""
    plain = PeftModel.from_pretrained(run.base(), str(directory))
    assert not [key for key in plain.state_dict() if "lora_offset" in key]
    assert relative_difference(run.logits(plain), run.trained) < 1e-5


WAYS: dict[str, Callable[[Run, Path], None]] = {
    "checkpoint": checkpoint,
    "save_pretrained": save_pretrained,
    "export": export,
    "export(rank=r)": export_of_the_trained_rank,
    MERGED: export_merged,
}
