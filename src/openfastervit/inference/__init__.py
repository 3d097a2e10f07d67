"""From images on disk to predictions."""

from openfastervit.inference.checkpoint import Classifier, load_classifier
from openfastervit.inference.listing import ImageList
from openfastervit.inference.output import FORMATS, Format, csv_header, csv_row, jsonl_row
from openfastervit.inference.predictor import Failure, Prediction, Predictor
from openfastervit.inference.preparation import Preparation
from openfastervit.inference.resume import Job, JobError

__all__ = [
    "FORMATS",
    "Classifier",
    "Failure",
    "Format",
    "ImageList",
    "Job",
    "JobError",
    "Prediction",
    "Predictor",
    "Preparation",
    "csv_header",
    "csv_row",
    "jsonl_row",
    "load_classifier",
]
