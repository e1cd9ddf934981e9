"""The ways to fine-tune that a recipe can name, as data: one entry each, and nothing heavy is imported for it.

`starts` puts a method's adapter on a model: PEFT's, by the function of `peft_starts` that the entry names, and over it
a start of `loraga.initialize`. What is not trained as all others are is in `own_training`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        title: how tables and pictures call it.
        what: one sentence on it, with its source.
        adapter: whether it trains an adapter (or else all parameters).
        use_rslora: whether eta is alpha / sqrt(r), not alpha / r.
        scheme: the start of `loraga.initialize`, or None for PEFT's own.
        uses_gamma: whether the scale of that start is gamma's.
        uses_gradient: whether that start looks at batches of data, for their gradient.
        mirrored: whether the start is subtracted by a second half of the adapter, which is trained too.
        peft: the function of `peft_starts` that puts PEFT's adapter on a model.
        uses_data: whether that function looks at batches of data.
        changes_base: whether PEFT subtracts its start from the base model's weights.
        training: the entry of `own_training` that says what is done otherwise in training.
        keys: keys of a recipe that mean something with this method alone.
        defaults: values of keys that its paper's recipes give it, where the other methods have others; a recipe that
            wants them writes them down.
        no_auto: why no learning rate is suggested for it; empty where one is.
        no_init: why `loraga init` cannot write it; empty where it can.
        saved_as: what its result is.
    """

    title: str
    what: str
    adapter: bool = True
    use_rslora: bool = False
    scheme: str | None = None
    uses_gamma: bool = False
    uses_gradient: bool = False
    mirrored: bool = False
    peft: str = "lora"
    uses_data: bool = False
    changes_base: bool = False
    training: str = "adamw"
    keys: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    no_auto: str = ""
    no_init: str = ""
    saved_as: str = "a plain LoRA"

    @property
    def uses_batches(self) -> bool:
        """Whether its start looks at batches of data, for a gradient or otherwise."""
        return self.uses_gradient or self.uses_data

    @property
    def is_started_anew(self) -> bool:
        """Whether a continued run makes the start again, since no folder that plain PEFT loads holds it."""
        return self.changes_base or bool(self.no_init)


METHODS = {
    "lora": Method("LoRA", "A from U(+-sqrt(1/d_in)), B zero, eta = alpha / r, as PEFT starts it (arXiv 2106.09685)"),
    "rslora": Method("rsLoRA", "LoRA with eta = alpha / sqrt(r) (arXiv 2312.03732)", use_rslora=True),
    "lora_ga": Method(
        "LoRA-GA",
        "A and B along the gradient at the stable scale, eta = alpha / sqrt(r) (arXiv 2407.05000)",
        use_rslora=True,
        scheme="lora_ga",
        uses_gamma=True,
        uses_gradient=True,
    ),
    "mirrored": Method(
        "mirrored",
        "LoRA-GA's start as a plain LoRA of twice the rank, [B, -B] and [A; A], all of it trained, which no tool needs "
        "to know of (docs/other-tools.md)",
        use_rslora=True,
        scheme="lora_ga",
        uses_gamma=True,
        uses_gradient=True,
        mirrored=True,
    ),
    "gaussian": Method(
        "Gaussian", "A and B random, both trained, eta = alpha / r (arXiv 2407.05000, Table 3)", scheme="gaussian"
    ),
    "stable_output": Method(
        "+SO",
        "A and B random at the stable scale, eta = alpha / sqrt(r) (arXiv 2407.05000, Table 3)",
        use_rslora=True,
        scheme="stable_output",
        uses_gamma=True,
    ),
    "gradient": Method(
        "+GA",
        "A and B along the gradient at unit scale, eta = alpha / r (arXiv 2407.05000, Table 3)",
        scheme="gradient",
        uses_gradient=True,
    ),
    "lora_plus": Method(
        "LoRA+",
        "LoRA with two learning rates, that of B loraplus_lr_ratio times that of A (arXiv 2402.12354)",
        training="lora_plus",
        keys=("loraplus_lr_ratio",),
    ),
    "pissa": Method(
        "PiSSA",
        "A and B are the principal singular triplets of the weight, which keeps the others (arXiv 2404.02948)",
        peft="pissa",
        changes_base=True,
    ),
    "dora": Method(
        "DoRA",
        "LoRA on the weight's direction, and its magnitude trained beside it (arXiv 2402.09353)",
        peft="dora",
        defaults={"learning_rate": 2e-4},
        saved_as="a DoRA adapter",
    ),
    "adalora": Method(
        "AdaLoRA",
        "B diag(E) A of 1.5 times the rank, whose least important triplets are set to zero on a schedule until rank is "
        "left on average; a term in the training loss keeps A and B orthogonal (arXiv 2303.10512)",
        peft="adalora",
        training="adalora",
        keys=("init_r", "tinit", "tfinal", "deltaT"),
        defaults={"learning_rate": 5e-4},
        no_auto="its first step moves E alone and A and B towards orthogonality, so that it says nothing of later ones",
        no_init="its ranks fall on a schedule of the run, which no adapter's folder holds",
    ),
    "eva": Method(
        "EVA",
        "A is the principal components of the layer's inputs, B zero; layers share the ranks by the variance that is "
        "explained (arXiv 2410.07170)",
        peft="eva",
        uses_data=True,
    ),
    "peft_lora_ga": Method(
        "LoRA-GA of PEFT",
        "PEFT's own lora_ga with its defaults: B times the gradient's singular values, eta = alpha / r (a reading of "
        "arXiv 2407.05000)",
        peft="peft_lora_ga",
        uses_data=True,
        changes_base=True,
    ),
    "full": Method("full fine-tuning", "all parameters are trained", adapter=False),
}
