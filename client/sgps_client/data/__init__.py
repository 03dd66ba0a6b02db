"""Readers of what a hospital has: folders and zips of pictures, DICOM, and tables with ISIC-archive columns."""

from sgps_client.data.cohort import Records, open_cohort
from sgps_client.data.labelled import Labelled, Picture, read_labelled
from sgps_client.data.pictures import decode_picture, open_picture, picture_names, read_picture
from sgps_client.data.sources import Source, open_source

__all__ = [
    "Labelled",
    "Picture",
    "Records",
    "Source",
    "decode_picture",
    "open_cohort",
    "open_picture",
    "open_source",
    "picture_names",
    "read_labelled",
    "read_picture",
]
