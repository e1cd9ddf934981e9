"""Time of saving, loading and exporting an adapter, over PEFT's own saving and loading of a plain LoRA of rank 8.

SmolLM2-135M, all linear layers, r = 8; what is saved has rank 16. Run from a checkout:

    python benchmarks/files_time.py --data ../shared/data/gsm8k/train.jsonl
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from peft import PeftModel

import loraga
from pairs import Case, in_turn, ratio, report
from subjects import parser, start_with_loraga, subject


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--rounds", type=int, default=5)
    arguments = arguments_of.parse_args()
    given = subject(arguments, 1, 4, 128)
    plain, ours = given.adapted(8), given.adapted(8)
    start_with_loraga(ours, given.batches)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plain.save_pretrained(root / "plain")
        ours.save_pretrained(root / "ours")
        cases = {
            "PEFT's save": Case(lambda _: plain.save_pretrained(root / "plain")),
            "save": Case(lambda _: ours.save_pretrained(root / "ours")),
            "export": Case(lambda _: loraga.export(ours, root / "export")),
            "export, compressed to rank 8": Case(lambda _: loraga.export(ours, root / "compressed", rank=8)),
            "PEFT's load": Case(
                lambda base: PeftModel.from_pretrained(base, root / "plain", is_trainable=True), given.base
            ),
            "load": Case(lambda base: loraga.load(base, root / "ours", is_trainable=True), given.base),
            "PEFT's load of what was saved": Case(
                lambda base: PeftModel.from_pretrained(base, root / "ours"), given.base
            ),
        }
        seconds = in_turn(cases, arguments.rounds, warm_up=True)
    ratios = [
        ratio(seconds, "save", "PEFT's save"),
        ratio(seconds, "export", "PEFT's save"),
        ratio(seconds, "export, compressed to rank 8", "PEFT's save"),
        ratio(seconds, "load", "PEFT's load"),
        ratio(seconds, "PEFT's load of what was saved", "PEFT's load"),
    ]
    path = arguments.output / "files_time.json" if arguments.output else None
    report("Time of files", path, {"rank": 8, "rounds": arguments.rounds}, ratios, seconds=seconds)


if __name__ == "__main__":
    main()
