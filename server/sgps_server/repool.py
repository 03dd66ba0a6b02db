"""The next release at once, without the sites that withdrew: no round, nobody pays.

It counts as a round of its own, in which nobody takes part: it has the next number. Releases that exist stay as they are.
"""

from dataclasses import dataclass

from sgps.errors import InputError, StateError
from sgps.release import Release
from sgps.signing import load_private
from sgps_server import releases
from sgps_server.audit import Audit
from sgps_server.checkpoint import Checkpoint
from sgps_server.config import Folder, locked
from sgps_server.kinds import CONDUCT, separable
from sgps_server.registry import Registry


@dataclass(frozen=True)
class Repooled:
    """release: the new one. without: sites of which the release before it held a part that is out now."""

    release: Release
    without: tuple[str, ...]


def repool(folder: Folder) -> Repooled:
    """Pool what remains of the class memory, and sign it as the next release.

    Raises StateError while the coordinator runs, a round is open or a site's mean waits for its round; InputError when the newest
    release holds no part of a site that withdrew. Nothing is written then. After a crash the same command finishes what it had begun,
    whoever withdrew since; their turn is the next call.
    """
    with locked(folder.state / "lock"):
        key, checkpoint = load_private(folder.keys / "plan.key"), Checkpoint(folder.state)
        state, number = checkpoint.state, checkpoint.state.done + 1
        if state.open is not None:
            raise StateError(
                f"round {state.open.round} is open",
                where=folder.root,
                do="let `sgps-server` finish it: its release leaves out who withdrew before it began to close",
            )
        if state.terms.get(state.done, {}).get("kind") == "site_mean":
            raise StateError(
                f"round {state.done} took the means of the sites for the round after it",
                where=folder.root,
                do="let that round run: its release leaves out who withdrew",
            )
        before = Release.open(folder.releases / releases.name_of(state.done), key=key.public_key())
        target, audit = folder.releases / releases.name_of(number), Audit(folder.audit)
        if target.exists():  # no round is open, so an earlier call wrote it and died
            release = Release.open(target, key=key.public_key())
            if release.manifest.carried != before.manifest.carried:
                raise StateError(
                    "is of a `releases carry` that was interrupted", where=target, do="give that command again"
                )
            if not _parts(release) <= {(r.round, r.site) for r in state.accepted}:
                raise StateError(
                    "holds contributions that the checkpoint does not have: it is gone, or an older copy",
                    where=target,
                    do="restore state/ from the newest backup",
                )
        else:
            gone = Registry(folder.registry).entries().withdrawn
            counted = [r for r in state.accepted if r.site not in gone or not separable(state.terms[r.round])]
            if not _parts(before) - {(r.round, r.site) for r in counted}:
                raise InputError(
                    f"release {before.folder.name} holds nothing that can be taken out of a site that withdrew",
                    where=folder.root,
                    do="see `sgps-server sites list`",
                )
            kept = {(r.round, r.site): checkpoint.contributions[r.round, r.site] for r in counted}
            rows = {place: kept[place] for place in sorted(kept) if kept[place].terms.kind == "rows"}
            result = CONDUCT["rows"].result(before, rows, ())
            anchor = audit.add("repooled", round=number, sites=sorted({r.site for r in counted}))
            release = releases.following(folder.releases, number, result, counted, state.terms, anchor, key)
        checkpoint.save(done=number)
        audit.add("release", release=release.folder.name, sha256=release.sha256)
    return Repooled(release, tuple(sorted({site for _, site in _parts(before) - _parts(release)})))


def _parts(release: Release) -> set[tuple[int, str]]:
    return {(r.round, site) for r in release.manifest.rounds for site in r.sites}
