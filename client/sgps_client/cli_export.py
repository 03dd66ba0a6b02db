"""The command export: a classifier for programs that know no torch."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sgps.errors import InputError
from sgps_client.cli_classifier import PATIENT_DATA, AsJson, Model


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="ONNX file; must not exist.", metavar="FILE", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a classifier as one ONNX file, compared with torch before it is there. Labels, input and thresholds lie in its metadata."""
    if onnx.exists():
        raise InputError("exists already", where=onnx, do="choose another name or remove it")
    from sgps_client import offline

    offline.switch_off()
    from sgps.classifier import Classifier
    from sgps.export import save_onnx

    classifier = Classifier.load(model)
    save_onnx(classifier, onnx)
    r = classifier.record
    facts = {"out": str(onnx), "labels": list(r.labels), "size": r.size, "views": r.views, "bytes": onnx.stat().st_size}
    lines = [
        f"{onnx}: {r.size} x {r.size} pixels to {len(r.labels)} logits, the same in onnxruntime as in torch",
        f"its metadata say how pictures go in, which {r.views} views to average, and when a claim is accepted",
        f"{onnx} {PATIENT_DATA}",
    ]
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(lines))
