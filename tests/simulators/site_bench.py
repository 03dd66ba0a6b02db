"""A site folder for tests of the client: real keys, a real small release, drawn-by-numbers pictures, plans signed here."""

import csv
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from safetensors.torch import save

from sgps.bank import Bank, BankClass, build
from sgps.code import contributor_code
from sgps.memory import COUNTS, ROWS, Coordinates, Memory
from sgps.plan import Plan, arrays_sha256
from sgps.release import (
    BANK,
    CATALOGUE,
    FILES,
    GENERATOR,
    MEMORY,
    Architecture,
    Manifest,
    Release,
    TextEncoder,
    encoder_sha256,
    memory_bytes,
    write,
)
from sgps.settings import dump
from sgps.signing import fingerprint, public_pem
from sgps.target import factors, layers_of, network
from sgps_client import enrolment
from sgps_client.config import Site
from sgps_privacy.terms import Terms

CLASSES, FEATURES, K = ("akiec", "df", "vasc"), 1280, 4
COMMON = CLASSES[:2]  # of the reference bank
PATIENTS = 5
Arrays = dict[str, np.ndarray[Any, Any]]


@cache
def generator() -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    """A network of random weights: the real encoder runs on it, at 32 pixels. Same bytes at every call."""
    net = network("tf_efficientnetv2_b0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in net.parameters():
            if p.dim() > 1:
                torch.nn.init.kaiming_normal_(p)
    means = {
        layer.conv: torch.full((net.get_parameter(layer.conv + ".weight").shape[1],), 0.1)
        for layer in layers_of(net)
        if not layer.depthwise
    }
    base = {f"base.{n}": t for n, t in net.state_dict().items()}
    fixed = {f"fixed.{n}": t.contiguous() for n, t in factors(net, means).items()}
    return save({**base, **fixed}), {n.removeprefix("base."): t.numpy() for n, t in base.items()}


def coordinates() -> Coordinates:
    rng = np.random.default_rng(7)
    directions = np.linalg.qr(rng.normal(size=(FEATURES, K)))[0].T.astype(np.float32)
    return Coordinates(np.zeros(FEATURES, np.float32), directions, radius=2.0, within=1.5)


def bank() -> Bank:
    """Two of the three classes are common: they have a public mean."""
    rng = np.random.default_rng(5)
    classes = [BankClass(c, c, "dermoscopy", f"a text of {c}") for c in COMMON]
    features = rng.normal(size=(6 * len(COMMON), FEATURES)).astype(np.float32)
    return build(classes, np.zeros((len(COMMON), 384), np.float32), features, np.repeat(np.arange(len(COMMON)), 6))


def sign(release: Release, target: Path, key: Ed25519PrivateKey) -> Path:
    """A release as the one of this federation."""
    mark = {"federation": "derm", "fingerprint": fingerprint(key.public_key())}
    manifest = release.manifest.model_copy(update={"name": target.name, **mark})
    write(target, {name: release.folder / name for name in FILES}, manifest, key)
    return target


def make_release(target: Path, key: Ed25519PrivateKey | None, **changes: Any) -> Path:
    tensors, base = generator()
    memory = Memory.empty(coordinates(), CLASSES)
    architecture = Architecture(
        base="tf_efficientnetv2_b0", size=32, mean=(0.5,) * 3, std=(0.5,) * 3, views=1, width=8, depth=1
    )
    fields: dict[str, Any] = {
        "name": target.name, "federation": "derm", "fingerprint": fingerprint(key.public_key()) if key else None,
        "architecture": architecture, "text_encoder": TextEncoder(name="none", sha256="0" * 64),
        "encoder_sha256": encoder_sha256(base, architecture, memory), "classes": CLASSES, "files": {}, "licence": "Apache-2.0",
        "intended_use": "tests", "provenance": (), "code_sha256": "0" * 64, **changes,
    }  # fmt: skip
    contents: dict[str, bytes | Path] = {
        GENERATOR: tensors,
        MEMORY: memory_bytes(memory),
        BANK: bank().to_bytes(),
        CATALOGUE: b"classes: []\n",
    }
    write(target, contents, Manifest(**fields), key)
    return target


class Authority:
    """A certificate authority of a federation."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.cert = self._build(name, name, self.key.public_key(), ca=True)
        self.pem = self.cert.public_bytes(Encoding.PEM).decode()

    def _build(
        self, subject: x509.Name, issuer: x509.Name, key: Any, *, ca: bool, days: float = 30
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=min(0, days) - 0.01)).not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, csr: Path, name: str | None = None, days: float = 30) -> str:
        request = x509.load_pem_x509_csr(csr.read_bytes())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if name else request.subject
        cert = self._build(subject, self.cert.subject, request.public_key(), ca=False, days=days)
        return cert.public_bytes(Encoding.PEM).decode()


def settings(mark: str, url: str = "https://localhost:9", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "site": "north",
        "role": "contribute",
        "federation": {"name": "derm", "url": url, "fingerprint": mark},
        "slots": 8,
        "images_per_patient": 2,
        "seconds_per_patient": 10,
        "cohorts": [
            {
                "name": "first", "images": "images", "table": "table.csv", "unit_column": "patient_id",
                "image_column": "image_id", "label_column": "dx", "budget": {"epsilon": 3.0, "delta": 1e-5},
            }
        ],
        **changes,
    }  # fmt: skip
    return {k: v for k, v in found.items() if v is not None}


def draw_patients(folder: Path, patients: int = PATIENTS, first: int = 0, name: str = "") -> None:
    """images<name>/ and table<name>.csv: two pictures for each patient, three classes in turn."""
    (folder / f"images{name}").mkdir(parents=True)
    rng = np.random.default_rng(first)
    with (folder / f"table{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "patient_id", "dx"])
        for p in range(first, first + patients):
            for i in range(2):
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(
                    folder / f"images{name}" / f"p{p}-{i}.png"
                )
                table.writerow([f"p{p}-{i}", f"patient {p}", CLASSES[p % 3]])


@dataclass
class Bench:
    """A complete site folder and the coordinator's signing key."""

    folder: Path
    key: Ed25519PrivateKey
    mark: str
    wait: float = 30.0  # seconds from now to answer_at

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def site(self) -> Site:
        return Site.load(self.file)

    @property
    def release(self) -> Release:
        return Release.open(self.folder / "releases" / "0000", key=self.key.public_key())

    def write(self, **changes: Any) -> None:
        self.file.write_text(dump(json.loads(json.dumps(settings(self.mark, **changes)))))

    def start(self) -> Arrays:
        return {ROWS: np.zeros((len(CLASSES), K), np.float32), COUNTS: np.zeros(len(CLASSES), np.float32)}

    def terms(self, **changes: Any) -> dict[str, Any]:
        terms = Terms("rows", 1.391, 1.0, 1, (1.0,), ((ROWS, COUNTS),), 1).to_mapping()
        return {**terms, **changes}

    def plan(self, **changes: Any) -> Plan:
        now = time.time()
        fields: dict[str, Any] = {
            "kind": "rows", "federation": self.mark, "round": 1, "attempt": 1, "release": self.release.sha256,
            "encoder": self.release.manifest.encoder_sha256,
            "classes": CLASSES, "start": arrays_sha256(self.start()), "terms": self.terms(), "code": (contributor_code(),),
            "sites": ("north", "south"), "echo": {}, "issued": now - 1, "answer_at": now + self.wait, "deadline": now + 60, **changes,
        }  # fmt: skip
        return Plan(**fields)


def make(folder: Path, **changes: Any) -> Bench:
    """An enrolled site with a release and five patients."""
    key, authority = Ed25519PrivateKey.generate(), Authority()
    bench = Bench(folder, key, fingerprint(key.public_key()))
    csr = enrolment.request(folder, "north")
    (folder / "keys" / "site.crt").write_text(authority.issue(csr))
    (folder / "keys" / "ca.crt").write_text(authority.pem)
    (folder / "keys" / "plan.pub").write_text(public_pem(key.public_key()))
    bench.write(**changes)
    draw_patients(folder)
    make_release(folder / "releases" / "0000", key)
    return bench
