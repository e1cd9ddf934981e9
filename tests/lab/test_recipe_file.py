from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.errors import RecipeError
from loraga.lab.methods import METHODS
from loraga.lab.metrics import METRICS
from loraga.lab.recipe import Recipe
from loraga.lab.recipe_check import check
from loraga.lab.recipe_file import Written, read_overrides, read_recipe_file, recipe_text, recipe_values
from loraga.lab.tasks import TASKS


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe_file(path)

    return read


SCALARS = [
    ("1e-3", 1e-3),
    ("1E3", 1000.0),
    ("-2.5e+2", -250.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("0.03", 0.03),
    ("010", 10),
    ("-7", -7),
    ("+7", 7),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("no", "no"),
    ("on", "on"),
    ("yes", "yes"),
    ("off", "off"),
    ("y", "y"),
    ("1:30", "1:30"),
    ("1_000", "1_000"),
    ("2024-01-01", "2024-01-01"),
    ("'1e-3'", "1e-3"),
    ('"null"', "null"),
    ("[1, 1e-3, no]", [1, 1e-3, "no"]),
    ("{name: main, n: 010}", {"name": "main", "n": 10}),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_read_as_yaml_1_2_says(read, text, value):
    found = read(f"key: {text}\n")["key"].value

    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_the_command_line_reads_values_as_the_file_does(read, text, value):
    assert read_overrides([f"key={text}"])["key"].value == read(f"key: {text}\n")["key"].value == value


def test_each_value_knows_its_line(read, tmp_path):
    written = read("# a comment\nmodel: m\n\ndata_options:\n  name: main\nrank: 4\n")

    where = f"{tmp_path / 'recipe.yaml'}, line"
    assert {key: each.where for key, each in written.items()} == {
        "model": f"{where} 2",
        "data_options": f"{where} 4",
        "rank": f"{where} 6",
    }


def test_a_key_that_stands_twice_is_refused_with_both_lines(read):
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 3: rank stands there twice \(before in line 1\)"):
        read("rank: 4\nmodel: m\nrank: 8\n")


def test_a_key_that_stands_twice_inside_a_value_is_refused(read):
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 2: .*a key stands there twice"):
        read("model: m\ndata_options: {name: main, name: other}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no recipe"),
        ("# nothing\n", "holds no recipe"),
        ("- model: m\n", "holds no recipe"),
        ("just words\n", "holds no recipe"),
        ("model: m\ndata: [1, 2\n", "is no YAML"),
        ("model: m\n  rank: 4\n", r"line 2: this is no YAML"),
        ("model: m\n---\nrank: 4\n", "is no YAML"),
        ("model: !!python/object:os.system {}\n", "is no YAML"),
        ("model: \x00\n", "is no YAML"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_file(read, text, said):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml.*{said}"):
        read(text)


def test_a_file_that_is_not_there_or_is_no_text_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml cannot be read: No such file"):
        read_recipe_file(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_recipe_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml cannot be read: it is no UTF-8 text"):
        read_recipe_file(tmp_path / "latin.yaml")


@pytest.mark.parametrize("words", [["rank=4"], ["--rank=4"], ["--rank", "4"]])
def test_overrides_are_written_in_three_ways(words):
    assert read_overrides(words) == {"rank": Written(4, "the command line")}


def test_dashes_are_underscores_in_a_key_and_stay_in_a_value():
    written = read_overrides(["--max-steps", "3", "--output-dir=my-run", "lr-scheduler-type=linear", "--seed", "-1"])

    assert {key: each.value for key, each in written.items()} == {
        "max_steps": 3,
        "output_dir": "my-run",
        "lr_scheduler_type": "linear",
        "seed": -1,
    }


def test_the_last_override_of_a_key_counts_however_it_is_written():
    assert read_overrides(["max_steps=1", "--max-steps", "2", "--max_steps=3"])["max_steps"].value == 3


def test_a_value_keeps_its_equals_signs():
    assert read_overrides(["--prompt='{question}='"])["prompt"].value == "{question}="


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rank"], "'rank' is no key=value"),
        (["rank=4", "4"], "'4' is no key=value"),
        (["--rank"], "--rank has no value after it"),
        (["data_options={name: main"], r"data_options: '\{name: main' is no YAML value"),
        (["data_options={a: 1, a: 2}"], r"data_options: .*\(a key stands there twice\)"),
    ],
)
def test_what_is_no_override_is_refused(words, said):
    with pytest.raises(RecipeError, match=said):
        read_overrides(words)


def test_a_recipe_is_flat_when_written_down():
    recipe = Recipe(model="m", data="d", prompt="q", target="a", trainer={"max_grad_norm": 0.5})

    values = recipe_values(recipe)

    assert set(values) == {each.name for each in fields(Recipe)} - {"trainer"} | {"max_grad_norm"}
    assert (values["max_grad_norm"], values["rank"]) == (0.5, 8)


LETTERS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
LOOKS_LIKE_SOMETHING = st.sampled_from(["1e-3", "1E5", "08", "010", "no", "null", "~", "", "true", ".5", "2024-01-01"])
TEXT = LETTERS | LOOKS_LIKE_SOMETHING
POSITIVE = st.floats(1e-9, 1e9)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NO_PATH = TEXT.map(lambda text: f"hub {text}".replace(".", "_"))
RECIPES = st.builds(
    Recipe,
    model=NO_PATH,
    data=NO_PATH,
    data_options=st.dictionaries(TEXT, PLAIN, max_size=3),
    prompt=TEXT,
    target=TEXT,
    rows=st.none() | st.integers(1, 10**9),
    held_out_rows=st.integers(1, 10**6),
    metric=st.sampled_from(sorted(name for name, metric in METRICS.items() if not metric.runs_code)),
    labels=st.just(["no", "yes"]),
    task=st.none() | st.sampled_from(sorted(TASKS)),
    method=st.sampled_from(sorted(name for name, method in METHODS.items() if method.adapter and not method.no_auto)),
    rank=st.integers(1, 512),
    alpha=POSITIVE,
    target_modules=TEXT | st.lists(TEXT, max_size=3),
    learning_rate=st.just("auto") | st.floats(1e-12, 1),
    weight_decay=st.floats(0, 1),
    gradient_checkpointing=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
    lr_scheduler_type=TEXT,
    trainer=st.fixed_dictionaries({}, optional={"max_grad_norm": POSITIVE, "run_name": TEXT, "optim_args": TEXT}),
)


@given(RECIPES)
def test_a_recipe_that_was_written_is_read_back_as_the_same_recipe(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("written") / "recipe.yaml"
    path.write_text(recipe_text(recipe), encoding="utf-8")

    assert check(read_recipe_file(path)) == recipe


@given(st.lists(TEXT, max_size=4), st.dictionaries(TEXT, PLAIN, max_size=3))
def test_every_value_that_was_written_is_read_back_as_it_was(tmp_path_factory, texts, options):
    path = tmp_path_factory.mktemp("written") / "recipe.yaml"
    path.write_text(recipe_text(Recipe(model="m", data="d", target_modules=texts, data_options=options)), "utf-8")

    written = read_recipe_file(path)

    assert (written["target_modules"].value, written["data_options"].value) == (texts, options)
