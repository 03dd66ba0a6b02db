"""The demo from beginning to end: `run` is `sgps demo`."""

import csv
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.numpy import load

from sgps.catalogue import Catalogue, Entry
from sgps.demo import report
from sgps.demo.federation import DELTA, Commands, enrol, run_rounds
from sgps.demo.measure import AFTER, BEFORE, EXACT, Measured, Tick, measure, story_picture
from sgps.demo.offline import refuse
from sgps.demo.world import HOLDERS, SITES, World, build
from sgps.errors import InputError
from sgps.files import new_folder
from sgps.memory import Memory
from sgps.release import CATALOGUE, Release
from sgps.signing import load_public

SLOTS = 100  # public number of record slots of a demo site
_LONG = 22  # letters that fit under a small picture
SHOWN = 3  # held-out patients of each disease in the report's pictures
MARK = ".sgps-demo"  # only a folder that a demo made is made anew


def run(
    out: Path, data: Path | None, diseases: str | None, epsilon: float, exemplars: int, seed: int, as_json: bool = False
) -> None:
    """Everything lies in `out` afterwards; the report is `out/report.html`. Raises InputError for data that cannot be used.

    as_json: one JSON object with the report's table on standard output, what is said on the way on standard error.
    """
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what we started ends with us
    screen = Console(highlight=False, stderr=as_json)

    def say(line: str) -> None:
        screen.print(f"[dim]{time.monotonic() - begun:5.0f} s[/]  {line}", soft_wrap=True)

    chosen = _three(diseases)
    _fresh(out)
    say(f"dealing the patients of {data.name if data else 'drawn lesions'} to three sites")
    world = build(out.resolve() / "data", data, chosen, seed)  # site.yaml is read in another folder
    commands = Commands(out.resolve())
    say("a coordinator and three sites: keys are born at each site, requests signed, kits installed")
    home = enrol(commands, world, epsilon, SLOTS)
    said = run_rounds(commands, home, say)
    sys.addaudithook(refuse)
    site = out.resolve() / SITES[2]
    key = load_public(site / "keys" / "plan.pub")
    releases = sorted((site / "releases").iterdir())
    before = Release.open(home / "releases" / "0000", key)
    after = Release.open(releases[-1], key)
    catalogue = Catalogue.load(after.folder / CATALOGUE)
    entries = [_entry(catalogue, d) for d in world.diseases]
    say(f"{site.name} synthesizes a classifier of {entries[0].name} from one exemplar, before and after")
    models = _one_classifier(commands, site, home, world, seed)
    say(f"measuring {exemplars} exemplars of each disease on patients that no site has")
    with _progress(screen) as tick:
        measured = measure(world, before, after, exemplars, seed, tick)
    table = report.rows(measured, world.diseases)
    spent = {
        name: json.loads(commands.run(out.resolve() / name, "sgps-client", "ledger", "show", "--json", offline=True))
        for name in SITES
    }
    context = _context(world, entries, measured, table, models, said, spent, after, commands, epsilon, out.resolve())
    context["closing"] = (
        f"Made in {time.monotonic() - begun:.0f} s. Intervals are over exemplars, on one split of the patients; another split gives other "
        "figures. Research software, not a medical device. " + after.manifest.licence
    )
    report.write(out / "report.html", context)
    if as_json:
        facts = {
            "diseases": world.diseases,
            "table": table,
            "spent": context["spent"],
            "report": str(out / "report.html"),
        }
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    screen.print()
    screen.print(report.text_table(table, tuple(_label(entries, e.id) for e in entries)), soft_wrap=True, markup=False)
    screen.print(
        f"\n{context['act_one']['sentence']}\n{context['act_two']['sentence']}\n", soft_wrap=True, markup=False
    )
    for row in context["spent"]:
        screen.print(
            f"{row['site']:6} cohort {row['cohort']:7} epsilon {row['epsilon']} of {row['cap']}, mu {row['mu']}",
            markup=False,
        )
    screen.print(f"\nreport: {out / 'report.html'}   ({time.monotonic() - begun:.0f} s)", markup=False)


def _three(diseases: str | None) -> tuple[str, str, str] | None:
    if diseases is None:
        return None
    names = tuple(d.strip() for d in diseases.split(","))
    if len(names) != 3 or len(set(names)) != 3:
        raise InputError(
            "needs three different ids",
            where=f"--diseases {diseases}",
            do="give two that sites hold and one that none holds",
        )
    return names


def _fresh(out: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    if out.exists():
        if not (out / MARK).is_file():
            raise InputError("exists and was not made by a demo", where=out, do="name another folder with --out")
        shutil.rmtree(out)
    with new_folder(out) as work:
        (work / MARK).touch()


def _entry(catalogue: Catalogue, disease: str) -> Entry:
    entry = catalogue.find(disease)
    if entry is None:
        near = ", ".join(e.id for e in catalogue.nearest(disease, 3))
        raise InputError(f"{disease!r} is not in the catalogue", where="--diseases", do=f"nearest ids: {near}")
    return entry


@contextmanager
def _progress(screen: Console) -> Iterator[Tick]:
    """A bar on a terminal, a line at each quarter elsewhere."""
    if not screen.is_terminal:
        told: set[tuple[str, int]] = set()

        def line(stage: str, done: int, total: int) -> None:
            quarter = 4 * done // total
            if (stage, quarter) not in told:
                told.add((stage, quarter))
                screen.print(f"         {stage}: {done} of {total}", markup=False)

        yield line
        return
    with Progress(TextColumn("         {task.description}"), BarColumn(), TimeElapsedColumn(), console=screen) as bars:
        tasks: dict[str, Any] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield bar


def _one_classifier(commands: Commands, site: Path, home: Path, world: World, seed: int) -> dict[str, Any]:
    """The clinician's path at one site, by its own commands, with sockets refused: synthesize, predict, evaluate."""
    disease = world.diseases[0]
    exemplar = story_picture(world, disease, seed)
    pictures = site / "exemplar"
    pictures.mkdir()
    (pictures / "exemplar.jpg").write_bytes(exemplar.read())
    held_out = site / "held-out"
    shown: list[Any] = []
    for d in world.diseases:
        patients = [p for p in world.held_out if p.disease == d and p.patient != exemplar.patient]
        first = [p for i, p in enumerate(patients) if p.patient not in {q.patient for q in patients[:i]}]
        shown += first[:SHOWN]
        for p in first:
            folder = held_out / d
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{p.name}.jpg").write_bytes(p.read())
    out: dict[str, Any] = {"exemplar": exemplar, "shown": shown, "printed": {}}
    for when, release in (("before", home / "releases" / "0000"), ("after", None)):
        chosen = ("--release", release) if release else ()
        out["printed"][when] = commands.run(
            site, "sgps-client", "synthesize", "--exemplar", "exemplar/exemplar.jpg", "--disease", disease, *chosen, "--out", f"model-{when}",
            offline=True,
        )  # fmt: skip
        commands.run(
            site, "sgps-client", "predict", "--model", f"model-{when}", "held-out", "--out", f"{when}.csv", offline=True
        )
        with (site / f"{when}.csv").open(newline="") as file:
            out[when] = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
        out[f"record-{when}"] = json.loads((site / f"model-{when}" / "calibration.json").read_text())
    out["evaluation"] = json.loads(
        commands.run(
            site,
            "sgps-client",
            "evaluate",
            "--model",
            "model-after",
            "--data",
            "held-out",
            "--out",
            "evaluation",
            "--json",
            offline=True,
        )
    )
    return out


def _context(
    world: World, entries: list[Entry], measured: Measured, table: list[dict[str, Any]], models: dict[str, Any],
    said: dict[str, list[dict[str, Any]]], spent: dict[str, Any], after: Release, commands: Commands, epsilon: float, root: Path,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the page shows."""
    memory, alone, private, exact = after.memory(), measured.arm(BEFORE), measured.arm(AFTER), measured.arm(EXACT)
    held = [d for d, holders in zip(world.diseases, HOLDERS, strict=True) if holders]
    nobody = world.diseases[-1]
    one, two = world.diseases[0], private.gain(nobody, alone)
    gain, full = private.gain(one, alone), exact.gain(one, alone)
    kept = 100 * gain.mean / full.mean if full.mean > 0 else float("nan")
    where = {d: _holders(world, i) for i, d in enumerate(world.diseases)}
    at_sites = {d: sum(cell[d] for cell in world.patients.values()) for d in world.diseases}
    sigma = float(after.manifest.rounds[-1].terms["sigma"])
    sentence = (
        f"{_sentence(entries[0].name)}: {at_sites[one]} patients lie in {where[one]}. One exemplar alone reaches {alone.mean(one).mean:.1f}; with the "
        f"class memory at epsilon {epsilon:g} it reaches {private.mean(one).mean:.1f} ({gain.mean:+.1f} ± {gain.half:.1f}), "
        f"without noise {exact.mean(one).mean:.1f}: {kept:.0f} % of the gain is kept."
    )
    worth = memory.worth(memory.ids.index(nobody))
    used = (
        "its row is noise and is not used"
        if worth == 0
        else f"its row passed the threshold by chance (worth {worth:.1f})"
    )
    second = (
        f"{_sentence(entries[-1].name)}: no site holds a patient, {used}. One exemplar alone reaches {alone.mean(nobody).mean:.1f}; the federation "
        f"changes it by {two.mean:+.1f} ± {two.half:.1f}. No gain was to be expected; nobody can teach what nobody has seen."
    )
    rows, counts = _sent(root / SITES[0])
    return {
        "world": world,
        "lead": (
            f"Three sites ran two rounds over mutual TLS on {world.title}, each patient under differential privacy at epsilon {epsilon:g}, "
            f"delta {DELTA:g}. Then, offline, one site made an EfficientNet-V2 classifier from one picture and a text."
        ),
        "cards": [
            {"value": f"{alone.mean(one).mean:.1f} → {private.mean(one).mean:.1f}", "text": f"AUROC of one exemplar of {entries[0].name}, before and after"},
            {"value": f"{kept:.0f} %", "text": "of the gain without noise is kept"},
            {"value": f"{two.mean:+.1f} ± {two.half:.1f}", "text": f"for {entries[-1].name}, which nobody holds"},
            {"value": f"{models['record-after']['origin']['seconds']['weights']:.2f} s", "text": "from exemplar and text to all weights"},
        ],
        "exemplar": report.picture(models["exemplar"].image()),
        "act_one": {"name": _sentence(entries[0].name), "id": one, "text": entries[0].text, "sentence": sentence},
        "act_two": {"sentence": second},
        "made": " ".join(f"{_sentence(n)}." for n in models["record-after"]["notes"]),
        "patients": [
            {
                "image": report.picture(p.image(), 200), "positive": p.disease == one, "label": _label(entries, p.disease),
                "before": float(models["before"][p.name]["probability"]), "after": float(models["after"][p.name]["probability"]),
            }
            for p in models["shown"]
        ],
        "plot": report.roc_plot(measured, {e.id: _label(entries, e.id) for e in entries}),
        "exemplars": " / ".join(str(measured.exemplars[d]) for d in world.diseases),
        "diseases": [{"name": e.name, "where": f"{at_sites[d]} patients in {where[d]}" if d in held else "in no site"} for e, d in zip(entries, world.diseases, strict=True)],
        "arms": table,
        "arms_note": f"Tested patients: {' / '.join(str(measured.queries[d]) for d in world.diseases)}, one picture each. Peers have the same views.",
        "rounds": [
            {
                "round": r.round, "sites": ", ".join(r.sites), "sigma": f"{float(r.terms['sigma']):.3f}", "epsilon": f"{epsilon:g}",
                "mu": f"{1 / float(r.terms['sigma']):.3f}", "release": f"{r.round:04d}",
            }
            for r in after.manifest.rounds
        ],
        "spent": [
            {
                "site": name, "cohort": a["cohort"], "patients": a["patients"], "epsilon": f"{math.ceil(1000 * a['epsilon']) / 1000:.3f}", "cap": f"{a['budget']:g}",
                "mu": f"{a['mu']:.3f}", "meaning": _meaning(a["mu"]),
            }
            for name, ledger in spent.items()
            for a in ledger["cohorts"]
        ],
        "left": {
            "sentence": (
                f"Of each site and round, two arrays of noised sums ({rows.nbytes + counts.nbytes:,} bytes), the weight 1, hashes of plan and code, "
                f"a constant status, the ledger's receipt and the signed privacy statement. No picture, no file name, no count, no loss. "
                f"The noise has standard deviation {sigma:.3f} in units of one patient's whole contribution."
            ),
            "arrays": [
                {"name": "memory.rows", "shape": " x ".join(map(str, rows.shape)), "bytes": f"{rows.nbytes:,}", "content": "noised sum of patients' features in public coordinates, a row a class"},
                {"name": "memory.counts", "shape": " x ".join(map(str, counts.shape)), "bytes": f"{counts.nbytes:,}", "content": "noised number of patients, a number a class"},
            ],
        },
        "classifier_sentence": _classifier_sentence(models, memory),
        "evaluation": _evaluation(models["evaluation"]),
        "commands": commands.ran,
    }  # fmt: skip


def _sent(site: Path) -> tuple[Any, Any]:
    """The arrays of one reply, as they lie in the site's outbox behind a SHA-256."""
    arrays = load(next((site / "state").rglob("*.out")).read_bytes()[32:])
    return arrays["memory.rows"], arrays["memory.counts"]


def _holders(world: World, place: int) -> str:
    return " and ".join(SITES[s] for s in HOLDERS[place]) or "no site"


def _label(entries: list[Entry], disease: str) -> str:
    """The name, or the id of a disease with a long name."""
    name = next(e.name for e in entries if e.id == disease)
    return name if len(name) <= _LONG else disease


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _meaning(mu: float) -> str:
    """Gaussian differential privacy in words: power of the best test at 5 % false alarms (Dong, Roth and Su 2022)."""
    from scipy.special import ndtr

    return f"who guesses that a patient took part, with 5 % false alarms, is right for at most {100 * ndtr(mu - 1.6449):.0f} % of those who did"


def _classifier_sentence(models: dict[str, Any], memory: Memory) -> str:
    record = models["record-after"]
    c = record["calibration"]
    measured = next(m for m in c["measured"] if m["name"] == "all")
    return (
        f"A stock {record['architecture']} with {len(record['labels'])} outputs: {', '.join(record['labels'])}. At the stated false-alarm level of "
        f"{100 * c['false_alarms']:.0f} % it raised a false alarm for {measured['hits']} of {measured['n']} public negatives that were kept apart "
        f"({100 * measured['rate']:.1f} %, interval {100 * measured['low']:.1f} to {100 * measured['high']:.1f}). That promises nothing for pictures "
        "unlike the bank's; its sensitivity for new patients is unknown. The model folder contains its exemplar: it is patient data and stays at the site."
    )


def _evaluation(found: dict[str, Any]) -> list[dict[str, str]]:
    """Whatever `evaluate` measured, a line a figure."""
    out = []
    for name, value in found["figures"].items():
        if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
            out.append(
                {
                    "name": name.replace("_", " "),
                    "value": f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})",
                }
            )
    return out
