"""The command serve: the clinician's page."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sgps_client.cli_classifier import (
    AsJson,
    EncodersFolder,
    FalseAlarms,
    Key,
    ReleaseFolder,
    Sha256,
    SiteDevice,
    SiteSettings,
)


def serve(
    models: Annotated[
        Path | None,
        typer.Option(help="Folder below which classifiers are saved; without it none can be.", metavar="DIR"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    release: ReleaseFolder = None,
    key: Key = None,
    sha256: Sha256 = None,
    config: SiteSettings = None,
    false_alarms: FalseAlarms = 0.10,
    encoders: EncodersFolder = None,
    device: SiteDevice = None,
    as_json: AsJson = False,
) -> None:
    """A page in this machine's browser: make a classifier from one picture and ask it. Ctrl-C stops; nothing else can connect."""
    from sgps_client import offline

    offline.switch_off()
    from sgps_client import making

    site = making.site_of(config)
    where = making.device_of(device, site)
    source = making.release_of(release, key, sha256, site)
    spec = making.encoders_of(encoders, source, site)
    if models is not None:
        models.mkdir(mode=0o700, parents=True, exist_ok=True)
    import sgps.synthesis  # noqa: F401  # torch loads before the page opens, not while somebody waits
    from sgps_client import serve as page
    from sgps_client.serve_desk import Desk
    from sgps_client.serve_door import Door

    def ready(door: Door) -> None:
        text = f"open {door.address}\nit opens once, in this machine's browser; Ctrl-C stops"
        typer.echo(json.dumps({"address": door.address, "release": source.manifest.name}) if as_json else text)

    page.run(Desk(source, models, false_alarms, where, spec), port, ready, lambda line: typer.echo(line, err=True))
