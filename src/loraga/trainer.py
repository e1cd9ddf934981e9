"""`initialize_trainer`: LoRA-GA's start from a trainer's own data and loss, between making it and `.train()`."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from peft import PeftModel
from transformers import TrainerCallback

from .adapter import carry
from .errors import AdapterError
from .initialization import initialize
from .layers import active_adapter, lora_layers, require_unmerged
from .preconditions import require_untrained
from .ranks import initialize_on_every_rank, together
from .sharding import is_sharded
from .trainer_loss import trainer_loss
from .trainer_state import checkpointing_as_in_training, same_trainer

if TYPE_CHECKING:
    from transformers import Trainer

    from .report import Report

TESTED_TRL = ("1.0", "1.17")  # from, and below
RESUMES_ALL_ADAPTERS = "5.23"  # the first version of transformers whose Trainer does
SHARDING = ("FullyShardedDataParallel", "DeepSpeedEngine")  # wrappers that keep copies of the factors elsewhere
KEYWORDS = tuple(inspect.signature(initialize).parameters)[2:]

logger = logging.getLogger("loraga")


def initialize_trainer(trainer: Trainer, batches: int | None = 8, **keywords: Any) -> Report | None:
    """Starts a trainer's LoRA adapter along the full gradient of its own loss on its own first batches.

    One line between making the trainer and `.train()`. The batches are the first ones that training will see, through
    the trainer's sampler, collator, packing and masks; the loss is its `compute_loss`, with label smoothing and
    whatever else it does. Each batch counts by its loss terms (Trainer, Seq2SeqTrainer, SFTTrainer), its examples
    (DPOTrainer, KTOTrainer, RewardTrainer), or what the loss type averages over, completions or their tokens
    (GRPOTrainer, whose policy generates the completions of its first steps). The trainer is left as it was, random
    states too: training begins with the same batches, and ends as if the adapter had been made with this start.

    A policy that is the reference of DPO, KTO or GRPO stays it bit for bit, whether TRL was given a PeftModel or a
    `peft_config`. `.train(resume_from_checkpoint=...)` goes on from the checkpoint's start and factors, not from these.

    Where the model is wrapped already (DistributedDataParallel), the work is done at the start of training: factors are
    written in place, so that optimizer and schedule stay valid; so they are where FSDP2 has sharded the model. Several
    processes see their own batches and get the same start.

    Args:
        trainer: Trainer or Seq2SeqTrainer of transformers, or SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer or
            GRPOTrainer of TRL, or of a subclass, whose model has an untrained LoRA adapter.
        batches: micro-batches to use, of `per_device_train_batch_size` each; None uses one epoch.
        **keywords: those of `initialize` but num_batches: gamma, scheme, offset, on_missing, adapter_name, seed ...;
            loss and weight replace the trainer's.

    Returns:
        What was done, layer by layer; None if it will be done when training starts, which the log then tells.

    Raises:
        AdapterError: if a keyword is unknown, or the trainer; if it has trained; if its model has no untrained LoRA
            adapter, or not every process can reach all of it (FSDP1, DeepSpeed's ZeRO-3, cpu_ram_efficient_loading).
        BatchError: if its batches cannot be used: none, without labels, without a target.
        GradientError: if a layer has no gradient, or one that does not fit.
        OffsetError: if the function cannot be kept in the way asked for.
        ScalingError: if a layer's scaling is not the scheme's.
    """
    _require_known(keywords)
    kind = trainer_loss(trainer)
    _warn_of_untested_trl(trainer)
    if trainer.state.global_step > 0:
        raise AdapterError(
            f"the trainer has trained for {trainer.state.global_step} steps; a start belongs before the first one: "
            "make a new trainer with a new adapter"
        )
    model = _adapted_model(trainer, keywords.get("adapter_name"))
    _require_whole(trainer, model)
    _warn_of_lost_adapters(model)
    if trainer.model_wrapped is model:
        return _start(kind, model, batches, keywords)
    carry(model)  # so that a checkpoint with a start can be resumed from
    trainer.add_callback(_StartOfTraining(kind, model, batches, keywords))
    logger.info("the model is wrapped already: its adapter will be started when training starts")
    return None


def _start(kind: Any, model: PeftModel, batches: int | None, keywords: dict[str, Any]) -> Report:
    trainer = kind.trainer
    with same_trainer(trainer), checkpointing_as_in_training(trainer, model):
        trainer.current_gradient_accumulation_steps = 1  # each batch is a step of its own
        chosen = {"loss": kind.loss, "weight": kind.weight, **keywords, "num_batches": None}
        if trainer.accelerator.num_processes > 1:
            return initialize_on_every_rank(model, together(lambda: kind.batches(batches)), **chosen)
        return initialize(model, kind.batches(batches), **chosen)


class _StartOfTraining(TrainerCallback):
    """Starts the adapter before the first step, unless training goes on from a checkpoint."""

    def __init__(self, kind: Any, model: PeftModel, batches: int | None, keywords: dict[str, Any]) -> None:
        self._work: Any = (kind, model, batches, keywords)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._work is None:
            return
        work, self._work = self._work, None
        if state.global_step > 0:
            logger.info("training goes on at step %d: the checkpoint's start stands", state.global_step)
            return
        _start(*work)


def _require_known(keywords: dict[str, Any]) -> None:
    for name in keywords:
        if name == "num_batches":
            raise AdapterError("initialize_trainer() takes batches=, not num_batches=")
        if name not in KEYWORDS:
            near = difflib.get_close_matches(name, KEYWORDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AdapterError(f"initialize_trainer() got an unexpected keyword argument {name!r}{hint}")


def _warn_of_untested_trl(trainer: Any) -> None:
    if not any(kind.__module__.partition(".")[0] == "trl" for kind in type(trainer).__mro__):
        return
    version, (lowest, above) = str(sys.modules["trl"].__version__), TESTED_TRL
    if not Version(lowest) <= Version(version) < Version(above):
        warnings.warn(
            f"trl {version} has not been tested, only {lowest} up to below {above}: look at the report, and that the "
            "loss of the first step is what it is without this line",
            stacklevel=3,
        )


def _warn_of_lost_adapters(model: PeftModel) -> None:
    others = [str(name) for name in model.peft_config if name != "default"]
    version = str(transformers.__version__)
    if "default" in model.peft_config and others and Version(version) < Version(RESUMES_ALL_ADAPTERS):
        warnings.warn(
            f"transformers {version} resumes a run with several adapters by loading {', '.join(others)} alone: "
            f"'default' would go on untrained. Use transformers {RESUMES_ALL_ADAPTERS} or newer, or give TRL the base "
            "model with peft_config= instead of a PeftModel, which makes one adapter only",
            stacklevel=3,
        )


def _adapted_model(trainer: Any, adapter_name: str | None) -> PeftModel:
    """The trainer's PeftModel, whose adapter can be started as far as can be seen without a batch."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        raise AdapterError(
            f"the trainer's model, a {type(model).__name__}, has no LoRA adapter: wrap it before the trainer is made, "
            "model = peft.get_peft_model(base, LoraConfig(r=8, lora_alpha=16, use_rslora=True, "
            "target_modules='all-linear')), or pass that LoraConfig to TRL's trainers as peft_config="
        )
    name = adapter_name or active_adapter(model)
    layers = lora_layers(model, name)
    require_unmerged(layers)
    require_untrained(layers, name)
    return model


def _require_whole(trainer: Any, model: PeftModel) -> None:
    """Refuses a model of whose weights this process neither holds nor can ask for every one."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    loads_in_one_process = getattr(plugin, "cpu_ram_efficient_loading", False) and trainer.accelerator.num_processes > 1
    is_flattened = any(type(module).__name__ in SHARDING for module in trainer.model_wrapped.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )
    if is_flattened or (loads_in_one_process and not any(map(is_sharded, model.parameters()))):
        how = "sharded (FSDP1, DeepSpeed)" if is_flattened else "with one process alone (cpu_ram_efficient_loading)"
        raise AdapterError(
            f"the model is {how}, and no process can start all of it: do so in one, "
            "loraga.initialize(model, batches) and model.save_pretrained(directory), and make the model of this run by "
            "loraga.load(base, directory, is_trainable=True)"
        )
