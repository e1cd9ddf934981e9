"""Peak memory of a start: each case in a process of its own, which resets the kernel's high-water mark before it.

Above the peak of the yardstick (forward and backward of LoRA on the same micro-batches) on SmolLM2-135M, against PEFT's
lora_ga; over numbers of micro-batches; and against one whole LoRA training step on shapes of T5-base and of a Llama.
Two processes of one thread run at a time: only their time would suffer. Linux only. Run from a checkout:

    python benchmarks/start_memory.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
from multiprocessing import connection
from pathlib import Path

import torch
import transformers
from peft import get_peft_model
from transformers.initialization import no_init_weights

from pairs import Ratio, report
from step_time import stepper
from subjects import forward_and_backward, lora, parser, start_with_loraga, start_with_peft, subject

MEBIBYTE = 2**20
ROUNDS = 5
ROWS, LENGTH = 1, 256
SHAPES = ("T5-base", "Llama")
TARGETS = {"T5-base": ["q", "k", "v", "o", "wi", "wo"], "Llama": lora(8).target_modules}


def shaped(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model with random weights in the published widths, and a batch for it."""
    generator = torch.Generator().manual_seed(0)
    with no_init_weights():  # uniform ones, below, are drawn sooner
        model, batch = t5_base(generator) if name == "T5-base" else llama(generator)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05, generator=generator)
    return model, batch


def t5_base(generator: torch.Generator) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0)
    ids = torch.randint(1, 32_000, (4, 64), generator=generator)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": ids, "labels": ids[:, :16].clone()}


def llama(generator: torch.Generator) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Llama 2 7B's layers at half of its width, four of them."""
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=4, num_attention_heads=16
    )
    ids = torch.randint(1, 32_000, (2, 128), generator=generator)
    return transformers.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids.clone()}


def peak_above_start(run) -> int:
    """Bytes that the process's resident memory rises to above where it is now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(arguments: argparse.Namespace, case: str) -> int:
    """One case, in this process."""
    kind, name, count = case.split(":")
    if name in SHAPES:
        base, batch = shaped(name)
        adapted, batches = get_peft_model(base, lora(8, target_modules=TARGETS[name])), [batch] * int(count)
        if kind == "step":
            step = stepper(adapted.train(), batch)
            return peak_above_start(lambda: [step(None) for _ in range(2)])
        return peak_above_start(lambda: start_with_loraga(adapted, batches))
    given = subject(arguments, int(count), ROWS, LENGTH)
    if kind == "yardstick":
        model = given.adapted(8)
        return peak_above_start(lambda: forward_and_backward(model, given.batches))
    if kind == "peft":
        base = given.base()
        return peak_above_start(lambda: start_with_peft(base, given.batches, 8))
    model = given.adapted(8)
    return peak_above_start(lambda: start_with_loraga(model, given.batches))


def in_own_processes(arguments: argparse.Namespace, cases: dict[str, str]) -> dict[str, int]:
    """Each case in a fork of this process, which has imported the libraries and used none of them; two at a time."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    waiting = [
        fork.Process(target=answer, args=(answers, arguments, name, case), name=name) for name, case in cases.items()
    ]
    running, peaks = [], {}
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(waiting.pop(0))
            running[-1].start()
        ended = connection.wait([process.sentinel for process in running])
        for process in [process for process in running if process.sentinel in ended]:
            running.remove(process)
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"{process.name}: the process ended with {process.exitcode}")
            name, peak = answers.get()
            peaks[name] = peak
            print(f"{name}: {peak / MEBIBYTE:.0f} MiB", flush=True)
    return peaks


def answer(answers, arguments: argparse.Namespace, name: str, case: str) -> None:
    answers.put((name, measure(arguments, case)))


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = arguments_of.parse_args()
    torch.set_num_threads(1)  # in each of two processes, which disturb only each other's time
    ours, peft, yardstick = "peak of initialize", "peak of PEFT's lora_ga", "peak of the yardstick"
    peaks: dict[str, list[int]] = {}
    cases = {
        yardstick: "yardstick:smollm2:2",
        f"{yardstick}, 8 micro-batches": "yardstick:smollm2:8",
        ours: "initialize:smollm2:2",
        f"{ours}, 8 micro-batches": "initialize:smollm2:8",
        peft: "peft:smollm2:2",
        **{f"{ours}, {name}": f"initialize:{name}:2" for name in SHAPES},
        **{f"peak of a LoRA step, {name}": f"step:{name}:1" for name in SHAPES},
    }
    for _ in range(arguments.rounds):
        for name, peak in in_own_processes(arguments, cases).items():
            peaks.setdefault(name, []).append(peak)

    def above(name: str) -> list[int]:
        return [max(0, peak - base) for peak, base in zip(peaks[name], peaks[yardstick], strict=True)]

    def over(what: str, of: str, top: list[int], bottom: list[int], bound: float | None = None) -> Ratio:
        return Ratio(what, of, [a / b for a, b in zip(top, bottom, strict=True)], bound)

    ratios = [
        over(f"{ours}, above the yardstick's", "PEFT's lora_ga, above the yardstick's", above(ours), above(peft), 0.1)
    ]
    # what the heap keeps of earlier micro-batches: plain training shows it too
    for name, bound in ((ours, 1.02), (yardstick, None)):
        many = f"{name}, 8 micro-batches"
        ratios.append(over(many, "that of 2", peaks[many], peaks[name], bound))
    for name in SHAPES:
        step = f"peak of a LoRA step, {name}"
        ratios.append(over(f"{ours}, {name}", step, peaks[f"{ours}, {name}"], peaks[step], 1.0))
    path = arguments.output / "start_memory.json" if arguments.output else None
    mebibytes = {name: [round(peak / MEBIBYTE) for peak in found] for name, found in peaks.items()}
    settings = {"rows": ROWS, "length": LENGTH, "rounds": arguments.rounds}
    report("Peak memory of a start", path, settings, ratios, mebibytes=mebibytes)


if __name__ == "__main__":
    main()
