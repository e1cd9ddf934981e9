"""The reference policy of TRL's trainers: bit for bit the policy at the time the trainer was built."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback
from trl.generation.vllm_generation import VLLMGeneration

import loraga
from tests.integration import trainers
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits
from tests.integration.trainers import TRAINERS
from tests.models import batches, relative_difference, train, with_lora

KINDS = {name: kind for name, kind in TRAINERS.items() if kind.has_reference}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def initialized_first(kind, output, **settings):
    model = kind.peft_model()
    loraga.initialize(model, batches("Llama"), progress=False)
    return kind.make(output, model, **settings), kind.base()


def peft_model_then_initialized(kind, output, **settings):
    trainer = kind.make(output, kind.peft_model(), **settings)
    loraga.initialize_trainer(trainer, 2, progress=False)
    return trainer, kind.base()


def peft_config_then_initialized(kind, output, **settings):
    trainer = kind.make(output, kind.base(), peft_config=kind.peft_config(), **settings)
    loraga.initialize_trainer(trainer, 2, progress=False)
    return trainer, kind.base()


def after_sft_on_the_same_adapter(kind, output, **settings):
    model = kind.peft_model()
    loraga.initialize(model, batches("Llama"), progress=False)
    train(model, batches("Llama"), 3)
    frozen = copy.deepcopy(model)
    trainer = kind.make(output, model, **settings)
    # without an adapter "ref", as TRL 1.0's KTOTrainer is, the reference is the base
    return trainer, frozen if "ref" in trainer.model.peft_config else kind.base()


def after_sft_merged_into_the_base(kind, output, **settings):
    model = kind.peft_model()
    loraga.initialize(model, batches("Llama"), progress=False)
    train(model, batches("Llama"), 3)
    policy = model.merge_and_unload()
    frozen = copy.deepcopy(policy)
    trainer = kind.make(output, policy, peft_config=kind.peft_config(), **settings)
    loraga.initialize_trainer(trainer, 2, progress=False)
    return trainer, frozen


WAYS = [
    initialized_first,
    peft_model_then_initialized,
    peft_config_then_initialized,
    after_sft_on_the_same_adapter,
    after_sft_merged_into_the_base,
]


class ReferenceLogProbabilities(TrainerCallback):
    """What the trainer's own computation gives for its reference, at the end of each step."""

    def __init__(self):
        self.seen, self.trainer, self.inputs = [], None, None

    def on_step_end(self, *args, **kwargs):
        self.seen.append(reference_log_probabilities(self.trainer, self.inputs))


def reference_log_probabilities(trainer, inputs):
    """By the trainer's own lines, in eval mode."""
    model = trainer.model
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        if "completion_ids" in inputs:  # GRPO
            from trl.trainer.utils import use_adapter

            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                found = [policy_log_probabilities(trainer, model, inputs)]
        else:
            found = [each for each in trainers.reference_log_probabilities(trainer, model, inputs) if each is not None]
    for module, training in modes:
        module.training = training
    return found


def policy_log_probabilities(trainer, model, inputs):
    """GRPO's own for a model."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return trainer._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].size(1))[0]


def frozen_log_probabilities(kind, frozen, output, inputs):
    """The same, of a frozen copy of the policy, which a trainer of its own takes for its whole model."""
    is_adapted = hasattr(frozen, "peft_config")
    trainer = kind.make(output, frozen if is_adapted else with_lora(frozen))
    model = frozen if is_adapted else trainer.model.unload()
    trainer.ref_model = model.eval()  # so that no adapter is switched
    with torch.no_grad():
        if "completion_ids" in inputs:
            return [policy_log_probabilities(trainer, model, inputs)]
        return [each for each in trainers.reference_log_probabilities(trainer, model, inputs) if each is not None]


def first_inputs(trainer):
    inputs = next(iter(trainer.get_train_dataloader()))
    if isinstance(inputs, list):  # GRPO generates
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(4, 94, (4, 9), generator=generator)
        ones = torch.ones_like(ids)
        return {
            "prompt_ids": ids[:, :4],
            "prompt_mask": ones[:, :4],
            "completion_ids": ids[:, 4:],
            "completion_mask": ones[:, 4:],
        }
    return inputs


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_reference_is_a_frozen_copy_of_the_policy_before_during_and_after_training(kind, tmp_path, way):
    watch = ReferenceLogProbabilities()
    trainer, frozen = way(kind, tmp_path / "run", callbacks=[watch], save_strategy="no")
    inputs = first_inputs(trainer)
    watch.trainer, watch.inputs = trainer, inputs
    expected = frozen_log_probabilities(kind, frozen, tmp_path / "frozen", inputs)
    begun, before = adapter_state(trainer.model), reference_log_probabilities(trainer, inputs)
    policy = eval_logits(trainer.model)
    trainer.train()
    assert len(watch.seen) == 4
    for found in [before, *watch.seen, reference_log_probabilities(trainer, inputs)]:
        assert len(found) == len(expected) > 0
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert_moved(begun, adapter_state(trainer.model))
    assert relative_difference(eval_logits(trainer.model), policy) > 1e-4


class Client:
    """What TRL's client of a vLLM server is asked to do with the weights; the server alone is left out."""

    def __init__(self):
        self.weights = {}

    def update_named_params(self, metadata, parameters):
        self.weights = {name: tensor.clone() for name, tensor in parameters}
        assert [name for name, *_ in metadata] == list(self.weights)

    def update_named_param(self, name, tensor):
        """TRL 1.0 sends one after the other."""
        self.weights[name] = tensor.clone()

    def reset_prefix_cache(self):
        """Nothing is cached."""


def syncing(trainer):
    """TRL's own object, without the server that its constructor waits for."""
    generation = object.__new__(VLLMGeneration)
    generation.model, generation.accelerator, generation.mode = trainer.model, trainer.accelerator, "server"
    generation._dist = getattr(trainer, "_dist", None)
    generation.is_fsdp_enabled = False  # what TRL 1.0 asks instead
    generation._weight_metadata = None
    generation.vllm_client = Client()
    return generation


@pytest.mark.parametrize(
    "way", [peft_model_then_initialized, peft_config_then_initialized], ids=lambda way: way.__name__
)
def test_vllm_is_given_the_policy_and_base_and_adapter_stay_exact(tmp_path, way):
    trainer, _ = way(KINDS["GRPOTrainer"], tmp_path, save_strategy="no")
    model, probe = trainer.model, batches("Llama", 1, 9)[0]
    generation = syncing(trainer)
    for steps in (0, 4):
        if steps:
            trainer.train()
        policy, state = eval_logits(model, probe), {key: value.clone() for key, value in model.state_dict().items()}
        generation.sync_weights()
        assert_same(dict(model.state_dict()), state)
        assert torch.equal(eval_logits(model, probe), policy)
        with model.disable_adapter():
            assert torch.equal(eval_logits(model, probe), eval_logits(KINDS["GRPOTrainer"].base(), probe))
        served = KINDS["GRPOTrainer"].base()
        missing = served.load_state_dict(generation.vllm_client.weights, strict=False)
        assert not missing.unexpected_keys
        assert relative_difference(eval_logits(served, probe), policy) <= 1e-5
    assert relative_difference(policy, eval_logits(KINDS["GRPOTrainer"].base(), probe)) > 1e-4
