"""Results as a comparison of twelve variants leaves them: losses that look like training, and runs that went wrong."""

import math
from dataclasses import replace

import numpy as np

from loraga.lab.comparison.results import Best, Curve, Measured, Results, Run

# name: (method, best learning rate, loss at it, ranks)
VARIANTS = {
    "LoRA": ("lora", 2e-3, 0.790, (8, 32)),
    "full fine-tuning": ("full", 1e-4, 0.788, (None,)),
    "rsLoRA": ("rslora", 1e-3, 0.789, (8, 32)),
    "LoRA+": ("lora_plus", 1e-3, 0.792, (8,)),
    "PiSSA": ("pissa", 4e-4, 0.797, (8,)),
    "DoRA": ("dora", 2e-3, 0.789, (8,)),
    "AdaLoRA": ("adalora", 4e-3, 0.812, (8,)),
    "EVA": ("eva", 1e-3, 0.791, (8,)),
    "Gaussian": ("gaussian", 2e-3, 0.802, (8,)),
    "+SO": ("stable_output", 1e-3, 0.796, (8,)),
    "+GA": ("gradient", 2e-3, 0.794, (8,)),
    "LoRA-GA, gamma 4096": ("lora_ga", 1e-3, 0.784, (8, 32)),
}
SEEDS, STEPS, ROWS = (0, 1, 2), 60, 120
FACTORS = (0.25, 0.5, 1, 2, 4)


def synthetic_results(rows=ROWS, steps=STEPS, seeds=SEEDS, variants=VARIANTS):
    """Twelve variants, five rates, three seeds; two ranks for three; auto runs; some diverged, failed and missing."""
    runs, best = [], []
    for number, (name, (method, at, loss, ranks)) in enumerate(variants.items()):
        for rank in ranks:
            for factor in FACTORS:
                for seed in seeds:
                    run = _run(name, method, rank, at * factor, loss, factor, seed, rows, steps)
                    runs.append(_broken(run, number, factor))
            if name in ("LoRA", "full fine-tuning", "LoRA-GA, gamma 4096"):
                for seed in seeds:
                    factor = 1.7 + 0.3 * seed
                    run = _run(name, method, rank, at * factor, loss, factor, seed, rows, steps)
                    runs.append(replace(run, is_auto=True))
            if name == "AdaLoRA":  # its best rate is the highest that was tried
                runs = [run for run in runs if run.variant != name or run.learning_rate <= at]
            best.append(Best(name, rank, at, is_inside=name != "AdaLoRA"))
    return Results(
        title="Twelve ways to fine-tune a small model on sums",
        model="smollm2-135m-instruct",
        task="sums of three numbers (reasoning-gym)",
        metric="exact_match",
        score="accuracy",
        is_share=True,
        chosen_by="loss",
        reference="LoRA",
        command="loraga compare recipes/offline/sums.yaml",
        comparison={"model": "smollm2-135m-instruct", "rows": 960, "seeds": list(seeds), "max_steps": steps},
        versions={
            "loraga": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
            "datasets": "5.2.0",
        },
        machine={"system": "Linux", "processor": "x86_64", "cores": 2, "accelerator": None},
        runs=tuple(runs),
        best=tuple(best),
    )


def _broken(run, number, factor):
    """The run, or what became of it instead."""
    if factor == 4 and number in (1, 8) and run.seed != 1:
        shorter = Curve(run.curve.steps[:20], (*run.curve.losses[:19], math.nan))
        return replace(
            run, status="diverged", problem="the loss at step 20 is nan", curve=shorter, train_loss=None, steps=20,
            test=None, validation=None,
        )  # fmt: skip
    gone = {"curve": None, "test": None, "validation": None, "train_loss": None, "steps": None, "peak_memory": None}
    if (number, factor, run.seed) == (5, 1, 2):
        return replace(run, status="failed", problem="no space left on device", seconds={}, **gone)
    if (number, factor, run.seed) == (7, 0.25, 1):
        return replace(run, status="missing", learning_rate=run.learning_rate, seconds={}, **gone)
    return run


def _run(name, method, rank, rate, best_loss, factor, seed, rows, steps):
    generator = np.random.default_rng([seed, rank or 0, *name.encode(), round(1000 * factor)])
    batches = np.random.default_rng(seed)  # the noise of the batches is the same in all runs of a seed
    end = best_loss * (1 + 0.02 * math.log2(factor) ** 2) * (1 - 0.004 * ((rank or 32) > 8))
    end += 0.003 * generator.standard_normal()
    at = np.arange(1, steps + 1)
    losses = end + 0.9 * np.exp(-at / (steps / 6)) + 0.06 * batches.standard_normal(steps)
    losses += 0.01 * generator.standard_normal(steps)
    parameters = 134_515_008 if rank is None else 610_560 * rank
    return Run(
        variant=name,
        method=method,
        rank=rank,
        learning_rate=rate,
        is_auto=False,
        seed=seed,
        status="done",
        trainable_parameters=parameters,
        steps=steps,
        tokens=480 * steps,
        train_loss=float(losses[-10:].mean()),
        curve=Curve(tuple(at.tolist()), tuple(losses.tolist())),
        validation=_measured(end, rows // 2, generator, 1),
        test=_measured(end, rows, generator, 2),
        settings={
            "alpha": 16,
            "offset": "adapter",
            "target_modules": "all-linear",
            "dropout": 0.0,
            "per_device_train_batch_size": 8,
        },
        seconds={"start": 1.5, "training": 2.1 * steps, "evaluation": 20.0, "a step": 2.1 if rank else 3.4},
        peak_memory=(2 if rank else 4) * 2**30 + 1000 * seed,
    )


def _measured(loss, rows, generator, which):
    hardness = np.random.default_rng(which)  # the rows are the same in all runs
    terms = hardness.integers(4, 12, rows)
    hard = hardness.standard_normal(rows)
    losses = np.maximum(0.01, loss + 0.25 * hard + 0.05 * generator.standard_normal(rows))
    items = (0.9 * hard + 0.4 * generator.standard_normal(rows) < 12 * (0.85 - loss)).astype(float)
    return Measured(
        rows,
        float((losses * terms).sum() / terms.sum()),
        float(items.mean()),
        {},
        tuple(items.tolist()),
        tuple(losses.tolist()),
        tuple(terms.tolist()),
    )
