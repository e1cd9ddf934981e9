"""Every error that loraga raises, under one base class."""

from __future__ import annotations


class LoragaError(Exception):
    """Base of all errors of this package; the message says what is wrong, where, and what to do."""


class BatchError(LoragaError):
    """The batches cannot be used: none, without labels, without a loss term, or with a non-finite loss."""


class GradientError(LoragaError):
    """A layer's gradient is missing, not finite, or has too few columns for what is asked of it."""


class GradientFileError(LoragaError):
    """A gradients file is damaged, or is none."""


class AdapterError(LoragaError):
    """The model's adapters cannot be initialised: none, already trained, merged, or of an unsupported kind."""


class ScalingError(AdapterError):
    """A layer's scaling is not the one that the scheme was derived for."""


class OffsetError(AdapterError):
    """The start cannot be subtracted in the way that was asked for, or is too large not to be."""


class SaveError(LoragaError):
    """A directory could not be written or read; what was there before is as it was."""
