"""Every promise, for every trainer: `initialize_trainer` between making it and `.train()`."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from trl import KTOTrainer

import loraga
from loraga.gradient import factor_matrix
from loraga.layers import lora_layers
from loraga.trainer import RESUMES_ALL_ADAPTERS
from tests.integration.common import adapter_state, assert_moved, assert_same, eval_logits, train_logits
from tests.integration.trainers import TRAINERS
from tests.models import relative_difference
from tests.planted import first_step_operator
from tests.test_passes import assert_same_state, state_of

STEPS = 4


@pytest.fixture(params=TRAINERS, scope="module")
def kind(request):
    return TRAINERS[request.param]


def start(trainer, batches=3, **keywords):
    return loraga.initialize_trainer(trainer, batches, progress=False, **keywords)


class Diary(TrainerCallback):
    """Keeps the adapter and the logits as they are at each step."""

    def __init__(self, kind):
        self.kind, self.states, self.logits = kind, {}, {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.states[state.global_step] = adapter_state(model)
        self.logits[state.global_step] = eval_logits(model, self.kind.probe_batch())


@pytest.fixture(scope="module")
def run(kind, tmp_path_factory):
    """(output directory, diary, model, its state at the start) of one run that was never interrupted."""
    output, diary, model = tmp_path_factory.mktemp("run"), Diary(kind), kind.peft_model()
    trainer = kind.make(output, model, callbacks=[diary])
    start(trainer)
    begun = adapter_state(model)
    trainer.train()
    return output, diary, model, begun


def recording(kind):
    """The trainer's class, which keeps what its loss is computed from."""

    class Recording(kind.trainer):
        def __init__(self, *args, **kwargs):
            self.recorded = []
            super().__init__(*args, **kwargs)

        def compute_loss(self, model, inputs, *args, **kwargs):
            # what a rollout's tokens are divided by is GRPO's own in training alone
            tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
            self.recorded.append({key: value.clone() for key, value in tensors.items() if key != "num_items_in_batch"})
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Recording


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_function_is_kept_bit_for_bit_and_the_base_is_not_lost(kind, tmp_path):
    probe, untouched, model = kind.probe_batch(), kind.peft_model(), kind.peft_model()
    report = start(kind.make(tmp_path, model))
    assert report.function_change == 0
    assert report.cosine > 0.5
    kind.make(tmp_path, untouched)  # TRL changes a model's dropout
    assert torch.equal(eval_logits(model, probe), eval_logits(kind.base(), probe))
    assert torch.equal(train_logits(model, probe), train_logits(untouched, probe))
    assert_moved(adapter_state(model), adapter_state(untouched))
    with model.disable_adapter():
        assert torch.equal(eval_logits(model, probe), eval_logits(kind.base(), probe))


def test_the_same_seed_and_data_give_the_same_start_bit_for_bit(kind, tmp_path):
    states = []
    for _ in range(2):
        model = kind.peft_model()
        start(kind.make(tmp_path, model))
        states.append(adapter_state(model))
    assert_same(*states)


def plain(value):
    """Containers and numbers, so that states can be compared after the objects have changed."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def trainer_state(trainer):
    accelerator = trainer.accelerator
    return {
        "attributes": plain({key: value for key, value in vars(trainer).items() if "dataset" not in key}),
        "callbacks": plain(trainer.callback_handler.callbacks),
        "state": plain(vars(trainer.state)),
        "control": plain(vars(trainer.control)),
        "accelerator": plain(vars(accelerator)),
        "gradient state": plain(vars(accelerator.gradient_state)),
        "collator": plain(vars(trainer.data_collator)) if hasattr(trainer.data_collator, "__dict__") else None,
    }


def test_the_trainer_and_the_model_but_for_its_adapter_are_left_as_they_were(kind, tmp_path):
    trainer = kind.make(tmp_path)
    before, model_before = trainer_state(trainer), state_of(trainer.model)
    start(trainer)
    assert trainer_state(trainer) == before
    after = state_of(trainer.model)
    for tensors in (model_before[0], after[0]):
        for name in [name for name in tensors if ".lora_" in name]:
            del tensors[name]
    added = set(after[1]) - set(model_before[1])
    assert added
    assert all("lora_offset" in name for name in added)
    for name in added:
        del after[1][name]
    for name in [name for name in after[2] if "lora_offset" in name]:
        del after[2][name]
    assert_same_state(model_before, after)


@pytest.mark.parametrize("where", ["batches", "gradients"])
def test_the_trainer_is_left_as_it_was_after_an_error(kind, tmp_path, where):
    class Failing(recording(kind)):
        def compute_loss(self, *args, **kwargs):
            super().compute_loss(*args, **kwargs)
            raise KeyboardInterrupt("stop")

    trainer = kind.make(tmp_path, kind=Failing)
    if where == "batches":
        trainer.data_collator = broken_after(trainer.data_collator, 2)
    before, model_before = trainer_state(trainer), state_of(trainer.model)
    before["attributes"]["recorded"] = []
    with pytest.raises(KeyboardInterrupt, match="stop"):
        start(trainer)
    assert trainer_state(trainer) == before
    assert_same_state(model_before, state_of(trainer.model))


def broken_after(collator, batches):
    left = iter(range(batches))

    def collate(rows):
        if next(left, None) is None:
            raise KeyboardInterrupt("stop")
        return collator(rows)

    return collate


def test_training_begins_with_the_batches_that_the_start_was_made_of_as_it_would_have_without(kind, tmp_path):
    def make():
        # at a rate of zero the policy, and with it what GRPO generates, stays; without dropout the loss draws nothing
        model = kind.peft_model(lora_dropout=0.0)
        return kind.make(tmp_path, model, kind=recording(kind), learning_rate=0.0, max_steps=3, save_strategy="no")

    without = make()  # a trainer sets the random states, which its training goes on from
    without.train()
    trainer = make()
    taken = capture_batches(trainer)
    assert not trainer.recorded
    trainer.train()
    assert_same_batches(trainer.recorded, without.recorded)
    count = 2
    assert_same_batches(taken[:count], without.recorded[:count])


def capture_batches(trainer):
    """What the loss is computed from in `initialize_trainer`, which forgets it when it ends."""
    taken = []
    own = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        value = own(model, inputs, *args, **kwargs)
        taken.append(trainer.recorded[-1])
        return value

    trainer.compute_loss = compute_loss
    start(trainer, 2)
    del trainer.compute_loss
    return taken


def reference_gradients(kind, output, count):
    """{layer: G} by autograd on the base's weights, of the trainer's own training loss on its first batches."""
    model = kind.peft_model(lora_dropout=0.0)
    trainer = kind.make(output, model, kind=recording(kind), learning_rate=0.0, max_steps=count, save_strategy="no")
    without_dropout(model)
    trainer.train()
    weights = {name: layer.get_base_layer().weight for name, layer in lora_layers(model, "default").items()}
    sums, total = {name: torch.zeros_like(weight) for name, weight in weights.items()}, 0.0
    for batch in list(trainer.recorded):
        terms = kind.terms(batch)
        inputs = dict(batch)
        if "completion_ids" in batch:  # one accumulation window of its own tokens, as if generated alone
            inputs["num_items_in_batch"] = batch["completion_mask"].sum() * trainer.args.steps_per_generation
        with requiring_gradients(weights.values()):
            loss = trainer.compute_loss(trainer.model, inputs)
            gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            sums[name] += terms * gradient
        total += terms
    return {name: gradient / total for name, gradient in sums.items()}, total


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


@contextmanager
def requiring_gradients(weights):
    weights = list(weights)
    for weight in weights:
        weight.requires_grad_(True)
    yield
    for weight in weights:
        weight.requires_grad_(False)


def test_the_start_is_that_of_the_gradient_by_autograd_of_the_trainers_own_loss(kind, tmp_path):
    if kind.trainer is KTOTrainer and not hasattr(KTOTrainer, "compute_ref_log_probs"):
        pytest.skip("batches of TRL 1.0's KTOTrainer hold the judgement in a list, which is not recorded")
    reference, total = reference_gradients(kind, tmp_path, 2)
    expected, model = kind.peft_model(lora_dropout=0.0), kind.peft_model(lora_dropout=0.0)
    gradients = {name: factor_matrix(matrix, total) for name, matrix in reference.items()}
    loraga.initialize(expected, gradients=gradients, check=False)
    report = start(kind.make(tmp_path, model), 2, estimator="exact")
    # older Trainers divide by the first label too, where it is not masked; that scales the gradient
    if "_loss_shifts_labels" in inspect.getsource(Trainer._get_num_items_in_batch):
        assert report.loss_terms == pytest.approx(total)
    for name, layer in lora_layers(model, "default").items():
        other = lora_layers(expected, "default")[name]
        operators = [
            first_step_operator(reference[name], each.lora_A["default"].weight, each.lora_B["default"].weight)
            for each in (layer, other)
        ]
        assert relative_difference(*operators) < 2e-3, name


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_start_does_not_depend_on_the_losss_magnitude(kind, tmp_path, scale):
    class Scaled(kind.trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * scale

    model, other = kind.peft_model(), kind.peft_model()
    start(kind.make(tmp_path, model))
    start(kind.make(tmp_path, other, kind=Scaled))
    for name, layer in lora_layers(model, "default").items():
        factors = [
            (each.lora_A["default"].weight, each.lora_B["default"].weight)
            for each in (layer, lora_layers(other, "default")[name])
        ]
        products = [B @ A for A, B in factors]
        assert relative_difference(*products) < 1e-2, name


def test_the_run_trains_and_leaves_the_base_and_the_start_as_they_were(kind, run):
    _, diary, model, begun = run
    assert_moved(diary.states[STEPS], begun)
    offsets = {key: value for key, value in begun.items() if "lora_offset" in key}
    assert_same({key: diary.states[STEPS][key] for key in offsets}, offsets)
    with model.disable_adapter():
        probe = kind.probe_batch()
        assert torch.equal(eval_logits(model, probe), eval_logits(kind.base(), probe))


def test_every_checkpoint_loads_by_plain_peft_to_the_logits_of_its_step(kind, run):
    output, diary, _, _ = run
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    for step in (2, STEPS):
        loaded = PeftModel.from_pretrained(kind.base(), output / f"checkpoint-{step}")
        assert not [key for key in loaded.state_dict() if "lora_offset" in key]
        assert relative_difference(eval_logits(loaded, kind.probe_batch()), diary.logits[step]) <= 1e-5
    assert relative_difference(diary.logits[2], diary.logits[STEPS]) > 1e-5


@pytest.mark.parametrize("batches", [3, 2], ids=["the same start", "another start"])
def test_resuming_gives_the_uninterrupted_runs_adapter_bit_for_bit(kind, run, tmp_path, caplog, batches):
    if kind.has_reference and Version(transformers.__version__) < Version(RESUMES_ALL_ADAPTERS):
        pytest.skip("this Trainer resumes with the reference alone, of which initialize_trainer warns")
    output, diary, _, _ = run
    model = kind.peft_model()
    trainer = kind.make(tmp_path, model)
    start(trainer, batches)
    with caplog.at_level("INFO", "loraga"):
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    assert "its start and factors give way to those of" in caplog.text
    assert_same(adapter_state(model), diary.states[STEPS])
