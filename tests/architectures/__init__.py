"""The registry of architectures: an entry in one of these files is tested, and listed in docs/architectures.md."""

from . import decoders, encoders, experts, multimodal, sequence_to_sequence, speech, state_space, vision
from .kinds import Architecture

FAMILIES: dict[str, dict[str, Architecture]] = {
    "decoder": decoders.ARCHITECTURES,
    "encoder": encoders.ARCHITECTURES,
    "encoder-decoder": sequence_to_sequence.ARCHITECTURES,
    "vision": vision.ARCHITECTURES,
    "speech": speech.ARCHITECTURES,
    "image and text": multimodal.ARCHITECTURES,
    "state space": state_space.ARCHITECTURES,
    "mixture of experts": experts.ARCHITECTURES,
}
ARCHITECTURES = {name: architecture for family in FAMILIES.values() for name, architecture in family.items()}
