"""`loraga judge FOLDER --judge-url URL --judge-model MODEL [--references FILE]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, FAILED, add_json, console, no_more, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def configure(parser: argparse.ArgumentParser, *, listed: bool) -> None:
    """Declares the arguments."""
    del listed
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a run with metric: mt_bench, or of its answers")
    parser.add_argument(
        "--judge-url", required=True, metavar="URL", help="OpenAI-compatible endpoint, such as "
        "https://api.openai.com/v1; its key comes from the environment variable OPENAI_API_KEY alone"
    )  # fmt: skip
    parser.add_argument("--judge-model", required=True, metavar="MODEL", help="the judge's name there, such as gpt-4")
    parser.add_argument(
        "--references", type=Path, metavar="FILE", help="reference answers as FastChat has them "
        "(reference_answer/gpt-4.jsonl); by default those of the questions"
    )  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Rates what is not rated yet; 1 if a question is left without a rating."""
    no_more(words)
    from loraga.lab.judging.chat_endpoint import Endpoint
    from loraga.lab.judging.judge_run import judge_folder
    from loraga.lab.progress import WorkProgress
    from loraga.lab.run_console import show_ratings

    shown_on = console(options)
    endpoint = Endpoint(options.judge_url, options.judge_model)
    with WorkProgress(shown_on) as progress:
        judged = judge_folder(options.folder, endpoint, options.references, progress)
    if options.json:
        print_json({"ratings": [each.to_dict() for each in judged]})
    else:
        show_ratings(judged, shown_on)
    return FAILED if any(each.unjudged for each in judged) else DONE
