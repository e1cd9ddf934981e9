from dataclasses import replace

import pytest

from loraga.lab.comparison.results import Best, Curve, Measured, Results, Run, read_results, write_results
from loraga.lab.errors import SettingsError

MEASURED = Measured(2, 0.5, 0.5, {"matthews": -0.25}, (1.0, 0.0), (0.25, 0.75), (4, 4))
RUN = Run(
    variant="LoRA",
    method="lora",
    rank=8,
    learning_rate=1e-3,
    is_auto=False,
    seed=0,
    status="done",
    trainable_parameters=1000,
    steps=2,
    tokens=64,
    train_loss=1.25,
    curve=Curve((1, 2), (1.5, 1.0)),
    validation=MEASURED,
    test=MEASURED,
    settings={"rank": 8},
    seconds={"start": 0.1, "training": 2.0},
    peak_memory=2**30,
)
RESULTS = Results(
    title="two runs",
    model="a model",
    task="a task",
    metric="exact_match",
    score="accuracy",
    is_share=True,
    chosen_by="loss",
    reference="LoRA",
    command="loraga compare two.yaml",
    comparison={"methods": ["lora"]},
    versions={"torch": "2"},
    machine={"cores": 2},
    runs=(RUN, replace(RUN, seed=1, status="failed", problem="no space", validation=None, test=None, curve=None)),
    best=(Best("LoRA", 8, 1e-3, False),),
)


def test_results_are_read_as_they_were_written(tmp_path):
    assert read_results(write_results(RESULTS, tmp_path)) == RESULTS


def test_results_of_another_format_are_refused(tmp_path):
    file = write_results(RESULTS, tmp_path)
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(SettingsError, match="of this version"):
        read_results(file)


def test_only_finished_runs_at_given_rates_count():
    runs = (RUN, replace(RUN, is_auto=True), replace(RUN, status="diverged"), replace(RUN, rank=4))
    assert replace(RESULTS, runs=runs).done("LoRA", 8) == (RUN,)
