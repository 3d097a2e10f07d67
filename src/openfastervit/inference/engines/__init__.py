"""Engines: one network, many backends, the same logits.

``table.ENGINES`` names them all. To add one, write a file with a function ``(network, Settings) -> Engine`` and name it
there; tests, ``predict``, ``export`` and ``benchmark`` then find it.
"""

from openfastervit.inference.engines.auto import auto_engine
from openfastervit.inference.engines.engine import PRECISIONS, Engine, EngineError, Precision, Settings
from openfastervit.inference.engines.table import ENGINES, EngineKind, create_engine, installed_engines

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Engine",
    "EngineError",
    "EngineKind",
    "Precision",
    "Settings",
    "auto_engine",
    "create_engine",
    "installed_engines",
]
