"""Images on disk, and labelled images for training and evaluation."""

from openfastervit.data.images import MAX_PIXELS, ImageError, ImageMode, find_images, open_image
from openfastervit.data.labelled import Source, Subset
from openfastervit.data.sources import has_split, open_source, open_train_val
from openfastervit.data.splits import split_source

__all__ = [
    "MAX_PIXELS",
    "ImageError",
    "ImageMode",
    "Source",
    "Subset",
    "find_images",
    "has_split",
    "open_image",
    "open_source",
    "open_train_val",
    "split_source",
]
