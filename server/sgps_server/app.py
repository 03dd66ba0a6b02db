"""The coordinator as an ordinary Flower ServerApp, for Flower's simulation engine and for a stock Flower federation.

There sites run code that may come over the wire and nobody stands at the door, so design D6 and D7 do not hold: **public data
only**. The rounds, checks and pooling are those of `sgps-server`; resuming, releases and the registry's live changes are not here.

Run configuration: `federation`, the path of federation.yaml in a folder that `sgps-server init` made and where the sites are
enrolled; `public`, the licence under which their pictures are published. The pooled memory is written to state/memory.safetensors.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp

from sgps.errors import ConfigError
from sgps.files import write_atomic
from sgps.memory import Array
from sgps.plan import Plan, SignedPlan
from sgps.release import MEMORY, Release
from sgps.signing import load_private
from sgps_server import releases
from sgps_server.checkpoint import read_state
from sgps_server.config import Folder
from sgps_server.kinds import CONDUCT, terms_of
from sgps_server.plans import PlanOffice, accepted_code
from sgps_server.registry import Registry
from sgps_server.replies import MOST_TEXT, Accepted, Rejected, signed_by
from sgps_server.strategy import RoundStrategy

_log = logging.getLogger(__name__)
_REASON = "a stock Flower federation runs code that comes over the wire, so it is for public data only"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds of federation.yaml. Raises ConfigError when the run configuration names no federation or no licence of public data,
    or when hospitals have contributed to the federation."""
    path, licence = context.run_config.get("federation"), context.run_config.get("public")
    if not isinstance(path, str) or not path:
        raise ConfigError(
            "names no federation", where="run configuration", do="set federation to the path of federation.yaml"
        )
    if not isinstance(licence, str) or not licence:
        raise ConfigError(
            f"does not say that all pictures are public; {_REASON}",
            where="run configuration",
            do="set public to their licence, or use sgps-server",
        )
    folder = Folder.of(Path(path))
    if read_state(folder.state).accepted:
        raise ConfigError(
            f"has contributions of sites of its own; {_REASON}", where=folder.config, do="use sgps-server"
        )
    _log.info("public data only: %s", licence)
    strategy = open_strategy(folder)
    settings = folder.settings()
    strategy.start(grid, strategy.start_arrays, num_rounds=settings.rounds, timeout=settings.deadline_after)
    context.state["contributions"] = MetricRecord(
        {f"round {r}": n for r, n in Counter(r for r, _ in strategy.pooled).items()}
    )
    if strategy.outcome is not None:
        write_atomic(folder.state / MEMORY, strategy.outcome.files[MEMORY])


class SignedRounds(RoundStrategy):
    """Node ids of stock Flower carry no site names: every node gets the order, and a reply is its signer's."""

    keys: Mapping[str, str] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.issue(server_round, sorted(self.keys))
        return [self.order(node) for node in sorted(grid.get_node_ids())]

    def accept(self, reply: Message | None) -> Accepted:
        """As the strategy does, with the reason in the run's log where a reply is left out. Raises Rejected."""
        try:
            return super().accept(reply)
        except Rejected as error:
            reason = reply.error.reason if reply is not None and reply.has_error() else error.code
            _log.warning("a reply is left out: %s", reason)
            raise

    def sender(self, reply: Message, fields: Mapping[str, str | int]) -> tuple[str, str]:
        """Whose registered key signed the statement. Raises Rejected for nobody's; a refusal is unsigned."""
        text, signature = str(fields.get("statement", "")), str(fields.get("signature", ""))
        if not text:
            raise Rejected(str(fields.get("status", "")), refusal=True)
        for name, key in self.keys.items() if len(text) <= MOST_TEXT else ():
            if signed_by(key, text, signature):
                return name, key
        raise Rejected("statement_signature")


def open_strategy(folder: Folder) -> SignedRounds:
    """The strategy of a federation folder, from its newest release."""
    settings, key = folder.settings(), load_private(folder.keys / "plan.key")
    if settings.kind != "rows" or settings.centre_sites:
        raise ConfigError(
            "a stock Flower federation runs plain rows rounds only", where=folder.config, do="use sgps-server"
        )
    release = Release.open(folder.releases / releases.latest(folder.releases).name, key=key.public_key())
    terms, code = terms_of(settings, "rows", None, release), accepted_code(settings)
    office, start = PlanOffice(settings, key), CONDUCT["rows"].start(release, terms)

    def plan(round: int, sites: Sequence[str]) -> tuple[Plan, SignedPlan, Mapping[str, Array]]:
        quorum = settings.quorum
        made = office.plan(round, 1, terms, start, code, sites, {}, release=release, centres={}, quorum=quorum)
        return *made, start

    strategy = SignedRounds(plan, dict, release, settings.most_patients)
    strategy.keys = {n: s.key for n, s in Registry(folder.registry).sites().items() if s.role == "contribute"}
    return strategy
