"""What `learning_rate: auto` should make of its two measurements: three rules against the best rate of a grid.

Cases are those of benchmarks/learning_rate.py, and each method of comparisons that searched the rate and ran auto too
(validation loss of the first seed). Run from a checkout, after both comparisons:

    loraga compare recipes/offline/chain_sum.yaml
    loraga compare recipes/offline/sum_or_sign.yaml
    python benchmarks/rate_rules.py comparisons/chain_sum comparisons/sum_or_sign
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import learning_rate
from loraga.lab.comparison.cells import CELLS, name_part
from loraga.lab.comparison.results import RESULTS, read_results
from loraga.lab.rate import combined

OUTPUT = learning_rate.RESULTS.with_name("rate_rules.json")
RULES = {
    "the first": lambda first, again: first,
    "the lower one": min,
    "geometric mean": combined,
}


@dataclass(frozen=True)
class Case:
    """A method on a task: the best rate of its grid, and the rates measured before and after the warm-up."""

    task: str
    method: str
    best: float
    first: float
    again: float


def measured_cases(results: Path) -> Iterator[Case]:
    """The cases of benchmarks/learning_rate.py."""
    for task in learning_rate.TASKS:
        for method in learning_rate.METHODS:
            first, again = (
                learning_rate.find(results, task, method, "suggestion", after)["value"]
                for after in (0, learning_rate.WARM_UP)
            )
            centre = float(f"{first:.3g}")
            losses = learning_rate.losses_by_factor(results, task, method, centre)
            yield Case(task, method, centre * 2.0 ** min(losses, key=lambda factor: losses[factor]), first, again)


def compared_cases(folder: Path) -> Iterator[Case]:
    """The methods of a comparison that has ended, one rank each."""
    for best in read_results(folder / RESULTS).best:
        (file,) = folder.glob(f"{CELLS}/{name_part(best.variant)}_*lrauto_seed*/learning_rate.json")
        kept = json.loads(file.read_text())
        yield Case(folder.name, best.variant, best.learning_rate, kept["value"], kept["after_warm_up"]["value"])


def table(cases: Iterable[Case]) -> str:
    """Each case's rate by each rule over the best one, and how far that is off in the mean of the logarithms."""
    found = [[case, *(rule(case.first, case.again) / case.best for rule in RULES.values())] for case in cases]
    lines = [f"| {' | '.join(('task', 'method', 'best rate', *RULES))} |", "|" + "---|" * (3 + len(RULES))]
    for case, *factors in found:
        cells = [case.task, case.method, f"{case.best:.2g}", *(f"{each:.2f}x" for each in factors)]
        lines.append(f"| {' | '.join(cells)} |")
    off = [[abs(math.log2(each)) for each in column] for column in list(zip(*found, strict=True))[1:]]
    for name, middle in (("off by a factor of, mean", statistics.fmean), ("off by a factor of, most", max)):
        lines.append(f"| {name} | | | {' | '.join(f'{2 ** middle(each):.2f}' for each in off)} |")
    return "\n".join(lines)


def main() -> None:
    """Collects the cases, keeps them, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", type=Path, nargs="*", help="folders; without one, what was kept is printed")
    arguments = parser.parse_args()
    if arguments.comparisons:
        compared = [case for folder in arguments.comparisons for case in compared_cases(folder)]
        cases = [*measured_cases(learning_rate.RESULTS), *compared]
        OUTPUT.write_text(json.dumps([asdict(case) for case in cases], indent=2) + "\n")
    print(table(Case(**case) for case in json.loads(OUTPUT.read_text())))


if __name__ == "__main__":
    main()
