"""`sgps-client classes`: the catalogue that `classes:` in site.yaml and `--disease` refer to."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sgps.catalogue import Catalogue, Entry

NEAREST = 5


def classes(
    word: Annotated[
        str | None,
        typer.Argument(help="Part of an id, name or synonym, or a few words of what is seen.", metavar="WORD"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The site's settings; default: site.yaml where there is one.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """List the classes of the catalogue: of the site's newest release, else of the shipped one."""
    from sgps.catalogue import Catalogue
    from sgps.errors import ConfigError
    from sgps.release import CATALOGUE
    from sgps_client import making

    try:
        site = making.site_of(config)
    except ConfigError:  # a template that is being filled in: these are the ids it asks for
        if config is not None:
            raise
        site = None
    release = making.release_of(None, None, None, site)
    catalogue = Catalogue.load(release.folder / CATALOGUE)
    entries, exact = _fitting(catalogue, word)
    if as_json:
        facts = [
            {**entry.model_dump(mode="json", include={"id", "name", "synonyms", "domain", "text"})} for entry in entries
        ]
        typer.echo(json.dumps({"release": release.manifest.name, "exact": exact, "classes": facts}, ensure_ascii=False))
        return
    if not exact:
        typer.echo(f"no class is called {word}; the nearest are")
    width = max(len(entry.id) for entry in entries)
    for entry in entries:
        also = f"; also {', '.join(entry.synonyms)}" if entry.synonyms else ""
        typer.echo(f"{entry.id:{width}}  {entry.name} ({entry.domain}){also}")
        if word:
            typer.echo(f"{'':{width}}  {entry.text}")


def _fitting(catalogue: "Catalogue", word: str | None) -> "tuple[list[Entry], bool]":
    """Entries, and whether the word stands in a name of each; otherwise they are the nearest ones."""
    from sgps.catalogue import normal

    if word is None:
        return [*catalogue.entries], True
    found = [entry for entry in catalogue.entries if any(normal(word) in normal(name) for name in entry.names)]
    return (found, True) if found and normal(word) else (catalogue.nearest(word, NEAREST), False)
