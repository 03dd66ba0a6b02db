"""Public pictures dealt to virtual sites: real site folders with keys, ledgers and limits, but without certificates."""

import csv
import io
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgps.draw import PRESETS, write_folder
from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.settings import dump
from sgps.shipped import shipped_release
from sgps.signing import fingerprint, load_public
from sgps_client import enrolment as joining
from sgps_client.config import FILE_NAME
from sgps_client.data.labelled import Picture, read_labelled
from sgps_client.data.sources import open_source
from sgps_client.public import PUBLIC, virtual_name
from sgps_server import enrolment
from sgps_server.config import Federation, Folder
from sgps_server.pki import public_pem
from sgps_server.registry import Registry
from sgps_server.registry import Site as Enrolled

DRAWN = ("drawn-sable-radiatoma", "drawn-motley-polychroma", "drawn-coral-squamoma", "drawn-azure-lacunoma")
DRAWN_LICENCE = "Apache-2.0, drawn by this program"
COLUMNS = ("patient", "image_id", "dx")
WAIT = 6 * 3600.0  # seconds that a round may take; nobody waits for its end
PATIENCE = 600.0  # seconds that a patient's pictures may take: machines that simulate are busy
COHORT, TABLE = "first", "table.csv"


@dataclass(frozen=True)
class Data:
    """Public pictures: a folder or zip with a table. columns: of patient, picture and class in it. licence: as its person states it."""

    source: Path
    table: str
    columns: tuple[str, str, str]
    licence: str
    diseases: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """folder: of the federation. sites: folder of the virtual sites. dealt, tested: patients of each disease."""

    folder: Folder
    sites: Path
    held_out: Path
    diseases: tuple[str, ...]
    dealt: dict[str, int]
    tested: dict[str, int]


def stated(data: Path, licence: str) -> None:
    """Raises InputError where nothing says that pictures are public, or where they lie in a real site's folder."""
    if len(licence.strip()) < 3:
        raise InputError(
            "is taken only as public data, and nothing says that it is", where=data, do="give its licence with --public"
        )
    for place in (data, *data.resolve().parents):
        if (place / FILE_NAME).exists():
            raise InputError(
                "lies in the folder of a site: in a simulation neither its ledger nor its rules stand before its patients",
                where=data,
                do="simulate with data that are published, outside any site",
            )


def drawn(folder: Path, diseases: tuple[str, ...], patients: int, seed: int) -> Data:
    """So many drawn patients of each of these invented diseases. Raises InputError for one that is not among them."""
    if unknown := sorted({*diseases} - {*PRESETS}):
        raise InputError(f"{unknown[0]} is no drawn class", where="--diseases", do=f"choose from {', '.join(PRESETS)}")
    write_folder(folder, [PRESETS[d] for d in diseases], patients, seed)
    return Data(folder, TABLE, COLUMNS, DRAWN_LICENCE, diseases)


def published(_: Path, data: Data) -> Data:
    """Pictures that lie somewhere already."""
    return data


def build(out: Path, data: Data, sites: int, tested: int, epsilon: float, seed: int) -> World:
    """Deal patients, `tested` of each disease to nobody; make the federation and its sites. Raises InputError for too few patients."""
    source = open_source(data.source)
    unit, image, label = data.columns
    found = read_labelled(
        source, data.table, folder=data.source, unit_column=unit, image_column=image, label_column=label
    )
    owned: dict[str, list[Picture]] = {}
    for picture in found.pictures:
        if picture.label in data.diseases:
            owned.setdefault(picture.unit, []).append(picture)
    rng = np.random.default_rng(seed)
    patients, kept, away = {d: [p for p in sorted(owned) if owned[p][0].label == d] for d in data.diseases}, [], []
    for disease, names in patients.items():
        if len(names) <= tested:
            raise InputError(f"{len(names)} patients of {disease}, more than {tested} are needed", where=data.source)
        order = rng.permutation(names).tolist()
        away += order[:tested]
        kept += order[tested:]
    kept = rng.permutation(kept).tolist()
    if len(kept) < sites:
        raise InputError(f"{len(kept)} patients are too few for {sites} sites", where=data.source, do="use fewer sites")
    federation = Folder(out / "federation")
    enrolment.init(federation.root, "simulation", "https://localhost:8443", shipped_release())
    given = federation.settings().model_dump(mode="json", exclude_none=True, exclude={"releases", "wait_for"})
    wanted = {**given, "epsilon": epsilon, "quorum": sites, "answer_after": WAIT, "deadline_after": 2 * WAIT}
    write_atomic(
        federation.config, dump(Federation.model_validate(wanted).model_dump(mode="json", exclude_none=True)).encode()
    )
    shares = [[p for name in kept[s::sites] for p in owned[name]] for s in range(sites)]
    for place, pictures in enumerate(shares):
        _site(federation, out / "sites" / virtual_name(place), data, pictures)
        _enrol(federation, out / "sites" / virtual_name(place))
    _site(federation, out / "held-out", data, [p for name in away for p in owned[name]])
    return World(
        federation,
        out / "sites",
        out / "held-out" / FILE_NAME,
        data.diseases,
        {d: len(names) - tested for d, names in patients.items()},
        dict.fromkeys(data.diseases, tested),
    )


def _site(federation: Folder, folder: Path, data: Data, pictures: Sequence[Picture]) -> None:
    """site.yaml, public.yaml and the table of a site whose pictures lie where they are published."""
    folder.mkdir(parents=True)
    settings, out = federation.settings(), io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(COLUMNS)
    table.writerows((p.unit, p.name, p.label) for p in pictures)
    write_atomic(folder / TABLE, out.getvalue().encode())
    unit, image, label = COLUMNS
    cohort = {
        "name": COHORT, "images": str(data.source.resolve()), "table": TABLE, "unit_column": unit, "image_column": image,
        "label_column": label, "budget": {"epsilon": settings.epsilon, "delta": settings.delta},
    }  # fmt: skip
    content = {
        "site": folder.name, "role": "contribute", "releases": str(federation.releases.resolve()), "cohorts": [cohort],
        "federation": {"name": settings.name, "url": settings.url, "fingerprint": fingerprint(load_public(_plan_key(federation)))},
        "seconds_per_patient": PATIENCE, "slots": len({p.unit for p in pictures}),
    }  # fmt: skip
    write_atomic(folder / FILE_NAME, dump(content).encode())
    write_atomic(folder / PUBLIC, dump({"licence": data.licence, "source": data.source.name}).encode())


def _enrol(federation: Folder, folder: Path) -> None:
    """By its key alone: nobody calls a virtual site, so it has no certificate, and with one it would be refused as a real site."""
    request = enrolment.read_request(joining.request(folder, folder.name))
    now = time.time()
    site = Enrolled(key=public_pem(request.key), role="contribute", approved=now, expires=now + 2 * WAIT)
    Registry(federation.registry).add(request.site, site)
    shutil.copyfile(_plan_key(federation), folder / "keys" / "plan.pub")


def _plan_key(federation: Folder) -> Path:
    return federation.keys / "plan.pub"
