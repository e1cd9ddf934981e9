import json
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from loraga.lab.comparison.results import Best, read_results, write_results
from loraga.lab.comparison.write import report_files, write_report
from loraga.lab.errors import LabError
from tests.lab.comparison.synthetic import VARIANTS, synthetic_results

FEW = {"LoRA": ("lora", 2e-3, 0.79, (8,)), "full fine-tuning": VARIANTS["full fine-tuning"]}
RESULTS = synthetic_results(rows=12, steps=12, seeds=(0, 2), variants=FEW)
TABLES = ("best", "rates_test", "rates_validation", "auto", "unfinished")
FIGURES = ("loss_rank8", "rates_rank8")


def test_everything_is_written_and_named(tmp_path):
    written = write_report(RESULTS, tmp_path / "new" / "folder")
    names = {f"tables/{name}.{kind}" for name in TABLES for kind in ("md", "csv", "tex")}
    names |= {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {name for name in written if not name.startswith("peft/")} == names | {"README.md", "report.html"}
    assert len([name for name in written if name.startswith("peft/")]) == len(RESULTS.runs)
    there = {path.relative_to(tmp_path / "new" / "folder").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert there == set(written)
    for path in written.values():
        assert path.stat().st_size > 0
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_results_that_were_read_back_give_the_same_report(tmp_path):
    first, second = (report_files(results) for results in (RESULTS, read_results(write_results(RESULTS, tmp_path))))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and not name.startswith("peft/")] == []


def test_the_readme_shows_tables_and_pictures_that_are_there(tmp_path):
    write_report(RESULTS, tmp_path)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse((tmp_path / "README.md").read_text())
    inline = [child for token in tokens for child in token.children or []]
    images = [child.attrs["src"] for child in inline if child.type == "image"]
    assert images == [f"figures/{name}.png" for name in FIGURES]
    links = [child.attrs["href"] for child in inline if child.type == "link_open"]
    assert links == ["report.html"]
    for name in images + links:
        assert (tmp_path / name).is_file()
    assert sum(token.type == "table_open" for token in tokens) == len(TABLES)


@pytest.mark.parametrize(
    "partial",
    [
        replace(RESULTS, runs=(), best=()),
        replace(RESULTS, best=()),
        replace(RESULTS, best=tuple(Best(each.variant, each.rank, None, False) for each in RESULTS.best)),
        replace(RESULTS, reference="no such variant"),
        replace(RESULTS, runs=tuple(replace(run, status="missing", test=None, validation=None, curve=None,
                                            learning_rate=None if run.is_auto else run.learning_rate)
                                    for run in RESULTS.runs)),
        replace(RESULTS, runs=tuple(replace(run, status="failed", learning_rate=None, trainable_parameters=None)
                                    for run in RESULTS.runs)),
        replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.variant != "LoRA")),
        replace(RESULTS, runs=tuple(replace(run, curve=None, seconds={}, peak_memory=None, steps=None, tokens=None)
                                    for run in RESULTS.runs)),
        replace(RESULTS, runs=tuple(replace(run, validation=None) for run in RESULTS.runs)),
        replace(RESULTS, runs=tuple(run for run in RESULTS.runs if run.is_auto)),
        replace(RESULTS, metric="none", score="", runs=tuple(
            replace(run, test=run.test and replace(run.test, score=None, items=())) for run in RESULTS.runs)),
    ],
    ids=["no runs", "no best", "best is none", "no reference", "all missing", "all failed", "reference missing", "bare",
         "no validation", "auto alone", "loss alone"],
)  # fmt: skip
def test_partial_results_have_a_report(partial):
    page = report_files(partial)["report.html"].decode()
    is_all_there = partial.best and all(run.status == "done" for run in partial.runs) and "No finished run" not in page
    assert ("What is missing" in page) or is_all_there


def test_a_report_is_replaced_and_nothing_half_written_is_left(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "best.csv").write_text("an earlier one")
    write_report(RESULTS, tmp_path)
    assert (tmp_path / "tables" / "best.csv").read_text().startswith("variant,rank")
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match=r"cannot write .*file"):
        write_report(replace(RESULTS, runs=()), tmp_path / "file")
