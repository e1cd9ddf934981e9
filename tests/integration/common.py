"""A tiny model with a start, its data, and Trainer's settings, the same in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.models import batches, build, with_lora

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 8


def base(name: str = "Llama") -> Any:
    return build(name)


def started(*, seed: int = 0, gamma: float = 16, offset: str = "adapter", name: str = "Llama", **lora: Any) -> Any:
    """A PeftModel with lora_dropout 0.1, initialised; other seeds and gammas start it elsewhere."""
    import loraga

    model = with_lora(base(name), name, **{"lora_dropout": 0.1, **lora})
    loraga.initialize(model, batches(name, seed=1 + seed), gamma=gamma, offset=offset, seed=seed, progress=False)
    return model


def rows(count: int = 24, seed: int = 5) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 96, (count, 12), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in tokens]


def probe(seed: int = 9) -> dict[str, Tensor]:
    """A batch to compare logits on."""
    return batches("Llama", 1, seed)[0]


def arguments(output: Path | str, **settings: Any) -> TrainingArguments:
    defaults = {
        "max_steps": STEPS,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "seed": 3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(output), **{**defaults, **settings})


def trainer(model: Any, output: Path | str, *, callbacks: Any = (), kind: type = Trainer, **settings: Any) -> Any:
    return kind(
        model=model,
        args=arguments(output, **settings),
        train_dataset=rows(),
        eval_dataset=rows(4, seed=6),
        callbacks=list(callbacks),
    )


class Diary(TrainerCallback):
    """Keeps the adapter and the logits as they are at each step."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}
        self.logits: dict[int, Tensor] = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.states[state.global_step] = adapter_state(model)
        self.logits[state.global_step] = eval_logits(model)


def adapter_state(model: Any, adapter_name: str = "default") -> dict[str, Tensor]:
    """All tensors of an adapter, offsets too, copied."""
    return {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items()}


def eval_logits(model: Any, batch: dict[str, Tensor] | None = None) -> Tensor:
    """Logits in eval mode; the model's modes come back as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        logits = model(**(batch or probe())).logits.clone()
    for module, training in modes:
        module.training = training
    return logits


def train_logits(model: Any, batch: dict[str, Tensor] | None = None) -> Tensor:
    """Logits in train mode, dropout and all, with a random state of their own."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(17)
        logits = model(**(batch or probe())).logits.clone()
    for module, training in modes:
        module.training = training
    return logits


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert left
    different = [key for key in left if left[key].dtype != right[key].dtype or not torch.equal(left[key], right[key])]
    assert not different


def assert_moved(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """So that a comparison that holds does not hold trivially."""
    assert any(not torch.equal(left[key], right[key]) for key in left)


def write(state: dict[str, Tensor], path: Path | str) -> None:
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)


def read(path: Path | str) -> dict[str, Tensor]:
    return load_file(path)
