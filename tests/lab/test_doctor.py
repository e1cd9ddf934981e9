"""Tests of what the doctor says about an installation, a machine and a directory."""

from __future__ import annotations

import builtins
import json
import platform
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import loraga
from loraga.lab import doctor
from tests.models import build, with_lora

STATED = [
    "torch>=2.6",
    "peft<0.22,>=0.21",
    "tqdm>=999",
    "absent-package>=1",
    "loraga[cli]; extra == 'lab'",
    "trl>=999; extra == 'test'",
    "absent-extra>=1; extra == 'test'",
]


@pytest.fixture
def stated(monkeypatch):
    """Metadata that asks for what STATED says, whether or not loraga is installed here."""
    found = metadata.version

    def version(package):
        return "2.13.0+cpu" if package == "torch" else found(package)

    monkeypatch.setattr(metadata, "requires", lambda name: STATED)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "_asked_for_python", lambda: ">=3.11")


@pytest.fixture
def not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "metadata", missing)


@pytest.fixture
def adapter(tmp_path):
    with_lora(build("Llama")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_versions_are_held_against_the_ranges_that_the_metadata_states(stated):
    found = doctor.versions()
    assert found["torch"] == {"version": "2.13.0+cpu", "asked_for": ">=2.6", "inside": True, "needed": True}
    assert found["peft"] == {
        "version": metadata.version("peft"),
        "asked_for": "<0.22,>=0.21",
        "inside": True,
        "needed": True,
    }
    assert (found["tqdm"]["inside"], found["tqdm"]["needed"]) == (False, True)
    assert found["absent-package"] == {"version": None, "asked_for": ">=1", "inside": None, "needed": True}
    assert (found["trl"]["inside"], found["trl"]["needed"]) == (False, False)
    assert found["python"]["version"] == platform.python_version()
    assert found["python"]["inside"]
    assert {"transformers", "datasets", "accelerate", "bitsandbytes", "safetensors", "loraga"} <= found.keys()


def test_without_metadata_no_range_is_known_and_nothing_is_wrong(not_installed):
    found = doctor.versions()
    assert {row["asked_for"] for row in found.values()} == {None}
    assert {row["inside"] for row in found.values()} == {None}
    assert found["torch"]["version"] == metadata.version("torch")
    assert doctor.diagnose().healthy


def test_a_version_that_follows_no_rule_is_neither_inside_nor_outside(monkeypatch, stated):
    monkeypatch.setattr(metadata, "version", lambda package: "from-source")
    assert doctor.versions()["torch"]["inside"] is None


def test_what_is_needed_and_absent_or_outside_is_to_do(stated):
    diagnosis = doctor.diagnose()
    assert not diagnosis.healthy
    assert diagnosis.problems[0].startswith("tqdm ")
    assert "is outside >=999: pip install 'tqdm>=999'" in diagnosis.problems[0]
    assert "absent-package is missing: pip install 'absent-package>=1'" in diagnosis.problems
    assert any(problem.startswith("trl ") for problem in diagnosis.problems)  # installed, and too old for its extra
    assert not any("absent-extra" in problem for problem in diagnosis.problems)


WITHOUT_THE_PACKAGE = """
import sys, types
package = types.ModuleType("loraga")  # its __init__ imports torch, these modules do not
package.__path__ = [sys.argv[1]]
sys.modules["loraga"] = package
from loraga.adapter_kind import inspect_adapter
from loraga.lab.doctor import versions
versions()
print(inspect_adapter(sys.argv[2]).kind)
print(sorted({"torch", "numpy", "transformers", "peft", "safetensors"} & sys.modules.keys()))
"""


def test_nothing_heavy_is_imported_to_tell_versions_or_to_look_at_an_adapter(adapter):
    arguments = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *loraga.__path__, str(adapter)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["plain_lora", "[]"]


def test_the_processor_comes_first_with_its_cores_and_memory():
    processor = doctor.devices()[0]
    assert processor["kind"] == "cpu"
    assert processor["cores"] >= 1
    assert processor["memory_bytes"] >= processor["free_bytes"] > 0


def test_accelerators_are_listed_with_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (index * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * 2**30)
    found = doctor.devices()
    assert [device["kind"] for device in found] == ["cpu", "cuda", "cuda", "mps"]
    lines = doctor.diagnose().lines()
    assert "  cuda: card 1, 80.0 GiB (1.0 free)" in lines
    assert any(line.startswith("  mps: ") and line.endswith(", 16.0 GiB") for line in lines)


@pytest.mark.parametrize("error", [RuntimeError("CUDA driver\n version is insufficient"), ImportError("no torch")])
def test_a_torch_that_does_not_work_is_told_and_not_raised(monkeypatch, error):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert doctor.devices()[-1]["name"] == " ".join(str(error).split())
    [line] = [line for line in doctor.diagnose().lines() if "cannot look" in line]
    assert line.endswith(" ".join(str(error).split()))


def test_a_machine_that_does_not_tell_its_memory_is_no_error(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    processor = doctor.devices()[0]
    assert (processor["memory_bytes"], processor["free_bytes"]) == (None, None)
    assert processor["cores"] >= 1


def test_a_whole_plain_adapter_needs_nothing(not_installed, adapter):
    diagnosis = doctor.diagnose(adapter)
    assert diagnosis.healthy
    lines = diagnosis.lines()
    assert f"  {adapter}: plain LoRA" in lines
    assert "  rank 2, alpha 4, scaling alpha / sqrt(r), 14 layers" in lines
    assert "  files: whole" in lines
    assert lines[-1] == "nothing needs doing"


def test_an_adapter_that_does_not_load_as_it_is_is_to_do_with_its_remedy(not_installed, adapter):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "lora_ga"}))
    diagnosis = doctor.diagnose(adapter)
    assert not diagnosis.healthy
    [problem] = diagnosis.problems
    assert problem == f"{adapter}: {diagnosis.adapter.remedy}"
    assert any("on the original base: no; it was saved as it was trained" in line for line in diagnosis.lines())
    assert diagnosis.lines()[-2:] == ["to do", f"  {problem}"]


def test_a_damaged_file_of_ours_is_to_do(not_installed, adapter):
    (adapter / "loraga.json").write_text("{")
    diagnosis = doctor.diagnose(adapter)
    assert [*diagnosis.problems] == [
        f"{adapter}: loraga.json is damaged, which PEFT does not read but loraga does: copy it again"
    ]
    assert "  files: loraga.json (damaged)" in diagnosis.lines()


def test_a_directory_that_is_no_adapter_is_a_problem_and_no_error(not_installed, tmp_path):
    diagnosis = doctor.diagnose(tmp_path)
    assert diagnosis.adapter is None
    [problem] = diagnosis.problems
    assert "holds no adapter_config.json" in problem


def test_the_diagnosis_is_json(adapter):
    facts = json.loads(json.dumps(doctor.diagnose(adapter).to_dict()))
    assert facts["adapter"]["kind"] == "plain_lora"
    assert isinstance(facts["healthy"], bool)
    assert facts["devices"][0]["kind"] == "cpu"


def test_one_line_is_one_line(adapter):
    assert not any("\n" in line for line in doctor.diagnose(adapter).lines())
