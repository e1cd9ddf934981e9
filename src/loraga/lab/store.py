"""Results on disk, written as they come: what is done is not done again by the same command."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from .errors import LabError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class Store:
    """A JSON file of settings and results, replaced as a whole at each change.

    Args:
        file: where it is; its folder is made.
        settings: what the results depend on, as JSON values.

    Raises:
        SettingsError: if the file holds results of other settings, or is no such file.
        LabError: if the folder cannot be written.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self._content: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "results": {}}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as cause:
            raise SettingsError(f"{file.parent} is not a folder") from cause
        except OSError as cause:
            raise LabError(f"cannot make the folder {file.parent}: {cause.strerror}") from cause
        if file.exists():
            self._continue()

    @property
    def results(self) -> Mapping[str, Any]:
        """What is done, by its key."""
        return self._content["results"]

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result of a computation: the kept one, or else a new one, kept from now on.

        Args:
            key: what is computed.
            compute: returns a JSON value.

        Returns:
            The value as JSON gives it back.
        """
        if key not in self.results:
            self._content["results"][key] = json.loads(json.dumps(compute()))
            self._write()
        return self.results[key]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Puts what follows from the results beside them."""
        self._content |= summary
        self._write()

    def _continue(self) -> None:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            there, results = dict(found["settings"]), dict(found["results"])
        except (ValueError, KeyError, TypeError) as cause:
            raise SettingsError(f"{self.file} holds no results of this command; name another folder") from cause
        here = self._content["settings"]
        differing = [
            f"{key} {there.get(key)} there, {here.get(key)} here"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise SettingsError(
                f"{self.file} holds results of other settings ({'; '.join(differing)}); "
                "name another folder, or remove this one"
            )
        self._content["results"] = results

    def _write(self) -> None:
        text = json.dumps(self._content, indent=2, allow_nan=True)
        unfinished = self.file.with_suffix(".unfinished")
        try:
            with unfinished.open("w", encoding="utf-8") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(self.file)
        except OSError as cause:
            unfinished.unlink(missing_ok=True)
            raise LabError(f"cannot write {self.file}: {cause.strerror}") from cause
