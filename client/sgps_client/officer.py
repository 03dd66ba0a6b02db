"""What the site's privacy officer may write into the ledger: FORGIVE, and higher budgets."""

from pathlib import Path

from sgps.errors import RefusedError
from sgps_client.config import Site
from sgps_client.ledger_view import WAIT
from sgps_client.round import open_ledger
from sgps_client.seen import Seen


def forgive(config: Path, round: int, officer: str) -> None:
    """Writes FORGIVE. The coordinator's echo must be newer than the charge: a plan that came after it, signed, kept by the worker.

    Raises RefusedError when no such plan has come yet, PrivacyError when something of the round may have left.
    """
    site = Site.load(config)
    federation = site.config.federation.fingerprint
    with open_ledger(site, WAIT) as ledger:
        seen = Seen.read(site)
        if seen.last is None:
            raise RefusedError(
                "no plan has come since", where=f"round {round}", do="start the client and wait for the next plan"
            )
        last = seen.last.open(site.pinned_key())
        issued = seen.charged.get(str(round))
        if last.federation != federation or last.round < round or issued is None or last.issued <= issued:
            do = "start the client and wait for the coordinator's next attempt"
            raise RefusedError(
                "no plan has come since the charge, so the coordinator's echo says nothing",
                where=f"round {round}",
                do=do,
            )
        echo = last.echo.get(site.name)
        receipts = {
            e["hash"]: e["round"] for e in ledger.history() if e["kind"] == "COMMIT" and e["federation"] == federation
        }
        ledger.forgive(federation, round, echo is None or receipts.get(echo, round) != round, officer)


def raise_budget(config: Path, cohort: str, epsilon: float, officer: str) -> None:
    """Writes BUDGET. Raises PrivacyError when it is not higher than the present one."""
    with open_ledger(Site.load(config), WAIT) as ledger:
        ledger.raise_budget(cohort, epsilon, officer)
