"""The ways to fine-tune that a recipe can name, as data: one entry each, and nothing heavy is imported for it.

`starts` puts a method's adapter on a model.
"""

from __future__ import annotations

from dataclasses import dataclass


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
        uses_gradient: whether that start looks at batches of data.
        mirrored: whether the start is subtracted by a second half of the adapter, which is trained too.
    """

    title: str
    what: str
    adapter: bool = True
    use_rslora: bool = False
    scheme: str | None = None
    uses_gamma: bool = False
    uses_gradient: bool = False
    mirrored: bool = False


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
    "full": Method("full fine-tuning", "all parameters are trained", adapter=False),
}
