"""From images on disk to predictions, by the fastest engine at hand."""

from openfastervit.inference.checkpoint import Classifier, load_classifier
from openfastervit.inference.engines import Engine, EngineError, Settings, auto_engine, create_engine
from openfastervit.inference.fold import fold
from openfastervit.inference.listing import ImageList
from openfastervit.inference.output import FORMATS, Format, csv_header, csv_row, jsonl_row
from openfastervit.inference.predictor import Failure, Prediction, Predictor
from openfastervit.inference.preparation import Preparation
from openfastervit.inference.resume import Job, JobError

__all__ = [
    "FORMATS",
    "Classifier",
    "Engine",
    "EngineError",
    "Failure",
    "Format",
    "ImageList",
    "Job",
    "JobError",
    "Prediction",
    "Predictor",
    "Preparation",
    "Settings",
    "auto_engine",
    "create_engine",
    "csv_header",
    "csv_row",
    "fold",
    "jsonl_row",
    "load_classifier",
]
