"""The list of deliberate defects, `defects.toml`: reading it, and applying one to a copy of the source.

    package = "loraga"
    imports = ["torch"]          # what the tests import, so that it is imported once for all
    [defects."scheme.py"]        # below src/<package>
    "what is wrong then" = { find = "+ 1", replace = "+ 2", tests = ["test_scheme.py"] }

`find` occurs once in its file. `tests` lie below tests/; without them it is the file that mirrors the source file.
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Defect:
    name: str
    file: str  # below src/<package>
    find: str
    replace: str
    tests: tuple[str, ...]  # files or test ids below tests/

    @property
    def title(self) -> str:
        return f"{self.file}: {self.name}"


@dataclass(frozen=True)
class DefectList:
    root: Path  # holds src/ and tests/
    package: str
    imports: tuple[str, ...]
    defects: tuple[Defect, ...]

    @property
    def source(self) -> Path:
        return self.root / "src" / self.package


def read(path: Path) -> DefectList:
    """Reads `<root>/tests/mutants/defects.toml`."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    defects = [
        Defect(name, file, entry["find"], entry["replace"], tuple(entry.get("tests", (mirrored(file),))))
        for file, entries in content["defects"].items()
        for name, entry in entries.items()
    ]
    return DefectList(path.resolve().parents[2], content["package"], tuple(content["imports"]), tuple(defects))


def mirrored(file: str) -> str:
    """The tests of a source file: lab/rows.py is tested in lab/test_rows.py."""
    path = PurePosixPath(file)
    return str(path.with_name(f"test_{path.name}"))


def why_unusable(defect: Defect, source: Path) -> str | None:
    """Why a defect does not apply to the source as it is now, or None."""
    file = source / defect.file
    if not file.is_file():
        return f"{file} is not there"
    count = file.read_text(encoding="utf-8").count(defect.find)
    if count != 1:
        return f"{defect.find!r} occurs {count} times in {defect.file}; once is needed"
    if defect.find == defect.replace:
        return "it changes nothing"
    return None


def copy_source(source: Path, to: Path, defect: Defect | None) -> None:
    """Copies the package below a directory, with the defect if there is one."""
    copied = to / source.name
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    if defect is not None:
        file = copied / defect.file
        file.write_text(file.read_text(encoding="utf-8").replace(defect.find, defect.replace), encoding="utf-8")
