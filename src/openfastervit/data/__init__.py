"""Images on disk."""

from openfastervit.data.images import ImageError, ImageMode, find_images, open_image

__all__ = ["ImageError", "ImageMode", "find_images", "open_image"]
