"""LoRA-GA (arXiv 2407.05000): LoRA adapters that start along the full fine-tuning gradient.

A public name is imported from its module when it is first asked for (PEP 562), so that `import loraga` and the command
line do not wait for torch. No module has the name of a public function: importing it would hide the function.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    AdapterError,
    BatchError,
    GradientError,
    GradientFileError,
    LoragaError,
    OffsetError,
    SaveError,
    ScalingError,
)

__all__ = [
    "AdapterError",
    "BatchError",
    "Exported",
    "GradientError",
    "GradientFileError",
    "LayerReport",
    "LoragaError",
    "LowRankGradient",
    "OffsetError",
    "Report",
    "SaveError",
    "ScalingError",
    "SuggestedRate",
    "__version__",
    "describe_gradients",
    "estimate_gradients",
    "export",
    "initialize",
    "initialize_trainer",
    "load",
    "load_gradients",
    "newest_complete_checkpoint",
    "save_gradients",
    "save_mirrored",
    "save_residual",
    "suggest_learning_rate",
]

_MODULES = {
    "Exported": "exporting",
    "LayerReport": "report",
    "LowRankGradient": "gradient",
    "Report": "report",
    "SuggestedRate": "learning_rate",
    "describe_gradients": "gradient_file",
    "estimate_gradients": "estimate",
    "export": "exporting",
    "initialize": "initialization",
    "initialize_trainer": "trainer",
    "load": "exporting",
    "load_gradients": "gradient_file",
    "newest_complete_checkpoint": "checkpoint",
    "save_gradients": "gradient_file",
    "save_mirrored": "handover",
    "save_residual": "handover",
    "suggest_learning_rate": "learning_rate",
}

if TYPE_CHECKING:  # type checkers read these lines instead of `_MODULES`, and report a name that does not exist
    from .checkpoint import newest_complete_checkpoint
    from .estimate import estimate_gradients
    from .exporting import Exported, export, load
    from .gradient import LowRankGradient
    from .gradient_file import describe_gradients, load_gradients, save_gradients
    from .handover import save_mirrored, save_residual
    from .initialization import initialize
    from .learning_rate import SuggestedRate, suggest_learning_rate
    from .report import LayerReport, Report
    from .trainer import initialize_trainer
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value  # the next access finds it there
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
