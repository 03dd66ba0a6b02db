"""Drawn lesions: a deterministic renderer of dermatoscopic pictures and their clinical texts. Same seed, same bytes."""

from sgps.draw.camera import Camera, draw_camera
from sgps.draw.folder import write_folder
from sgps.draw.patient import Patient, draw_patient
from sgps.draw.presets import PRESETS
from sgps.draw.profile import Profile, attribute_vector, draw_profile, sampled_attributes
from sgps.draw.text import clinical_text
from sgps.vocabulary import ATTRIBUTE_NAMES, ATTRIBUTES, MULTIPLE

__all__ = [
    "ATTRIBUTES",
    "ATTRIBUTE_NAMES",
    "MULTIPLE",
    "PRESETS",
    "Camera",
    "Patient",
    "Profile",
    "attribute_vector",
    "clinical_text",
    "draw_camera",
    "draw_patient",
    "draw_profile",
    "sampled_attributes",
    "write_folder",
]
