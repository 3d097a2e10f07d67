"""Prediction over a folder of real photographs, gray and colour, large enough to show what small ones hide."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import openfastervit
import openfastervit_cli
from tests.networks import HAT, TINY, tiny


def test_every_photograph_in_order(sample_data: Path, tmp_path: Path) -> None:
    folder = sample_data / "imagenette-val-224"
    photographs = sorted(path for path in folder.rglob("*.jpg"))[::5]
    assert len(photographs) == 200
    inputs = tmp_path / "photographs"
    for path in photographs:
        link = inputs / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    model = tiny(HAT).eval()
    cfg = {"size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "crop_pct": 1.0,
           "crop_mode": "squash"}  # fmt: skip
    overrides = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()}
    metadata = {"model": HAT, "overrides": overrides, "classes": [f"class {i}" for i in range(10)], "input": cfg}
    checkpoint = openfastervit.save_checkpoint(model, tmp_path / "model.safetensors", metadata=metadata)
    out = tmp_path / "rows.csv"
    assert openfastervit_cli.main(["predict", str(inputs), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert any(Image.open(path).mode == "L" for path in photographs)
    for row, path in list(zip(rows, photographs, strict=True))[::20]:
        assert Path(row["image"]).name == path.name
        pixels = Image.open(path).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
        x = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
        with torch.no_grad():
            scores = model(x[None]).softmax(-1)[0]
        assert int(row["index_1"]) == int(scores.argmax())
        assert abs(float(row["score_1"]) - float(scores.max())) < 2e-3
