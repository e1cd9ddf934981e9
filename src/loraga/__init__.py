"""LoRA-GA (arXiv 2407.05000): LoRA adapters that start along the full fine-tuning gradient."""

from ._version import __version__
from .checkpoint import newest_complete_checkpoint
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
from .estimate import estimate_gradients
from .export import Exported, export, load
from .gradient import LowRankGradient
from .gradient_file import describe_gradients, load_gradients, save_gradients
from .initialize import initialize
from .learning_rate import SuggestedRate, suggest_learning_rate
from .report import LayerReport, Report

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
    "load",
    "load_gradients",
    "newest_complete_checkpoint",
    "save_gradients",
    "suggest_learning_rate",
]
