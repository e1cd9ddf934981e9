"""What made an adapter directory, and whether plain PEFT gives the trained function from it on the original base.

LoRA-GA subtracts its start from the base weights, and so do some other starts; an adapter saved without that offset is
for a base that no longer exists. Only JSON and the header of the weight file are read: no tensor, no pickle, no model.

What files alone cannot show, and what is said instead:

- An adapter for a changed base whose `init_lora_weights` was set to true by hand, as the documents of PiSSA, CorDA and
  LoftQ advise, looks like plain LoRA. Where the start's own settings were left in the config, this is said.
- PEFT's conversion also sets `init_lora_weights` to true in the start that it converts with. An odd rank, or a whole
  lora_alpha under rslora, shows that a directory is such a start and not a converted adapter; an even rank does not.
- Where PEFT found no gradient, it fell back to plain LoRA; the files say lora_ga all the same.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter_files import CONFIG, FACTOR, MISSING, PICKLE, WEIGHTS, AdapterFiles, read_adapter_files, recipe_ranks
from .errors import SaveError
from .residual_record import MIRRORED, RESIDUAL, residual_base_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

PLAIN, OURS, PEFT, AUTHORS, OTHER = "plain_lora", "loraga", "peft_lora_ga", "authors_lora_ga", "other"
# the base weights that the factors are for: the original ones; those less a start, which the files do not hold; those
# less a start that PEFT computes again on loading; those of a residual base; quantised ones; or not known
ORIGINAL, CHANGED, RECOMPUTED, QUANTISED, UNKNOWN = "original", "changed", "recomputed", "quantised", "unknown"
FOR_RESIDUAL = "loraga_residual"

UNCHANGED_BASE = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
AUTHORS_KEYS = {"bsz", "iters", "stable_gamma"}
START_FOLDERS = ("init_lora_checkpoint", "initial_model")  # the authors' code, ms-swift

RESCUE = (
    "`loraga export` makes a plain LoRA of it with --initial and the adapter that was saved before training{beside}, "
    "or with --changed-base and the base model that it was trained on (loraga.load: initial=, changed_base=)"
)
IRREPARABLE = "; without either it cannot be repaired"

PICKLE_REMEDY = "if you trust who made it, load it with PEFT and save it again, which writes safetensors"


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter directory is.

    Attributes:
        directory: the directory.
        kind: "plain_lora", "loraga", "loraga_residual", "peft_lora_ga", "authors_lora_ga" or "other".
        title: the same in words.
        loads_as_it_is: whether `PeftModel.from_pretrained` on the original base gives the trained function; False also
            where the files do not show it.
        loraga_loads: whether `loraga.load` does, from these files alone.
        base: the weights that the factors are for: "original", "changed", "recomputed", "residual", "quantised" or
            "unknown".
        why: the reason, one sentence.
        remedy: what to do, one sentence; empty where nothing needs doing.
        obstacle: what keeps any loader from getting all of it; empty if nothing does.
        ranks: distinct ranks on disk, rising.
        trained_ranks: distinct ranks that were trained: half of those on disk where a start is stored with them.
        alpha: lora_alpha; None where the config has none.
        use_rslora: whether the scaling is alpha / sqrt(r).
        layers: number of adapted layers in the weight file.
        base_model: its name or path; empty where the config has none.
        files: {file: "present", "missing", "truncated", "damaged" or "not opened"}.
        notes: what else is worth knowing, a sentence each.
    """

    directory: str
    kind: str
    title: str
    loads_as_it_is: bool
    loraga_loads: bool
    base: str
    why: str
    remedy: str
    obstacle: str
    ranks: tuple[int, ...]
    trained_ranks: tuple[int, ...]
    alpha: float | None
    use_rslora: bool
    layers: int
    base_model: str
    files: dict[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON data."""
        return asdict(self)


def inspect_adapter(directory: str | os.PathLike[str]) -> AdapterKind:
    """Says what an adapter directory is, from its JSON files and the header of its weights.

    Args:
        directory: what `save_pretrained`, a Trainer checkpoint or `export` wrote.

    Returns:
        Kind, verdict and facts; damaged or missing weights are part of them.

    Raises:
        SaveError: if there is no readable adapter_config.json; the message names adapters in subdirectories.
    """
    path = Path(directory)
    found = read_adapter_files(path)
    verdict = next(verdict for judge in _JUDGES if (verdict := judge(found)))
    notes = [*verdict.notes, *found.notes]
    obstacle = next(_obstacles(found, verdict.kind), None)
    why, remedy = obstacle or (verdict.why, verdict.remedy)
    if obstacle and not verdict.loads:
        notes.insert(0, verdict.why)
    return AdapterKind(
        directory=str(path),
        kind=verdict.kind,
        title=verdict.title,
        loads_as_it_is=verdict.loads and obstacle is None,
        loraga_loads=(verdict.loads or (verdict.kind == AUTHORS and verdict.base == ORIGINAL)) and obstacle is None,
        base=verdict.base,
        why=why,
        remedy=remedy,
        obstacle=obstacle[0] if obstacle else "",
        ranks=found.distinct_ranks,
        trained_ranks=verdict.trained_ranks or found.distinct_ranks,
        alpha=found.alpha,
        use_rslora=found.rslora,
        layers=len(found.ranks),
        base_model=str(found.config.get("base_model_name_or_path") or ""),
        files=found.files,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Verdict:
    """What a judge found."""

    kind: str
    title: str
    loads: bool
    why: str
    remedy: str = ""
    base: str = ORIGINAL
    trained_ranks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def _authors(found: AdapterFiles) -> _Verdict | None:
    """The authors' fork of PEFT, whose type stock PEFT does not know, and the wrapper of it that ms-swift uses."""
    unknown_type = found.config.get("peft_type") == "LORAGA"
    if not unknown_type and found.start != "lora-ga" and not found.config.keys() >= AUTHORS_KEYS:
        return None
    if found.start != "true" or found.has_odd_rank:
        return _Verdict(
            AUTHORS,
            "LoRA-GA adapter of the authors' code, not converted",
            loads=False,
            why="it was saved as it was trained, for base weights that its start was subtracted from: on the original "
            "base they give another function, or stock PEFT refuses its config",
            remedy=RESCUE.format(beside=_start_folder(found.path)) + IRREPARABLE,
            base=CHANGED,
        )
    whys, repairs = [], []
    if unknown_type:
        whys.append("stock PEFT does not know its peft_type LORAGA")
        repairs.append('set "peft_type" to "LORA"')
    if found.rslora and found.has_whole_alpha:
        whys.append("the authors' conversion doubles lora_alpha under rslora too, which makes the scaling 1.41 times")
        repairs.append(f"divide lora_alpha by the root of 2 (to {(found.alpha or 0) / math.sqrt(2):.10g})")
    if found.config.get("rank_pattern") or found.config.get("alpha_pattern"):
        whys.append("the authors' conversion leaves rank_pattern and alpha_pattern as they were before it")
        repairs.append("double the values of rank_pattern and alpha_pattern")
    return _Verdict(
        AUTHORS,
        "LoRA-GA adapter of the authors' code, converted to plain LoRA",
        loads=not whys,
        why=", and ".join(whys) or "it is a plain LoRA for the original base, with the authors' settings left in it",
        remedy=f"{' and '.join(repairs)} in {CONFIG}, or let `loraga export` write it as a plain LoRA; the weights are "
        "for the original base"
        if repairs
        else "",
        trained_ranks=found.half_ranks,
        notes=("a start whose config the conversion rewrote looks the same, but for its rank",),
    )


def _peft(found: AdapterFiles) -> _Verdict | None:
    """PEFT's own lora_ga; its conversion leaves lora_ga_config behind."""
    if found.start == "lora_ga":
        return _Verdict(
            PEFT,
            "LoRA-GA adapter of PEFT, not converted",
            loads=False,
            why="it was saved as it was trained, for base weights W0 - eta B0 A0; on the original base PEFT gives "
            "W0 + eta B A, with no warning",
            remedy=RESCUE.format(beside=_start_folder(found.path)) + ", or save it from the process that trained it "
            "with path_initial_model_for_weight_conversion=; without one of them it cannot be repaired",
            base=CHANGED,
            notes=(
                "where PEFT had no gradient it silently started a layer as plain LoRA; the files look the same",
                "where preprocess_loraga was never called, setting init_lora_weights to true is all it needs",
            ),
        )
    if found.config.get("lora_ga_config") is None or found.start != "true":
        return None
    if not found.may_be_converted:
        return _Verdict(
            PEFT,
            "LoRA-GA adapter of PEFT with init_lora_weights rewritten, not converted",
            loads=False,
            why="it began as lora_ga, and its rank or lora_alpha is not what PEFT's conversion writes: it is a "
            "start that an adapter was converted with, or its init_lora_weights was changed by hand",
            remedy="load what save_pretrained(path_initial_model_for_weight_conversion=) wrote, not the start; if it "
            f"was changed by hand, {RESCUE.format(beside=_start_folder(found.path))}",
            base=CHANGED,
        )
    return _Verdict(
        PEFT,
        "LoRA-GA adapter of PEFT, converted to plain LoRA",
        loads=True,
        why="its config is what PEFT's conversion writes, which stores the start beside the trained factors: a plain "
        "LoRA for the original base",
        trained_ranks=found.half_ranks,
        notes=(
            "with an even rank, a start that an adapter was converted with looks the same, and does not load as it is",
            "so does an adapter whose init_lora_weights was changed by hand",
            "in half precision the trained function differs by what subtracting the start from the base rounded away",
        ),
    )


def _for_residual_base(found: AdapterFiles) -> _Verdict | None:
    """What this package, or a tool that it wrote a start for, trains on a base with the start subtracted."""
    if found.config.get("peft_type") != "LORA":
        return None
    named = str(found.config.get("base_model_name_or_path") or "")
    damage = ""
    try:
        place, record = residual_base_of(found.path, found.config)
    except SaveError as error:
        place, record, damage = Path(named), None, str(error)
    if place is None and (found.report.get("offset") != RESIDUAL or found.recipe):
        return None
    original = (record.original if record else "") or "the original base"
    there = f"the residual base {place or named}"
    return _Verdict(
        FOR_RESIDUAL,
        "LoRA-GA adapter of loraga for a residual base",
        loads=False,
        why=f"it is for {there}, whose weights are those of {original} less the start: on the original base it gives "
        f"another function{f'; {damage}' if damage else ''}",
        remedy=f"load it onto {there}, or write it by loraga export as a plain LoRA of {original}"
        if record
        else "name the residual base, if it has moved, by loraga export --model: its start is needed",
        base=RESIDUAL,
    )


def _ours(found: AdapterFiles) -> _Verdict | None:
    """What this package writes: loraga.json where a start is stored with the adapter, else a report alone."""
    if found.config.get("peft_type") != "LORA" or found.start not in UNCHANGED_BASE:
        return None
    if not found.recipe:
        return _ours_without_start(found) if found.report else None
    notes = ["loraga.load goes on training with the trained rank"]
    if found.recipe.get("folded"):
        notes.append("in half precision the trained function differs by what folding into the base rounded away")
    ranks = recipe_ranks(found.recipe)
    others = (rank for layer, rank in found.ranks.items() if layer not in ranks)
    return _Verdict(
        OURS,
        f"LoRA-GA adapter of loraga {found.recipe.get('version', '')}, stored as plain LoRA",
        loads=True,
        why="the start is stored beside the trained factors, which makes it a plain LoRA for the original base",
        trained_ranks=tuple(sorted({*ranks.values(), *others})),
        notes=tuple(notes),
    )


def _ours_without_start(found: AdapterFiles) -> _Verdict:
    if found.report.get("offset") == MIRRORED:
        return _Verdict(
            OURS,
            f"adapter of loraga (scheme {found.report.get('scheme')}), plain LoRA that started mirrored",
            loads=True,
            why="its halves cancelled at the start, which leaves the base as it is: a plain LoRA for the original base",
        )
    return _Verdict(
        OURS,
        f"adapter of loraga (scheme {found.report.get('scheme')}), plain LoRA with no start stored",
        loads=True,
        why="it was started without an offset, or exported compressed: a plain LoRA for the original base",
    )


def _base_changed(found: AdapterFiles) -> _Verdict | None:
    """Other starts and variants of LoRA that change the base."""
    if found.config.get("peft_type") != "LORA":
        return None
    return next((verdict for matches, verdict in _OTHER_STARTS if matches(found)), None)


def _plain(found: AdapterFiles) -> _Verdict | None:
    if found.config.get("peft_type") != "LORA" or found.start not in UNCHANGED_BASE:
        return None
    return _Verdict(
        PLAIN,
        "plain LoRA",
        loads=True,
        why="its start leaves the base as it is, and nothing in its files speaks of another base",
    )


def _unknown(found: AdapterFiles) -> _Verdict:
    kind = found.config["peft_type"]
    return _Verdict(
        OTHER,
        f"LoRA started by {found.start}" if kind == "LORA" else f"adapter of type {kind}",
        loads=False,
        why=f"loraga does not know the {f'start {found.start}' if kind == 'LORA' else f'type {kind}'}",
        base=UNKNOWN,
        remedy="load it with the version of PEFT that saved it, and compare its outputs with what it gave in training",
    )


_JUDGES = (_authors, _peft, _for_residual_base, _ours, _base_changed, _plain, _unknown)

_CONVERT = f"{RESCUE.format(beside='')}; or load it with plain PEFT onto the residual base that it was trained on"
_OTHER_STARTS: tuple[tuple[Callable[[AdapterFiles], bool], _Verdict], ...] = (
    (
        lambda found: found.start.startswith("pissa_niter"),
        _Verdict(
            OTHER,
            "PiSSA by a randomised decomposition",
            loads=False,
            why="on loading PEFT decomposes the base at random once more, and subtracts another start than in training",
            remedy=f"{_CONVERT}, with init_lora_weights set to true",
            base=CHANGED,
        ),
    ),
    (
        lambda found: found.start in ("pissa", "olora"),
        _Verdict(
            OTHER,
            "PiSSA or OLoRA",
            loads=True,
            why="on loading PEFT recomputes the start from the base, which must have the same weights and dtype",
            base=RECOMPUTED,
            notes=("what loads it without PEFT, or beside another adapter, does not get the trained function",),
        ),
    ),
    (
        lambda found: found.start.startswith("corda") or found.config.get("corda_config") is not None,
        _Verdict(
            OTHER,
            "CorDA",
            loads=False,
            why="its start was subtracted from the base and cannot be recomputed: PEFT raises an error, or gives "
            "another function where init_lora_weights was set to true for the residual base",
            remedy=_CONVERT,
            base=CHANGED,
        ),
    ),
    (
        lambda found: found.start == "loftq" or bool(found.config.get("loftq_config")),
        _Verdict(
            OTHER,
            "LoftQ",
            loads=False,
            why="it is for a base that LoftQ replaced by its quantised weights, which these files do not hold",
            remedy="load it onto the base that was saved with it, not onto the original one",
            base=QUANTISED,
        ),
    ),
    (
        lambda found: found.config.get("kasa_config") is not None,
        _Verdict(
            OTHER,
            "KaSA",
            loads=True,
            why="on loading PEFT cuts the base's smallest singular values off again; it must have the same weights",
            base=RECOMPUTED,
        ),
    ),
)


def _obstacles(found: AdapterFiles, kind: str) -> Iterator[tuple[str, str]]:
    """What keeps any loader from getting all of it: (why, remedy)."""
    again = "copy it again from where it was saved, or take an earlier checkpoint"
    if found.defect:
        pickled = found.files[WEIGHTS] == MISSING and PICKLE in found.files
        yield found.defect, PICKLE_REMEDY if pickled else again
        return
    if found.config["peft_type"] not in ("LORA", "LORAGA"):
        return
    if not found.ranks:
        yield f"{WEIGHTS} holds no LoRA factors", again
    factors = {(match["layer"], match["factor"]) for key in found.keys if (match := FACTOR.match(key))}
    for layer, factor in sorted(factors):
        other = "B" if factor == "A" else "A"
        if (layer, other) not in factors:
            yield f"{WEIGHTS} has {factor} but no {other} of layer {layer}", again
    dropped = ", since PEFT's conversion drops them" if kind in (PEFT, AUTHORS) else ""
    for part in _lost(found):
        yield f"{CONFIG} speaks of {part}, and {WEIGHTS} holds none{dropped}", "save it again from the trained model"
    for layer, stated, by_pattern in _stated_ranks(found):
        if kind == AUTHORS and by_pattern and found.start == "true":
            stated *= 2  # their conversion leaves the patterns as they were
        if stated != found.ranks[layer]:
            yield (
                f"{CONFIG} says rank {stated} for layer {layer}, and {WEIGHTS} has {found.ranks[layer]}",
                f"take {CONFIG} and {WEIGHTS} from the same save",
            )


def _lost(found: AdapterFiles) -> Iterator[str]:
    """Parts that the config promises and the weights lack."""
    others = [key for key in found.keys if not FACTOR.match(key)]
    if found.config.get("use_dora") and not any("lora_magnitude_vector" in key for key in others):
        yield "DoRA's magnitudes"
    modules = found.config.get("modules_to_save") or []
    if modules and not any(f".{module}." in f".{key}" for key in others for module in modules):
        yield f"modules_to_save ({', '.join(map(str, modules))})"
    if found.config.get("trainable_token_indices") and not any("trainable_tokens" in key for key in others):
        yield "trainable tokens"


def _stated_ranks(found: AdapterFiles) -> Iterator[tuple[str, Any, bool]]:
    """(layer, rank by the config, whether a pattern says it), matched as PEFT matches its patterns."""
    if found.config.get("target_parameters") or found.config.get("use_bdlora"):
        return  # there a factor's first size is not the rank
    patterns = found.config.get("rank_pattern") or {}
    for layer in found.ranks:
        try:
            ranks = [rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)]
        except re.error as error:
            raise SaveError(f"{found.path / CONFIG} is damaged: rank_pattern: {error}") from error
        yield layer, (ranks or [found.config.get("r")])[0], bool(ranks)


def _start_folder(path: Path) -> str:
    """Names a start beside the adapter, for the message."""
    for folder in (parent / name for parent in (path, path.parent) for name in START_FOLDERS):
        if (folder / CONFIG).is_file() and folder != path:
            return f" (in {folder})"
    return ""
