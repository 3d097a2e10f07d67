"""From images on disk to predictions."""

from openfastervit.inference.checkpoint import Classifier, load_classifier
from openfastervit.inference.output import csv_header, csv_row, growing_file, jsonl_row
from openfastervit.inference.predictor import Failure, Prediction, Predictor

__all__ = [
    "Classifier",
    "Failure",
    "Prediction",
    "Predictor",
    "csv_header",
    "csv_row",
    "growing_file",
    "jsonl_row",
    "load_classifier",
]
