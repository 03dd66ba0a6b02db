"""A federation goes over to a new base network and takes its rows along, through a public linear map (`sgps.carry`).

The release that carries counts as a round of its own, in which nobody takes part: it has the next number. Every contribution is carried
from its own bytes, so that what holds of the class memory goes on to hold: a site takes its own part out, a withdrawn one is left out.
"""

from dataclasses import dataclass
from pathlib import Path

from sgps import carry
from sgps.catalogue import Catalogue
from sgps.errors import InputError, StateError
from sgps.memory import COUNTS, ROWS, Contribution, Memory, pool
from sgps.release import CATALOGUE, GENERATOR, Carry, Release, encoder_sha256, memory_bytes
from sgps.signing import load_private
from sgps_server import releases
from sgps_server.audit import Audit
from sgps_server.checkpoint import Checkpoint, Record
from sgps_server.config import Folder, locked
from sgps_server.kinds import separable
from sgps_server.registry import Registry


@dataclass(frozen=True)
class Carried:
    """release: the new one. rows: classes that have a row of some worth, before and after. left: classes whose row had some worth and stayed behind,
    because the map has not seen their kind of pictures. lost: rounds of episodes, whose change of the
    old generator is not in the new one. withdrawn: sites that withdrew after an interrupted call had made the release, which holds them."""

    release: Release
    rows: tuple[int, int]
    left: tuple[str, ...]
    lost: tuple[int, ...]
    withdrawn: tuple[str, ...]


def carry_over(folder: Folder, source: Release, file: Path) -> Carried:
    """source: a release of the new base with an empty memory. file: the map.

    Raises StateError while the coordinator runs, a round is open or a site's mean waits for its round; InputError when map, release and
    federation do not belong together. Nothing is written then. After a crash the same command finishes what it had
    begun, whoever withdrew since: their turn is the next `repool`.
    """
    with locked(folder.state / "lock"):
        key = load_private(folder.keys / "plan.key")
        checkpoint = Checkpoint(folder.state)
        state, number = checkpoint.state, checkpoint.state.done + 1
        if state.open is not None:
            raise StateError(
                f"round {state.open.round} is open", where=folder.root, do="let `sgps-server` finish it, then carry"
            )
        if state.terms.get(state.done, {}).get("kind") == "site_mean":
            raise StateError(
                f"round {state.done} took the means of the sites in the old space, for the round after it",
                where=folder.root,
                do="let that round run, then carry",
            )
        before = Release.open(folder.releases / releases.name_of(state.done), key=key.public_key())
        found, sha256 = carry.read_map(file)
        _fits(before, source, found, file)
        gone = Registry(folder.registry).entries().withdrawn
        counted = [r for r in state.accepted if r.site not in gone or not separable(state.terms[r.round])]
        about = found.about
        left = carry.unseen(Catalogue.load(source.folder / CATALOGUE), source.manifest.classes, about.domains)
        step = Carry(
            before=about.before,
            after=about.after,
            last=state.done,
            left=left,
            map_sha256=sha256,
            figures=about.figures,
        )
        known = (*carry.maps(before), found)
        steps = (*(before.manifest.carried or ()), step)
        memory = _pooled(source, steps, known, counted, checkpoint)
        audit = Audit(folder.audit)
        anchor = audit.add("carried", round=number, map=sha256, before=about.before, after=about.after, last=state.done)
        release = releases.carried(
            folder.releases, number, source, memory_bytes(memory, carry.arrays(known)), steps, counted, state.terms, anchor, key
        )  # fmt: skip
        checkpoint.save(done=number)
        audit.add("release", release=release.folder.name, sha256=release.sha256)
    lost = sorted({r.round for r in counted if not separable(state.terms[r.round])})
    had = _worth(before.memory())
    held = {site for r in release.manifest.rounds if separable(r.terms) for site in r.sites}
    return Carried(
        release,
        (len(had), len(_worth(release.memory()))),
        tuple(c for c in had if c in left),
        tuple(lost),
        tuple(sorted(held & gone.keys())),
    )


def _pooled(
    source: Release,
    steps: tuple[Carry, ...],
    known: tuple[carry.Map, ...],
    counted: list[Record],
    checkpoint: Checkpoint,
) -> Memory:
    sent = {(r.round, r.site): checkpoint.contributions[(r.round, r.site)] for r in counted}
    parts = [
        carry.brought(
            steps,
            known,
            place[0],
            Contribution(s.arrays[ROWS], s.arrays[COUNTS], s.terms.sigma),
            source.manifest.classes,
        )
        for place, s in sorted(sent.items())
        if s.terms.kind == "rows"
    ]
    return pool(source.memory().coordinates, source.manifest.classes, parts)


def _worth(memory: Memory) -> list[str]:
    return [one for c, one in enumerate(memory.ids) if memory.worth(c) > 0]


def _fits(before: Release, source: Release, found: carry.Map, file: Path) -> None:
    old, new, about = before.manifest, source.manifest, found.about
    if about.before != old.encoder_sha256:
        raise InputError(
            f"is from base network {about.before[:16]}, the federation's rows are of {old.encoder_sha256[:16]}: rows of another hash are not used",
            where=file,
            do=f"make a map --from {before.folder}",
        )
    memory = source.memory()
    made = encoder_sha256(source.tensors(GENERATOR, "base."), new.architecture, memory)
    if not about.after == new.encoder_sha256 == made:
        raise InputError(
            f"is to base network {about.after[:16]}, the new release has {made[:16]}: rows of another hash are not used",
            where=file,
            do=f"make a map --to {source.folder}",
        )
    if found.matrix.shape != (len(memory.coordinates.directions), len(before.memory().coordinates.directions)):
        raise InputError("does not have the shape of the two spaces", where=file, do="make it with `sgps memory map`")
    releases.check_untouched(source)
    if new.classes != old.classes:
        raise InputError(
            "has other classes than the federation, or another order of them",
            where=source.folder,
            do="make it with the federation's catalogue",
        )


def describe(made: Carried) -> str:
    """For people."""
    (step,) = (made.release.manifest.carried or ())[-1:]
    loss = step.figures.get("cosine", {})
    lines = [
        f"release {made.release.folder.name}: base network {step.after[:16]}, rows of rounds up to {step.last} carried from {step.before[:16]}",
        f"map {step.map_sha256[:16]}, cosine {loss.get('mean', '?')} on classes left out",
        f"{made.rows[1]} classes have a row that is used ({made.rows[0]} before); cohorts that have paid have paid",
        f"it counts as round {int(made.release.folder.name)}: where further rounds are to follow, raise `rounds` in federation.yaml by one",
    ]
    if made.left:
        lines.append(
            f"left behind: {', '.join(made.left)}; the map has not seen their kind of pictures, rows of another hash are not used"
        )
    if made.withdrawn:
        lines.append(
            f"it was begun before {', '.join(made.withdrawn)} withdrew: `sgps-server releases repool` takes that out"
        )
    if made.lost:
        rounds = ", ".join(map(str, made.lost))
        lines.append(f"what round {rounds} of episodes trained was part of the old generator and is not in the new one")
    return "\n".join(lines)
