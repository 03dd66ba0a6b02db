"""What the site's privacy officer may write into the ledger, FORGIVE and higher budgets, and how a yes to a plan is taken back."""

from dataclasses import replace
from pathlib import Path

from sgps.errors import ConfigError, RefusedError
from sgps_client import approval
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


def revoke(config: Path, prefix: str, officer: str) -> approval.Asked:
    """Takes the yes to a plan back, whatever a round is doing: its records may be read, but it is not charged.

    Raises ConfigError where no yes is needed, InputError as `approval.approve` does, RefusedError when there is no yes or the ledger has
    charged the plan.
    """
    site = Site.load(config)
    if site.config.approve == "automatic":
        what = "approve: automatic, so plans are carried out without a person's yes"
        raise ConfigError(what, where=site.file, do="write approve: manual")
    with approval.changing(site, prefix, officer) as (found, put):
        yes = [entry for entry in found if entry.approved]
        if not yes:
            raise RefusedError("is not approved", where=found[0].plan[:12], do="nothing to do, it is not carried out")
        if cohort := _charged(site, yes[-1]):
            what = f"is charged to cohort {cohort} already, and its noised sum may have left"
            do = "sgps-client ledger show; a yes is taken back before that"
            raise RefusedError(what, where=yes[-1].plan[:12], do=do)
        return put(yes[-1], replace(yes[-1], revoked=officer.strip()))


def _charged(site: Site, plan: approval.Asked) -> str:
    """The cohort that paid for the plan, or nothing. A round notes its charge before it makes it, so that the ledger, which it holds all
    the while, is asked only where there may be one."""
    if str(plan.round) not in Seen.read(site).charged:
        return ""
    with open_ledger(site, WAIT) as ledger:
        entries = ledger.history()
    forgiven = {e["charge"] for e in entries if e["kind"] == "FORGIVE"}
    charges = [e for e in entries if e["kind"] == "CHARGE" and e["hash"] not in forgiven]
    return next((str(e["cohort"]) for e in charges if e["plan_hash"] == plan.plan), "")
