"""From an adapter for a changed base to a plain LoRA for the original one.

PEFT's and the authors' LoRA-GA, and PiSSA, OLoRA and CorDA, subtract their start from the base weights, so that what
they save is for weights that are nowhere on the disk:

    trained function    (W0 - eta B0 A0) x + eta B A x
    the same on W0      W0 x + eta [B, -B0] [A; A0] x

The right side is a plain LoRA of rank 2r for the original base W0, which this package writes and reads anyway.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import nn

from ._version import __version__
from .adapter_directory import RECIPE_NAME
from .adapter_kind import AUTHORS_KEYS, CHANGED, OURS, PEFT, QUANTISED, AdapterKind, inspect_adapter
from .changed_base import require_start_of_changed_base, start_of_changed_base
from .checksum import tensor_checksum
from .errors import SaveError
from .layers import PEFT_PREFIX
from .layout import LayerLayout, SplitRecipe, plain_config
from .quantization import is_quantized
from .saved_adapter import SavedAdapter, SavedLayer, is_converted_by_authors, read_saved_adapter
from .subtracted_start import start_of_halves, start_of_initial

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from .scheme import Factors

# settings of the start, which belong to it and not to what is written; the authors' names are no names of PEFT's
START_SETTINGS = ("lora_ga_config", "corda_config")
AUTHORS_SETTINGS = AUTHORS_KEYS | {"direction", "max_length", "dtype", "scale"}


@contextmanager
def for_original_base(
    base: nn.Module,
    directory: Path,
    initial: str | os.PathLike[str] | None = None,
    changed_base: nn.Module | str | os.PathLike[str] | None = None,
) -> Iterator[Path]:
    """Gives a directory with an adapter for the original base: the one that is there, or its conversion.

    Args:
        base: the original base model; it is only read.
        directory: a saved adapter; it is only read.
        initial: the same adapter before training.
        changed_base: the base model, or its directory, that the adapter was trained on.

    Yields:
        The directory itself, or a temporary one.

    Raises:
        SaveError: if the adapter is for a changed base and its start is not to be had.
    """
    kind = inspect_adapter(directory)
    if initial is None and changed_base is None and not (is_converted_by_authors(kind) and not kind.loads_as_it_is):
        require_original_base(kind)
        if kind.kind == PEFT and kind.loads_as_it_is:
            start_of_halves(read_saved_adapter(directory))  # its config may have been changed by hand
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        _convert(base, directory, kind, initial, changed_base, Path(temporary))
        yield Path(temporary)


def require_original_base(kind: AdapterKind) -> None:
    """Refuses an adapter for base weights that its files do not hold, or with a scaling that its config does not say.

    Args:
        kind: what the adapter is.

    Raises:
        SaveError: with the way to convert it.
    """
    if kind.base == CHANGED or (is_converted_by_authors(kind) and not kind.loads_as_it_is):
        raise SaveError(f"{kind.directory}: {kind.title}. {kind.why}. {kind.remedy}")


def _convert(
    base: nn.Module,
    directory: Path,
    kind: AdapterKind,
    initial: str | os.PathLike[str] | None,
    changed_base: nn.Module | str | os.PathLike[str] | None,
    target: Path,
) -> None:
    if kind.kind == OURS:
        raise SaveError(f"{directory} is for the original base as it is; leave initial and changed_base away")
    if kind.base == QUANTISED:
        raise SaveError(f"{directory}: {kind.title} cannot be converted. {kind.why}. {kind.remedy}")
    trained = read_saved_adapter(directory)
    layers: Mapping[str, SavedLayer] = trained.layers
    starts: dict[str, Factors] = {}
    if initial is None and changed_base is None:
        layers, starts = start_of_halves(trained)
    if initial is not None:
        if Path(initial).resolve() == directory.resolve():
            raise SaveError(f"{initial} is the trained adapter itself; name what was saved before training")
        starts = start_of_initial(trained, read_saved_adapter(Path(initial)))
    if changed_base is not None:
        changed = changed_base if isinstance(changed_base, nn.Module) else _load_like(base, changed_base)
        if initial is not None:
            require_start_of_changed_base(trained, starts, base, changed)
        else:
            starts = start_of_changed_base(trained, base, changed)
        del changed
    _require_expressible(base, layers, starts)
    # in the model's order, by which PEFT's one r and lora_alpha are chosen where layers have several
    ordered = {name: layers[name] for name, _ in base.named_modules() if name in layers}
    _write(trained, ordered, starts, base, target)


def _write(
    trained: SavedAdapter,
    layers: Mapping[str, SavedLayer],
    starts: Mapping[str, Factors],
    base: nn.Module,
    target: Path,
) -> None:
    state = _joined(trained, layers, starts, base)
    layout = {name: LayerLayout(layer.rank, layer.eta, offset=name in starts) for name, layer in layers.items()}
    config = {key: value for key, value in trained.config.items() if key not in AUTHORS_SETTINGS}
    config = {**config, "peft_type": "LORA", **dict.fromkeys(START_SETTINGS)}
    save_file(state, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    (target / CONFIG_NAME).write_text(json.dumps(plain_config(config, layout), indent=2, sort_keys=True))
    if starts and not trained.config.get("use_dora"):  # DoRA cannot carry an offset: it goes on at twice the rank
        recipe = SplitRecipe(
            config=_trained_config(trained, layers),
            ranks={name: layers[name].rank for name in starts},
            folded=False,
            version=__version__,
            sha256=tensor_checksum(state),
        )
        (target / RECIPE_NAME).write_text(json.dumps(recipe.to_dict(), indent=2, sort_keys=True))


def _trained_config(trained: SavedAdapter, layers: Mapping[str, SavedLayer]) -> dict[str, Any]:
    """The adapter's own ranks and alphas, by layer: two versions of PEFT match patterns differently."""
    rank, rank_pattern = _patterns({name: layer.rank for name, layer in layers.items()})
    alpha, alpha_pattern = _patterns({name: layer.alpha for name, layer in layers.items()})
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": bool(trained.config.get("use_rslora")),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest of the layers' values, and PEFT's pattern for each of the others."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(name)}": value for name, value in values.items() if value != common}


def _joined(
    trained: SavedAdapter, layers: Mapping[str, SavedLayer], starts: Mapping[str, Factors], base: nn.Module
) -> dict[str, Tensor]:
    """[A; A0] and [B, -B0] for layers with a start, and everything else, with saved base weights restored."""
    state = dict(trained.state)
    weights = base.state_dict()
    for name, layer in layers.items():
        A, B = layer.A, layer.B
        if name in starts:
            start = starts[name]
            wider = torch.promote_types(A.dtype, start.A.dtype)
            A, B = torch.cat([A.to(wider), start.A.to(wider)]), torch.cat([B.to(wider), -start.B.to(wider)], dim=1)
            changed = f"{PEFT_PREFIX}{name}.base_layer.weight"
            if changed in state:  # PEFT saves the weight of a head that it is on, or of one that was resized
                saved = state.pop(changed)
                added = layer.eta * (start.B.double() @ start.A.double())
                if not _is_sum(weights.get(f"{name}.weight"), saved, added):
                    state[changed] = (saved.double() + added).to(saved.dtype)
        for key, factor in zip(layer.keys, (A, B), strict=True):
            state[key] = factor.contiguous()
    return state


def _is_sum(weight: Tensor | None, saved: Tensor, added: Tensor) -> bool:
    """Whether a weight is the sum of two others, but for the rounding of a subtraction."""
    if weight is None or weight.shape != saved.shape or not weight.is_floating_point():
        return False
    difference = torch.linalg.vector_norm(weight.double().cpu() - saved.double() - added)
    size = torch.linalg.vector_norm(saved.double()) + torch.linalg.vector_norm(added)
    return bool(difference <= torch.finfo(saved.dtype).eps * size)


def _load_like(base: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Loads a directory's weights as the base model's class does, in their own dtype."""
    kind: Any = type(base)
    if not Path(directory).is_dir():
        raise SaveError(f"{directory} is no directory; name that of the base model that the adapter was trained on")
    if not hasattr(kind, "from_pretrained"):
        raise SaveError(f"{kind.__name__} has no from_pretrained; pass the changed base as a model")
    try:
        model, found = kind.from_pretrained(
            directory,
            dtype="auto",
            output_loading_info=True,
            key_mapping={r"\.(base_layer|original_module)\.": "."},  # saved from within the PeftModel
        )
    except Exception as error:  # the readers of weights raise whatever their libraries do
        raise SaveError(
            f"{directory} cannot be loaded as a {kind.__name__} ({' '.join(str(error).split())})"
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers
        raise SaveError(f"{directory} lacks {len(missing)} weights of a {kind.__name__}, such as {missing[0]}")
    loaded: nn.Module = model
    return loaded


def _require_expressible(base: nn.Module, layers: Iterable[str], starts: Mapping[str, Factors]) -> None:
    """Refuses layers that the base has not, and starts that changed more of it than an adapter can change back."""
    owners = Counter(id(parameter) for _, parameter in base.named_parameters(remove_duplicate=False))
    quantised = False
    modules = dict(base.named_modules())
    for name in layers:
        if name not in modules:
            raise SaveError(f"the base has no layer {name}; the adapter is for another model")
    for name in starts:
        module = modules[name]
        quantised = quantised or is_quantized(module)
        if owners[id(getattr(module, "weight", None))] > 1:
            raise SaveError(
                f"layer {name}: its weight is tied to another module's, which the start changed too; no adapter can "
                "express that"
            )
    if quantised:
        warnings.warn(
            "the base is quantised: if the adapter was trained on a quantised base, its start was subtracted before "
            "quantising, and the plain LoRA gives the trained function up to that rounding",
            stacklevel=2,
        )
