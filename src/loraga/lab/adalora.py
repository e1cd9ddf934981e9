"""AdaLoRA (arXiv 2303.10512) in a run of Trainer that can be stopped and go on, and its result as a plain LoRA.

PEFT's model does the work. What it leaves to its user is here: the schedule, known when training begins; the call after
each step; the orthogonal regularisation kept out of evaluation; and the importance of each triplet, which no checkpoint
of Trainer's holds. PEFT cuts the pruned triplets off what it saves, and they may come back until the ranks have fallen;
so during training it is not told the ranks, and checkpoints hold all of A, B and E.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from loraga.adapter_directory import write_plain_lora
from loraga.files import staged_directory
from loraga.layers import lora_layers
from loraga.layout import LayerLayout, weight_key

from .errors import LabError, RecipeError
from .recipe import adalora_schedule, leaves_steps_for_adalora

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .recipe import Recipe

STATE = "adalora.safetensors"
ADAPTER = "default"
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # of PEFT's RankAllocator: sensitivity and its uncertainty, smoothed
KEPT = "kept"  # which triplets are not zero, as the last change of the ranks left them


class AdaLoraSchedule(TrainerCallback):
    """Calls PEFT's AdaLoRA at each step of a run, and keeps its state in the run's checkpoints.

    Args:
        recipe: the schedule.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._kept: dict[str, list[bool]] | None = None
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the schedule, which needs the number of steps, and takes up the state of a checkpoint."""
        tuner = kwargs["model"].base_model
        config = tuner.peft_config[ADAPTER]
        tinit, tfinal = adalora_schedule(self._recipe, state.max_steps)
        if not leaves_steps_for_adalora(self._recipe, state.max_steps):
            steps = f"tinit ({tinit}) and tfinal ({tfinal}) leave none of {state.max_steps} steps"
            raise RecipeError([f"{steps} for the ranks to fall in; lower one of the two"])
        config.tinit, config.tfinal, config.deltaT = tinit, tfinal, self._recipe.deltaT
        tuner.rankallocator.set_total_step(state.max_steps)
        self._hook = tuner.register_forward_pre_hook(_Regularisation(config, args), with_kwargs=True)
        if state.global_step:
            self._restore(tuner, load_file(_checkpoint(args, state) / STATE))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weighs the triplets by the step's gradients, which are still there, and prunes them as the schedule says."""
        tuner = kwargs["model"].base_model
        _require_gradients(tuner)
        config = tuner.peft_config[ADAPTER]
        config.rank_pattern = self._kept
        tuner.update_and_allocate(state.global_step + 1)  # the step that is being done; Trainer counts it later
        self._kept, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds what Trainer does not save to its checkpoint."""
        save_file(self._state(kwargs["model"].base_model), _checkpoint(args, state) / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the regularisation off the loss."""
        self._hook.remove()

    def _state(self, tuner: Any) -> dict[str, Tensor]:
        allocator = tuner.rankallocator
        found = {f"{what}.{name}": value for what in AVERAGES for name, value in getattr(allocator, what).items()}
        parameters = dict(tuner.model.named_parameters())
        for name, kept in (self._kept or {}).items():
            found[f"{KEPT}.{name}"] = parameters[name].new_tensor(kept).bool()
        return {name: value.contiguous() for name, value in found.items()}

    def _restore(self, tuner: Any, state: Mapping[str, Tensor]) -> None:
        def of(what: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{what}."): value for key, value in state.items() if key.startswith(f"{what}.")}

        parameters = dict(tuner.model.named_parameters())
        for what in AVERAGES:
            setattr(tuner.rankallocator, what, {name: value.to(parameters[name]) for name, value in of(what).items()})
        tuner.rankallocator.ipt = dict.fromkeys(of(AVERAGES[0]))  # computed anew, but its names say what is known
        self._kept = {name: value.tolist() for name, value in of(KEPT).items()} or None


class _Regularisation:
    """Sets the weight of PEFT's orthogonal regularisation before each forward: none in evaluation.

    A loss that the model divides by the labels of all micro-batches of a step is summed over these, not averaged, and
    so would be the regularisation. (A step at an epoch's end that has fewer of them gets that part of it.)
    """

    def __init__(self, config: Any, arguments: Any) -> None:
        self._config, self._weight = config, config.orth_reg_weight
        self._micro_batches = arguments.gradient_accumulation_steps

    def __call__(self, tuner: Any, args: Any, kwargs: dict[str, Any]) -> None:
        summed = kwargs.get("num_items_in_batch") is not None
        weight = self._weight / self._micro_batches if summed else self._weight
        self._config.orth_reg_weight = weight if tuner.training else 0.0


def save_as_plain_lora(model: Any, directory: Path) -> None:
    """Writes a trained AdaLoRA adapter as a plain LoRA of the ranks that are left, which any program loads.

    B diag(E) A with eta = alpha / its first rank is B (E A) with the same eta; triplets whose E is zero add nothing. A
    layer of which nothing is left keeps one of them, since LoRA has no rank 0.

    Args:
        model: trained.
        directory: to write.
    """
    config = model.peft_config[ADAPTER]
    state: dict[str, Tensor] = {}
    layout = {}
    for name, module in lora_layers(model, ADAPTER).items():
        layer: Any = module
        E = layer.lora_E[ADAPTER].detach()  # (r, 1)
        kept = E[:, 0] != 0
        if not kept.any():
            kept[0] = True
        A, B = layer.lora_A[ADAPTER].detach() * E, layer.lora_B[ADAPTER].detach()  # (r, d_in), (d_out, r)
        state[weight_key(name, "A")], state[weight_key(name, "B")] = A[kept].contiguous(), B[:, kept].contiguous()
        eta = layer.scaling[ADAPTER] / (float(layer.ranknum[ADAPTER]) + 1e-5)  # as PEFT divides
        layout[name] = LayerLayout(int(kept.sum()), eta, offset=False)
    with staged_directory(directory) as staging:
        LoraConfig(
            target_modules=config.target_modules,
            lora_dropout=config.lora_dropout,
            fan_in_fan_out=config.fan_in_fan_out,
            task_type=config.task_type,
            base_model_name_or_path=config.base_model_name_or_path,
            inference_mode=True,
        ).save_pretrained(str(staging))
        write_plain_lora(staging, state, layout)


def _require_gradients(tuner: Any) -> None:
    for name, weight in tuner.model.named_parameters():
        if weight.requires_grad and ".lora_E." in name and weight.grad is None:
            layer = name.split(".lora_E.")[0]
            raise LabError(f"layer {layer} gets no gradient, which AdaLoRA needs; leave it out of target_modules")


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
