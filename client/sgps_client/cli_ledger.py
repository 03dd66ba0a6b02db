"""What belongs to the site's privacy officer: `sgps-client ledger` and `sgps-client plans`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ledger = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The site's record of privacy spent.")
plans = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Plans that wait for a person (approve: manual).")
ConfigOption = Annotated[Path, typer.Option("--config", help="The site's settings.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
OfficerOption = Annotated[str, typer.Option(help="Name of the officer who answers for it.")]
SITE_YAML = Path("site.yaml")


@ledger.command()
def show(config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """What each cohort has spent and has left, by federation and round, and every entry."""
    from rich.console import Console

    from sgps_client.ledger_view import overview

    found = overview(config)
    if as_json:
        typer.echo(json.dumps(found.facts(), ensure_ascii=False))
    else:
        found.draw(Console(highlight=False, markup=False))


@ledger.command()
def verify(config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Check the hash chain, the order of its entries and the outbox; recompute epsilon and mu with two accountants."""
    from sgps_client.ledger_verify import verify as verified

    found = verified(config)
    _say(as_json, found.facts(), found.text())
    if found.problems:
        raise typer.Exit(found.exit_code)


@ledger.command()
def forgive(round: int, officer: OfficerOption, config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Take back the charge of a lost round, of which nothing ever left."""
    from sgps_client import officer as office

    office.forgive(config, round, officer)
    _say(
        as_json,
        {"forgiven": round, "officer": officer},
        f"round {round} is forgiven; it runs afresh when the coordinator repeats it",
    )


@ledger.command("raise")
def raise_(
    cohort: str,
    epsilon: Annotated[float, typer.Option(min=0.01, max=20, help="The new budget, over all federations.")],
    officer: OfficerOption,
    config: ConfigOption = SITE_YAML,
    as_json: JsonOption = False,
) -> None:
    """Write a higher budget for a cohort. site.yaml must allow as much."""
    from sgps_client import officer as office

    office.raise_budget(config, cohort, epsilon, officer)
    _say(
        as_json,
        {"cohort": cohort, "epsilon": epsilon, "officer": officer},
        f"cohort {cohort} may spend epsilon {epsilon:g} in all",
    )


@plans.command("list")
def list_(config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Plans that a person was asked about, and what each would cost."""
    from sgps_client import approval
    from sgps_client.config import Site

    site = Site.load(config)
    found = approval.asked(site.state)
    done = approval.over(site) if found else 0
    _say(
        as_json,
        {"plans": [{**vars(a), "over": a.round <= done} for a in found]},
        "\n".join(a.line(done) for a in found) or "no plan has been put to a person",
    )


@plans.command()
def approve(plan: str, officer: OfficerOption, config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Say yes to one plan, named by the first digits of its hash."""
    from sgps_client import approval
    from sgps_client.config import Site

    found = approval.approve(Site.load(config), plan, officer)
    _say(as_json, vars(found), found.line())


@plans.command()
def revoke(plan: str, officer: OfficerOption, config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Take a yes back, as long as the ledger has not charged the plan."""
    from sgps_client import officer as office

    found = office.revoke(config, plan, officer)
    _say(as_json, vars(found), found.line())


def _say(as_json: bool, facts: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)
