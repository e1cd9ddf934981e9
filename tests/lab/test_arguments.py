import pytest

from loraga.lab.arguments import SHARED, training_arguments
from loraga.lab.errors import RecipeError
from loraga.lab.recipe import Recipe
from loraga.lab.training_argument_names import TRAINING_ARGUMENT_NAMES


@pytest.fixture
def make(tmp_path):
    def make(rate=None, **values):
        return training_arguments(Recipe(model="m", data="d", output_dir=str(tmp_path / "run"), **values), rate)

    return make


OTHER_THAN_DEFAULT = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 7.0,
    "weight_decay": 0.25,
    "num_train_epochs": 2.5,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 5,
    "gradient_accumulation_steps": 4,
    "seed": 11,
    "logging_steps": 6,
    "save_steps": 9,
    "save_total_limit": 13,
}


@pytest.mark.parametrize("key", SHARED)
def test_a_shared_key_arrives(make, key):
    value = OTHER_THAN_DEFAULT[key]
    assert getattr(make(), key) != value

    assert getattr(make(**{key: value}), key) == value


def test_keys_of_another_spelling_arrive(make, tmp_path):
    made = make(max_steps=12, gradient_checkpointing=True, data_seed=5, seed=3)

    assert (made.max_steps, made.activation_checkpointing, made.data_seed) == (12, True, 5)
    assert made.output_dir == str(tmp_path / "run")
    assert (make().max_steps, make().activation_checkpointing, make(seed=3).data_seed) == (-1, False, 3)


def test_data_seed_zero_is_not_the_seed(make):
    assert make(seed=3, data_seed=0).data_seed == 0


def test_a_rate_of_the_recipe_counts_and_auto_takes_the_one_that_was_found(make):
    assert make(learning_rate=3e-4).learning_rate == 3e-4
    assert make(rate=1e-2, learning_rate=3e-4).learning_rate == 3e-4
    assert make(rate=1e-2).learning_rate == 1e-2


def test_while_no_rate_is_known_the_other_values_are_checked_all_the_same(make):
    make()
    with pytest.raises(RecipeError, match="max_grad_norm"):
        make(trainer={"max_grad_norm": "one"})


def test_nothing_is_reported_to_a_server_and_the_collator_gets_whole_examples(make):
    made = make()

    assert (made.report_to, made.remove_unused_columns, made.disable_tqdm) == ([], False, True)
    assert (made.logging_nan_inf_filter, made.include_num_input_tokens_seen) == (False, "non_padding")


def test_names_of_training_arguments_pass_through_and_win(make):
    made = make(trainer={"max_grad_norm": 0.5, "adam_beta2": 0.95, "logging_nan_inf_filter": True})

    assert (made.max_grad_norm, made.adam_beta2, made.logging_nan_inf_filter) == (0.5, 0.95, True)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_grad_norm", "one", 'max_grad_norm takes a number, not "one"'),
        ("bf16", 1, "bf16 takes true or false, not 1"),
        ("dataloader_num_workers", 1.5, "dataloader_num_workers takes a whole number, not 1.5"),
        ("label_names", "labels", 'label_names takes a list, or nothing, not "labels"'),
        ("eval_steps", True, "eval_steps takes a number, or nothing, not true"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_name(make, name, value, said):
    with pytest.raises(RecipeError, match=f"^{said}$"):
        make(trainer={name: value})


def test_every_value_of_a_wrong_type_is_said_at_once(make):
    with pytest.raises(RecipeError, match="max_grad_norm") as caught:
        make(trainer={"max_grad_norm": "one", "bf16": 1, "optim": "adamw_torch"})

    assert [problem.split()[0] for problem in caught.value.problems] == ["max_grad_norm", "bf16"]


class Nothing:
    """Of no type that an argument has."""


@pytest.mark.parametrize("name", TRAINING_ARGUMENT_NAMES)
def test_every_name_has_a_type_that_is_checked(make, name):
    with pytest.raises(RecipeError, match=name):
        make(trainer={name: Nothing()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_strategy", "sometimes"),
        ("optim", "nonsense"),
        ("save_strategy", "never"),
        ("debug", "everything"),
        ("accelerator_config", "not-there.json"),
        ("accelerator_config", {"unknown": 1}),
        ("torch_empty_cache_steps", -1),
    ],
)
def test_a_value_that_transformers_refuses_is_refused_by_its_name(make, name, value):
    with pytest.raises(RecipeError, match=f"transformers.TrainingArguments refuses {name}: ") as caught:
        make(max_steps=3, trainer={name: value, "max_grad_norm": 0.5})

    assert len(caught.value.problems) == 1
    assert "max_grad_norm" not in str(caught.value)


def test_a_shared_value_that_transformers_refuses_is_refused_by_its_name(make):
    with pytest.raises(RecipeError, match='refuses lr_scheduler_type: "sideways"'):
        make(lr_scheduler_type="sideways")


def test_values_that_do_not_fit_together_are_refused_in_transformers_words(make):
    with pytest.raises(RecipeError, match=r"refuses a value \(At most one of fp16 and bf16"):
        make(trainer={"bf16": True, "fp16": True, "use_cpu": True})


def test_a_value_that_only_fits_with_another_one_is_not_blamed(make):
    with pytest.raises(RecipeError, match=r'refuses optim: "nonsense" \('):
        make(trainer={"bf16": True, "use_cpu": True, "optim": "nonsense"})
