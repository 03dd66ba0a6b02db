"""sgps-client: the command line of a site. Heavy imports wait until a command needs them.

Exit codes are those of sgps.errors (docs/reference/exit-codes.md); Ctrl-C ends with 130.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sgps import command
from sgps.default_plan import DEFAULT_PLAN
from sgps_client.cli_classes import classes
from sgps_client.cli_classifier import evaluate, predict, synthesize
from sgps_client.cli_export import export
from sgps_client.cli_ledger import ledger, plans
from sgps_client.cli_serve import serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    help="A hospital's side of a federation: take part under patient-level differential privacy, and make classifiers.",
)
ConfigOption = Annotated[Path, typer.Option("--config", help="The site's settings.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SITE_YAML = Path("site.yaml")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(command.version_line("sgps-client"))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Name and version.")
    ] = False,
) -> None: ...


@app.command()
def enroll(
    name: Annotated[str | None, typer.Argument(help="Name of the site: a-z, 0-9 and -.", show_default=False)] = None,
    kit: Annotated[
        Path | None, typer.Option(help="Install the kit that the coordinator sent back.", metavar="FILE")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the site.", metavar="DIR")] = Path(),
    fingerprint: Annotated[
        str | None, typer.Option(help="The federation's fingerprint, as told by another way.", metavar="HEX")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key pair and NAME.csr, or install the kit that comes back. The private key never leaves."""
    from sgps_client import enrolment

    if (name is None) == (kit is None):
        raise typer.BadParameter("give a NAME to make a request, or --kit FILE to install a kit")
    if name is not None:
        path = enrolment.request(folder, name)
        mark = enrolment.key_sha256(folder)
        text = f"send {path} to the coordinator; the private key stays in {folder / 'keys'}\nkey {mark} (read it out by telephone)"
        _say(as_json, {"request": str(path), "key_sha256": mark}, text)
        return
    done = enrolment.install(folder, Path(str(kit)), fingerprint)
    todo = enrolment.template_problems(done.settings.read_text(encoding="utf-8"), done.settings)
    facts = {
        "site": done.site, "federation": done.federation, "fingerprint": done.fingerprint,
        "expires": done.expires.isoformat(), "settings": str(done.settings), "written": done.fresh, "to_fill_in": todo,
    }  # fmt: skip
    lines = [
        f"{done.site} is enrolled in {done.federation} until {done.expires:%Y-%m-%d}",
        f"fingerprint {done.fingerprint}: compare it with the coordinator's by telephone",
        f"{done.settings} {'was written' if done.fresh else 'exists and was left alone'}",
        *(f"to fill in: {line}" for line in todo),
        "then: sgps-client check",
    ]
    _say(as_json, facts, "\n".join(lines))


@app.command()
def check(config: ConfigOption = SITE_YAML, as_json: JsonOption = False) -> None:
    """Look for every problem at once: settings, keys, network, clock, disk, release, cohorts, budget."""
    from sgps_client import check as checks

    found = checks.run(config)
    facts = {"ok": not any(f.bad for f in found), "findings": [f.facts() for f in found]}
    _say(as_json, facts, "\n".join(f.line() for f in found))
    if worst := next((f for f in found if f.bad), None):
        raise typer.Exit(worst.exit_code)


@app.command()
def start(
    config: ConfigOption = SITE_YAML,
    forever: Annotated[
        bool, typer.Option("--forever", help="Stay when the coordinator says that the run is done.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take part in rounds, or receive releases only, until the run is done."""
    from sgps_client import log
    from sgps_client.config import Site

    site = Site.load(config)
    report = (log.JsonReport if as_json else log.Report)(site.log, log.to_stdout, site=site.name)
    with log.reporting(report):
        role = "takes part" if site.config.role == "contribute" else "only receives: nothing is read, nothing is spent"
        report("start", f"{site.name} {role}; Ctrl-C stops")
        from sgps_client import worker

        try:
            worker.start(config, forever)
        except KeyboardInterrupt:
            report("stopped", "stopped; start again to go on")
            raise


@app.command()
def pull(
    config: ConfigOption = SITE_YAML,
    name: Annotated[str | None, typer.Option("--release", help="Not the newest but this one.", metavar="NAME")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only say which releases there are.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the newest release and verify it. A broken download goes on where it ended."""
    from sgps_client.config import Site
    from sgps_client.coordinator import Coordinator
    from sgps_client.store import Store

    site = Site.load(config)
    store = Store(site)
    with Coordinator(site) as coordinator:
        if listing:
            for one in coordinator.releases():
                here = store.holds(one)
                facts = {"release": one.name, "sha256": one.sha256, "here": here}
                _say(as_json, facts, f"{one.name}  {one.sha256[:16]}  {'here' if here else 'not here'}")
            return
        wanted = coordinator.status().latest if name is None else coordinator.find(name)
        release = store.fetch(coordinator, wanted)
    facts = {"release": release.folder.name, "sha256": release.sha256, "folder": str(release.folder)}
    _say(as_json, facts, f"release {release.folder.name} is verified in {release.folder}")


@app.command()
def inspect(
    release: Annotated[Path, typer.Argument(help="Folder of a release.", metavar="RELEASE")],
    config: ConfigOption = SITE_YAML,
    key: Annotated[
        Path | None, typer.Option(help="Pinned key; default: the one that site.yaml names.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a release is made of and what it cost: statements, provenance, who contributed; recomputes epsilon and mu."""
    from sgps_client import inspect as inspection

    found = inspection.look(release, config, key)
    _say(as_json, found.facts(), found.text())
    if found.problems:
        raise typer.Exit(4)


class RoundKind(StrEnum):
    """A kind of round that a forecast can be asked for."""

    ROWS, SITE_MEAN, EPISODES = "rows", "site_mean", "episodes"


@app.command()
def forecast(
    patients: Annotated[
        int,
        typer.Option(
            min=1, help="Patients of one disease at all sites; site_mean: of one site; episodes: of any disease."
        ),
    ],
    epsilon: Annotated[
        float, typer.Option(min=0.01, max=20, help="What each site spends; default: the default plan's.")
    ] = DEFAULT_PLAN.epsilon,
    sites: Annotated[int, typer.Option(min=1, max=10_000, help="Sites that share these patients.")] = 1,
    delta: Annotated[float, typer.Option(min=1e-12, max=1e-2, help="That goes with --epsilon.")] = DEFAULT_PLAN.delta,
    kind: Annotated[RoundKind, typer.Option(help="Kind of round.")] = RoundKind.ROWS,
    numbers: Annotated[int, typer.Option(min=1, max=1_000_000, help="Numbers that episodes train.")] = 256,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of one round of episodes.")] = 10,
    sampling: Annotated[
        float, typer.Option(min=0.001, max=1, help="Rate at which a patient enters a step of episodes.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """What a round would cost and bring, before anything is spent."""
    from sgps_client import forecast as forecasts
    from sgps_client import forecast_kinds

    found: forecasts.Forecast | forecast_kinds.MeanForecast | forecast_kinds.EpisodesForecast
    if kind is RoundKind.SITE_MEAN:
        found = forecast_kinds.site_mean(patients, epsilon, delta)
    elif kind is RoundKind.EPISODES:
        found = forecast_kinds.episodes(patients, epsilon, sites, delta, numbers, steps, sampling)
    else:
        found = forecasts.forecast(patients, epsilon, sites, delta)
    _say(as_json, found.facts(), found.text())


for _command in (classes, synthesize, predict, evaluate, export, serve):
    app.command()(_command)
app.add_typer(ledger, name="ledger")
app.add_typer(plans, name="plans")


def _say(as_json: bool, facts: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False, default=str) if as_json else text)


def main() -> None:
    """Runs a command; every fault that a person can mend is one line on stderr."""
    command.run("sgps-client", app, _refused)


def _refused(error: Exception) -> tuple[str, int] | None:
    """Line and exit code of what the privacy package raises."""
    from sgps_privacy.errors import MachineFailure, PrivacyError, Refused

    if isinstance(error, Refused):
        return error.detail or error.code, 7 if error.code in {"busy", "damaged", "rolled_back"} else 5
    if isinstance(error, MachineFailure):
        return str(error), 1
    return (str(error), 5) if isinstance(error, PrivacyError) else None


if __name__ == "__main__":
    main()
