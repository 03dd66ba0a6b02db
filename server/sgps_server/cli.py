"""`sgps-server`: the command line. Everything heavy is imported inside the command that needs it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sgps import command
from sgps.default_plan import DEFAULT_PLAN
from sgps.errors import StoppedError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    rich_markup_mode=None,
)
sites = typer.Typer(help="Who takes part.", no_args_is_help=True)
release_commands = typer.Typer(help="What the federation has made.", no_args_is_help=True)
audit_commands = typer.Typer(help="The coordinator's record.", no_args_is_help=True)
app.add_typer(sites, name="sites")
app.add_typer(release_commands, name="releases")
app.add_typer(audit_commands, name="audit")

Config = Annotated[Path, typer.Option("--config", help="federation.yaml of the federation folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
HERE = Path("federation.yaml")


def _folder(config: Path) -> Any:
    from sgps_server.config import Folder

    return Folder.of(config)


def _tell(as_json: bool, fields: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(fields, ensure_ascii=False) if as_json else text)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Of a command that finishes by itself, the next time, what it had begun."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("stopped", do="nothing is lost: give the same command again") from None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(command.version_line("sgps-server"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Config = HERE,
    linger: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to go on serving after the last round; without it: until stopped."),
    ] = None,
    as_json: AsJson = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Name and version.")
    ] = False,
) -> None:
    """Run the federation's rounds until all are done, then go on serving its releases.

    Without a command: opens the port of federation.yaml, waits for sites, runs the rounds, writes a signed release after each, and
    stays up so that sites can fetch the last one (--linger limits that). Killed or stopped, the same command goes on where it was.
    """
    if context.invoked_subcommand is not None:
        return
    from sgps_server.config import Folder
    from sgps_server.progress import Progress

    folder = Folder.of(config)
    settings = folder.settings()
    from sgps_server.service import serve

    raise typer.Exit(serve(folder, settings, Progress(as_json), linger))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The federation folder to make.")],
    name: Annotated[str, typer.Option(help="Name of the federation: small letters, digits, hyphens.")],
    url: Annotated[str, typer.Option(help="Where sites find the coordinator.")] = "https://localhost:8443",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port, when --url names none.")] = None,
    listen: Annotated[
        str, typer.Option(help="Address to open; by default all, or loopback for a loopback --url.")
    ] = "",
    release: Annotated[Path | None, typer.Option(help="Begin with this release instead of the one that ships.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a federation folder: certificate authority, keys, federation.yaml, first release."""
    from sgps_server import enrolment

    mark = enrolment.init(folder, name, _with_port(url, port), _first_release(release), listen)
    text = (
        f"federation {name} in {folder}\nfingerprint {mark}\n"
        f"next: look at {folder / HERE}, then `sgps-server sites approve SITE.csr --config {folder / HERE}`"
    )
    _tell(as_json, {"federation": name, "folder": str(folder), "fingerprint": mark}, text)


def _with_port(url: str, port: int | None) -> str:
    from urllib.parse import urlsplit

    from sgps.errors import ConfigError

    try:
        parts = urlsplit(url)
        found = parts.port
    except ValueError as error:
        raise ConfigError(f"is not an address: {error}", where=url, do="use the form https://host:8443") from error
    if port is None or found == port:
        return url.rstrip("/")
    if found is not None and url != "https://localhost:8443":
        raise ConfigError(f"names port {found}, --port names {port}", where=url, do="give the port once")
    return f"https://{f'[{parts.hostname}]' if ':' in str(parts.hostname) else parts.hostname}:{port}"


def _first_release(path: Path | None) -> Any:
    """The shipped release, or that of a folder which the operator names and thereby vouches for."""
    if path is None:
        from sgps.shipped import shipped_release

        return shipped_release()
    from sgps.release import vouched

    return vouched(path)


@sites.command("approve")
def approve(
    csr: Annotated[Path, typer.Argument(help="The file that `sgps-client enroll` wrote at the site.")],
    config: Config = HERE,
    out: Annotated[Path | None, typer.Option(help="Where to write the kit; by default SITE.kit here.")] = None,
    receive: Annotated[
        bool, typer.Option("--receive", help="The site only receives releases and is never asked to contribute.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Validity of the site's certificate.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Sign a site's request and write its kit. The same request again renews the certificate."""
    from sgps_server import enrolment

    folder, request = _folder(config), enrolment.read_request(csr)
    target = out or Path(f"{request.site}.kit")
    renewed = enrolment.approve(folder, request, target, "receive" if receive else "contribute", days)
    fields = {"site": request.site, "kit": str(target), "key_sha256": request.sha256, "renewed": renewed}
    text = f"{request.site} {'renewed' if renewed else 'enrolled'}; kit {target}\nkey {request.sha256} (compare it with the site's by telephone)"
    _tell(as_json, fields, text)


@sites.command("list")
def list_sites(config: Config = HERE, as_json: AsJson = False) -> None:
    """Enrolled sites, their roles, and the end of their certificates."""
    from datetime import UTC, datetime

    from sgps_server.registry import Registry, key_sha256

    entries = Registry(_folder(config).registry).entries()
    for name in sorted(entries.withdrawn):
        _tell(as_json, {"site": name, "withdrawn": True}, f"{name:20} withdrawn")
    for name, site in sorted(entries.sites.items()):
        until = datetime.fromtimestamp(site.expires, UTC).date().isoformat()
        fields = {"site": name, "role": site.role, "expires": until, "key_sha256": key_sha256(site.key)}
        _tell(as_json, fields, f"{name:20} {site.role:10} until {until}  key {fields['key_sha256'][:16]}")


@sites.command("revoke")
def revoke(site: str, config: Config = HERE, as_json: AsJson = False) -> None:
    """Lock a site out at once, also from a running coordinator. What it contributed stays in the memory."""
    from sgps_server import enrolment

    enrolment.revoke(_folder(config), site)
    _tell(as_json, {"site": site, "revoked": True}, f"{site} is revoked; its key will not be taken again")


@sites.command("withdraw")
def withdraw(site: str, config: Config = HERE, as_json: AsJson = False) -> None:
    """Lock a site out, and leave what it gave to the class memory out of the next release. Releases that exist stay as they are."""
    from sgps_server import enrolment

    rounds = enrolment.withdraw(_folder(config), site)
    lost = (
        f"its part of round {', '.join(map(str, rounds))} is left out of the next release"
        if rounds
        else "it had given nothing that can be taken out"
    )
    _tell(as_json, {"site": site, "withdrawn": True, "rounds": list(rounds)}, f"{site} is withdrawn; {lost}")


@app.command()
def status(config: Config = HERE, as_json: AsJson = False) -> None:
    """Where the federation stands and who is missing."""
    from sgps_server import status as board

    found = board.read(_folder(config))
    _tell(as_json, found, board.as_text(found))


@app.command()
def forecast(
    patients: Annotated[str, typer.Option(help="Patients of one disease in each site: 12,30,8.")],
    epsilon: Annotated[
        float, typer.Option(min=0.01, max=20, help="What each site spends; default: the default plan's.")
    ] = DEFAULT_PLAN.epsilon,
    delta: Annotated[float, typer.Option(min=1e-12, max=1e-2, help="That goes with --epsilon.")] = DEFAULT_PLAN.delta,
    as_json: AsJson = False,
) -> None:
    """What a round of rows would cost and bring the whole federation: which sites are too small to help, what the noise leaves."""
    from sgps_server import forecast as forecasts

    found = forecasts.forecast(forecasts.numbers(patients), epsilon, delta)
    _tell(as_json, found.facts(), found.text())


@release_commands.command("list")
def list_releases(config: Config = HERE, as_json: AsJson = False) -> None:
    """All releases, verified."""
    from sgps.release import Release
    from sgps.signing import load_public
    from sgps_server import releases

    folder = _folder(config)
    key = load_public(folder.keys / "plan.pub")
    for name in releases.names(folder.releases):
        fields = releases.describe(Release.open(folder.releases / name, key=key))
        who = ", ".join(fields["sites"]) or "no site"
        _tell(as_json, fields, f"{name}  {fields['sha256'][:16]}  {fields['rounds']} round(s), {who}")


@release_commands.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    name: Annotated[str | None, typer.Option(help="Which release; the newest by default.")] = None,
    config: Config = HERE,
    as_json: AsJson = False,
) -> None:
    """Copy a verified release to a folder, for a site that has no line."""
    from sgps.signing import load_public
    from sgps_server import releases

    folder = _folder(config)
    chosen = name or releases.latest(folder.releases).name
    found = releases.export(folder.releases, chosen, load_public(folder.keys / "plan.pub"), out)
    _tell(
        as_json,
        {"name": chosen, "sha256": found.sha256, "folder": str(out)},
        f"release {chosen} in {out}, sha256 {found.sha256}",
    )


@release_commands.command("carry")
def carry(
    map_file: Annotated[Path, typer.Option("--map", help="What `sgps memory map` made.")],
    release: Annotated[
        Path, typer.Option(help="A release of the new base network, as `sgps pretrain release` makes it.")
    ],
    config: Config = HERE,
    as_json: AsJson = False,
) -> None:
    """Go over to a new base network and take the rows along. It counts as a round, in which nobody takes part."""
    from sgps.release import vouched
    from sgps_server import carry as carrying

    with _stoppable():
        made = carrying.carry_over(_folder(config), vouched(release), map_file)
    m = made.release.manifest
    fields = {
        "name": made.release.folder.name, "sha256": made.release.sha256, "encoder_sha256": m.encoder_sha256,
        "rows_before": made.rows[0], "rows": made.rows[1], "left": list(made.left), "episodes_lost": list(made.lost),
        "withdrawn": list(made.withdrawn),
    }  # fmt: skip
    _tell(as_json, fields, carrying.describe(made))


@release_commands.command("repool")
def repool(config: Config = HERE, as_json: AsJson = False) -> None:
    """Make the next release at once, without sites that withdrew: no round, nobody pays. It counts as a round, in which nobody takes part."""
    from sgps_server import repool as pooling

    with _stoppable():
        made = pooling.repool(_folder(config))
    fields = {"name": made.release.folder.name, "sha256": made.release.sha256, "without": list(made.without)}
    text = (
        f"release {made.release.folder.name} without {', '.join(made.without)}, sha256 {made.release.sha256}\n"
        f"it counts as round {int(made.release.folder.name)}: where further rounds are to follow, raise `rounds` in federation.yaml by one"
    )
    _tell(as_json, fields, text)


@audit_commands.command("verify")
def verify(config: Config = HERE, as_json: AsJson = False) -> None:
    """Check the chain of the record, and that every signed release finds its line in it."""
    from sgps.signing import load_public
    from sgps_server import audit, releases

    folder = _folder(config)
    anchors = releases.anchors(folder.releases, load_public(folder.keys / "plan.pub"))
    events = audit.verify(folder.audit, anchors)
    head = events[-1]["sha256"] if events else audit.START
    text = f"{len(events)} lines follow from each other, {len(anchors)} release(s) find theirs; last {head}"
    _tell(as_json, {"lines": len(events), "anchors": len(anchors), "head": head}, text)


def main() -> None:
    """Entry point. Errors are one line on standard error, with the exit codes of docs/reference/exit-codes.md."""
    command.run("sgps-server", app)


if __name__ == "__main__":
    main()
