"""What a release says of itself, checked: signature and hashes, statements, provenance, and epsilon and mu from the facts again."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sgps.errors import ConfigError
from sgps.files import read_limited
from sgps.release import MANIFEST, MANIFEST_LIMIT, Manifest, Release
from sgps.signing import load_public
from sgps_client.config import Site
from sgps_privacy import accountant, statement
from sgps_privacy.errors import PrivacyError

_PROOF = {"text", "signature", "key", "receipt", "round"}
AGREE = 1e-3  # relative difference up to which a stated figure is the recomputed one


@dataclass(frozen=True)
class Price:
    """One cohort of one site after one of its rounds: what the statement says, and what its events give."""

    site: str
    stated: Mapping[str, Any]
    epsilon: float
    rdp: float
    mu: float


@dataclass(frozen=True)
class Inspection:
    folder: Path
    sha256: str
    pinned: str
    manifest: Manifest
    prices: tuple[Price, ...]
    problems: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        m = self.manifest
        return {
            "name": m.name,
            "federation": m.federation,
            "fingerprint": m.fingerprint,
            "sha256": self.sha256,
            "verified_with": self.pinned,
            "licence": m.licence,
            "classes": len(m.classes),
            "encoder_sha256": m.encoder_sha256,
            "provenance": [p.model_dump(mode="json") for p in m.provenance],
            "carried": [c.model_dump(mode="json") for c in m.carried or ()],
            "rounds": [r.model_dump(mode="json") for r in m.rounds],
            "contributors": contributors(m),
            "privacy": [
                {
                    "site": p.site, "epsilon": p.epsilon, "epsilon_rdp": p.rdp, "mu": p.mu, "delta": p.stated["delta"],
                    "stated_epsilon": p.stated["epsilon"], "stated_mu": p.stated["mu"], "plan": p.stated["plan_hash"],
                }
                for p in self.prices
            ],
            "figures": m.figures,
            "problems": [*self.problems],
        }  # fmt: skip

    def text(self) -> str:
        m = self.manifest
        learned = ", ".join(m.architecture.learned) or "none"
        whose = "no federation" if m.federation == "none" else m.federation
        lines = [
            f"release      {m.name} of {whose}; verified with {self.pinned}",
            f"sha256       {self.sha256}",
            f"network      {m.architecture.base} at {m.architecture.size} px; learned parts switched on: {learned}",
            f"classes      {len(m.classes)}",
            f"licence      {m.licence}",
            f"intended use {m.intended_use}",
            "made from",
        ]
        for p in m.provenance:
            left = f"; left out: {', '.join(p.left_out)}" if p.left_out else ""
            lines.append(f"  {p.name}: {p.images} images, {p.licence}, {p.source}; for {p.used_for}{left}")
        lines.append("contributed" if m.rounds else "contributed  nobody yet: no round has been run")
        for site, rounds in contributors(m).items():
            lines.append(f"  {site}: round{'s' if len(rounds) > 1 else ''} {', '.join(map(str, rounds))}")
        for r in m.rounds:
            centred = ", each site centred by its own noised mean" if r.centred else ""
            lines.append(f"  round {r.round}: {r.kind}{centred}; {', '.join(r.sites)}")
        for c in m.carried or ():
            mean = c.figures.get("cosine", {}).get("mean", "unknown")
            lines.append(
                f"  rows up to round {c.last}: carried from base network {c.before[:16]} by map {c.map_sha256[:16]}; cosine on classes left out {mean}"
                + (
                    f"; {len(c.left)} classes of kinds of pictures that the map has not seen stayed behind"
                    if c.left
                    else ""
                )
            )
        for one in self.prices:
            lines.append(f"privacy statement of {one.site}")
            lines += [f"  {line}" for line in statement.text(one.stated).splitlines()]
            again = f"epsilon {statement.up(one.epsilon)}, mu {one.mu:.4f}; Renyi accounting: epsilon {statement.up(one.rdp)}"
            lines.append(f"  recomputed from its facts: {again}")
        lines += [f"PROBLEM      {problem}" for problem in self.problems]
        return "\n".join(lines)


def contributors(manifest: Manifest) -> dict[str, list[int]]:
    """Site -> its rounds, both sorted."""
    sites = sorted({site for r in manifest.rounds for site in r.sites})
    return {site: sorted(r.round for r in manifest.rounds if site in r.sites) for site in sites}


def look(folder: Path, config: Path, key: Path | None) -> Inspection:
    """Verifies a release and recomputes its privacy figures.

    key: the pinned one; else that of the site of `config`; else the release must be the one that ships with the package.
    Raises SignatureError when the release does not verify, ConfigError when there is nothing to verify it with.
    """
    release, pinned = _verified(folder, config, key)
    prices, problems = [], []
    for site, entries in release.manifest.statements.items():
        for entry in entries:
            try:
                price, wrong = _price(site, _signed(entry), release.manifest)
            except (PrivacyError, ValueError, TypeError, KeyError, InvalidSignature) as error:
                problems.append(f"a statement of {site} cannot be checked: {str(error) or type(error).__name__}")
                continue
            prices.append(price)
            problems += wrong
    for name, rounds in contributors(release.manifest).items():
        if len(release.manifest.statements.get(name, ())) < len(rounds):
            problems.append(f"{name} took part in {len(rounds)} rounds and left fewer statements")
    return Inspection(folder, release.sha256, pinned, release.manifest, tuple(prices), tuple(problems))


def _verified(folder: Path, config: Path, key: Path | None) -> tuple[Release, str]:
    if key is None and config.exists():
        key = Site.load(config).plan_key
    if key is not None:
        return Release.open(folder, key=load_public(key)), f"the pinned key {key}"
    from sgps.shipped import shipped_release

    found = hashlib.sha256(read_limited(folder / MANIFEST, MANIFEST_LIMIT)).hexdigest()
    if found == (shipped := shipped_release().sha256):
        return Release.open(folder, sha256=shipped), "the hash that ships with the package"
    raise ConfigError("nothing to verify it with", where=folder, do="give --key plan.pub, or --config site.yaml")


def _signed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The statement in an entry of a release: the text that the site signed, signature, key, round, receipt. Releases of version 0.2 have
    its fields beside it once more.

    Raises InvalidSignature, ValueError, KeyError when they do not fit together. Whose key it is, the coordinator vouches for.
    """
    key = load_pem_public_key(str(entry["key"]).encode())
    if not isinstance(key, EllipticCurvePublicKey):
        raise PrivacyError("the key is not an elliptic-curve key")
    key.verify(bytes.fromhex(str(entry["signature"])), str(entry["text"]).encode(), ECDSA(SHA256()))
    signed = json.loads(entry["text"])
    fields = {k: v for k, v in entry.items() if k not in _PROOF}
    if not isinstance(signed, dict) or (fields and not _same(fields, signed)):
        raise PrivacyError("the fields are not those that were signed")
    return signed


def _same(text: Any, value: Any) -> bool:
    """Whether settings, in which every scalar is text, say the same as a value from JSON."""
    if isinstance(value, dict):
        return isinstance(text, dict) and set(text) == set(value) and all(_same(text[k], v) for k, v in value.items())
    if isinstance(value, list):
        return isinstance(text, list) and len(text) == len(value) and all(map(_same, text, value))
    if isinstance(value, bool):
        return str(text).lower() == str(value).lower()
    return float(text) == value if isinstance(value, int | float) else bool(text == value)


def _price(site: str, stated: Mapping[str, Any], manifest: Manifest) -> tuple[Price, list[str]]:
    statement.check(stated)
    events, delta = statement.read_events(stated), float(stated["delta"])
    epsilon, mu = accountant.epsilon(events, delta), accountant.equivalent_mu(events, delta)
    price = Price(site, stated, epsilon, statement.rdp_epsilon(events, delta), mu)
    wrong = [
        f"{site} states {name} {stated[name]:.4f}; its facts give {value:.4f}"
        for name, value in (("epsilon", epsilon), ("mu", mu))
        if not math.isclose(stated[name], value, rel_tol=AGREE)
    ]
    if not any(_same(r.terms.get("sigma", "nan"), stated["sigma"]) for r in manifest.rounds if site in r.sites):
        wrong.append(f"{site} states noise {stated['sigma']:g}, which is not that of a round it took part in")
    return price, wrong
