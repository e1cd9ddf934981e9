from loraga.lab.evaluation import Evaluation
from loraga.lab.run_console import evaluation_cells


def cells(**more):
    return evaluation_cells(Evaluation(rows=4, loss=1.25, terms=9, **more).to_dict())


def test_only_what_was_measured_is_shown():
    assert evaluation_cells(None) == {}
    assert cells() == {"held-out loss": "1.2500"}


def test_a_share_of_right_answers_is_shown_with_its_interval_and_the_further_figures():
    found = cells(metric="gsm8k", score=0.5, scores={"peft_rule": 0.25}, right=2, low=0.15, high=0.85)

    assert found == {"held-out loss": "1.2500", "gsm8k (95 %)": "50.0 % (15.0 to 85.0)", "peft_rule": "0.2500"}


def test_a_score_that_is_no_such_share_is_shown_as_it_is():
    assert cells(metric="gsm8k", score=0.425)["gsm8k"] == "0.4250"
