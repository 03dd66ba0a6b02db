"""The commands synthesize, predict and evaluate: a classifier at a site, offline, without a network or a server."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sgps.errors import InputError

BAD_INPUT = 2  # exit code when some pictures could not be read
PATIENT_DATA = "is patient data: it is made from the exemplar. Keep it at the site, as you keep the picture"

Model = Annotated[Path, typer.Option("--model", help="Folder of a classifier.", metavar="MODEL", show_default=False)]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Where it is computed; auto takes CUDA where it is present.", metavar="auto|cpu|cuda"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
# What synthesize and serve share.
ReleaseFolder = Annotated[
    Path | None, typer.Option(help="Release; default: the site's newest, else the shipped one.", metavar="DIR")
]
Key = Annotated[Path | None, typer.Option(help="Pinned key of --release; default: the site's.", metavar="FILE")]
Sha256 = Annotated[str | None, typer.Option(help="Or the pinned SHA-256 of its release.yaml.", metavar="HEX")]
SiteSettings = Annotated[
    Path | None, typer.Option(help="The site's settings; default: site.yaml where there is one.", metavar="FILE")
]
FalseAlarms = Annotated[float, typer.Option(min=0.001, max=0.5, help="Level of false alarms to aim at.")]
EncodersFolder = Annotated[
    str | None,
    typer.Option(
        help="Folder of the release's text encoder, where it is not the installed one; default: the site's.",
        metavar="KIND:DIR",
        show_default=False,
    ),
]
SiteDevice = Annotated[
    str | None,
    typer.Option(
        help="Where it is computed; default: the site's, else auto: CUDA where it is present.",
        metavar="auto|cpu|cuda",
        show_default=False,
    ),
]


def synthesize(
    out: Annotated[
        Path, typer.Option(help="Folder for the classifier; must not exist.", metavar="MODEL", show_default=False)
    ],
    exemplar: Annotated[
        list[Path] | None,
        typer.Option(help="Picture of the disease; repeat for several.", metavar="IMG", show_default=False),
    ] = None,
    disease: Annotated[
        str | None, typer.Option(help="Name or catalogue id of the disease.", metavar="NAME", show_default=False)
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Clinical text; default: the catalogue's. With --class: NAME=TEXT, repeatable.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Several diseases: repeat NAME=IMG,IMG,...", metavar="NAME=IMG,...", show_default=False
        ),
    ] = None,
    release: ReleaseFolder = None,
    key: Key = None,
    sha256: Sha256 = None,
    config: SiteSettings = None,
    with_own_patients: Annotated[
        bool, typer.Option("--with-own-patients", help="Count the site's own patients exactly; needs site.yaml.")
    ] = False,
    false_alarms: FalseAlarms = 0.10,
    encoders: EncodersFolder = None,
    device: SiteDevice = None,
    as_json: AsJson = False,
) -> None:
    """Make a complete classifier from one exemplar and a clinical text, or from several diseases, without training."""
    start = time.monotonic()
    from sgps_client import offline

    offline.switch_off()
    from sgps_client import making

    asked = making.asked(exemplar or [], disease, text or [], class_ or [])
    making.check_target(out)
    site = making.site_of(config)
    where = making.device_of(device, site)
    source = making.release_of(release, key, sha256, site)
    spec = making.encoders_of(encoders, source, site)
    classifier, notes = making.make(
        asked, source, site if with_own_patients else None, with_own_patients, false_alarms, spec, where
    )
    classifier.save(out)
    seconds = round(time.monotonic() - start, 1)
    facts = making.facts(classifier, out, source, notes, seconds)
    _say(as_json, facts, "\n".join([*making.lines(classifier, out, source, notes, seconds), f"{out} {PATIENT_DATA}"]))


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="Pictures, DICOM files, folders or zips.", metavar="IMG|DIR|ZIP...", show_default=False),
    ],
    model: Model,
    out: Annotated[Path, typer.Option(help="CSV file; must not exist.", metavar="CSV", show_default=False)],
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first picture that cannot be read; write nothing.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a classifier about pictures. One that cannot be read has its line and fault in the CSV; the exit code is then 2."""
    if out.exists():
        raise InputError("exists already", where=out, do="choose another name or remove it")
    if not out.parent.is_dir():
        raise InputError("is no folder", where=out.parent, do="make it first")
    from sgps_client import offline

    offline.switch_off()
    from sgps.classifier import Classifier
    from sgps.device import choose
    from sgps.pretrain.progress import console
    from sgps_client import prediction
    from sgps_client.data.table import counted

    classifier = Classifier.load(model, choose(device))
    items = prediction.gather(images)
    with console() as report:
        answers = prediction.answer(
            classifier, items, strict=strict, progress=lambda done, total: report("predict", done, total, {})
        )
    prediction.write_csv(out, classifier, items, answers)
    found = list(answers.predictions.values())
    accepted = {n: sum(p.accepted and p.label == n for p in found) for n in classifier.named}
    none, other = sum(p.none_of_these for p in found), sum(p.other_kind for p in found)
    facts: dict[str, Any] = {
        "out": str(out),
        "pictures": len(found),
        "accepted": accepted,
        "none_of_these": none,
        "other_kind": other,
        "bad": list(answers.bad),
        "left_out": prediction.unread(images),
    }
    summary = ", ".join(f"{n} accepted as {name}" for name, n in accepted.items())
    refused = f"{none} none of these" + (f" ({other} of them of another kind of picture)" if other else "")
    lines = [
        f"{out}: {counted(len(found), 'picture')}, {summary}, {refused}",
        f"  probability: {prediction.of_what(classifier)}",
        *(f"  {line}" for line in facts["left_out"]),
    ]
    _say(as_json, facts, "\n".join(lines))
    _name_bad(as_json, answers.bad)


def evaluate(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder or zip of class folders, or of pictures with --table.", metavar="DIR|ZIP", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures and plots; must not exist.", metavar="DIR")] = Path(
        "evaluation"
    ),
    table: Annotated[
        str | None, typer.Option(help="CSV with one line for each picture, on disk or in the zip.", metavar="CSV")
    ] = None,
    unit_column: Annotated[
        str | None,
        typer.Option(help="Column that names the patient; default: patient_id, then lesion_id.", metavar="NAME"),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the picture.", metavar="NAME")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the diagnosis.", metavar="NAME")] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="A label of the data that means a class of the model; repeatable.", metavar="LABEL=NAME"
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """How good a classifier is on labelled patients: accuracy, AUROC and calibration with 95 % intervals over patients, and plots."""
    if out.exists():
        raise InputError("exists already", where=out, do="choose another name with --out, or remove it")
    from sgps_client import offline

    offline.switch_off()
    from sgps.classifier import Classifier
    from sgps.device import choose
    from sgps.pretrain.progress import console
    from sgps_client import evaluation_report, model_evaluation
    from sgps_client.data import open_source, read_labelled
    from sgps_client.data.table import counted
    from sgps_client.making import pairs

    given = pairs(class_ or [], "--class", "LABEL=NAME")
    source = open_source(data)
    labelled = read_labelled(
        source, table, unit_column=unit_column, image_column=image_column, label_column=label_column
    )
    classifier = Classifier.load(model, choose(device))
    with console() as report:
        found = model_evaluation.evaluate(
            classifier, model, source, labelled, given, lambda done, total: report("evaluate", done, total, {})
        )
    name = "probability of the chosen class" if len(classifier.named) > 1 else "score"
    evaluation_report.write(out, found.result, found.facts, found.scores, name)
    lines = [
        f"{out}: {counted(found.facts['pictures'], 'picture')} of {counted(found.facts['units'], 'patient')} ({found.facts['unit_column']})",
        *(f"  {evaluation_report.NAMES[n]}: {figure}" for n, figure in found.result.figures.items()),
        *(f"  {note}" for note in (*found.facts["notes"], *found.result.notes)),
    ]
    _say(as_json, {"out": str(out), **evaluation_report.body(found.result, found.facts)}, "\n".join(lines))
    _name_bad(as_json, found.bad)


def _say(as_json: bool, facts: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False, default=str) if as_json else text)


def _name_bad(as_json: bool, bad: Sequence[str]) -> None:
    if not bad:
        return
    if not as_json:
        for line in bad:
            typer.echo(f"skipped: {line}", err=True)
    raise typer.Exit(BAD_INPUT)
