"""`sgps`: what the centre and the scientist run. Nothing heavy is imported before a command needs it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgps import command

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    help="What the centre and the scientist run: the demo, pre-training, reference banks, a change of base network.",
)
pretrain = typer.Typer(
    no_args_is_help=True, help="Make the base network, the generator and a release from public images."
)
memory = typer.Typer(no_args_is_help=True, help="Take the class memory to another base network.")
app.add_typer(pretrain, name="pretrain")
bank = typer.Typer(no_args_is_help=True, help="A reference bank from pictures that the centre may redistribute.")
app.add_typer(memory, name="memory")
app.add_typer(bank, name="bank")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(command.version_line("sgps"))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Name and version.")
    ] = False,
) -> None: ...


Data = Annotated[Path, typer.Option(help="Folder with the image sets of the recipe.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
Threads = Annotated[int, typer.Option(min=1, help="Processor cores to use.")]
Device = Annotated[
    str, typer.Option(help="Where it is computed; auto takes CUDA where it is present.", metavar="auto|cpu|cuda")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Encoders = Annotated[
    str | None,
    typer.Option(
        help="What reads the texts, open_clip:DIR or transformers:DIR; default: the installed text encoder.",
        metavar="KIND:DIR",
    ),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes; made anew each time.")] = Path(
        "demo-out"
    ),
    data: Annotated[Path | None, typer.Option(help="Zip or folder of class folders; default: drawn lesions.")] = None,
    diseases: Annotated[
        str | None,
        typer.Option(
            help="Three catalogue ids: two that hospitals hold, one that nobody holds; default akiec,vasc,df."
        ),
    ] = None,
    epsilon: Annotated[float, typer.Option(min=0.05, max=20, help="Budget of each cohort, at delta 1e-5.")] = 3.0,
    exemplars: Annotated[int, typer.Option(min=10, help="Exemplars of each disease behind the figures.")] = 60,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """A coordinator and three sites on this machine: two private rounds, then classifiers from one exemplar, and a report."""
    from sgps.demo.story import run

    run(out, data, diseases, epsilon, exemplars, seed, as_json)


@pretrain.command()
def base(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the result; a stopped run continues there.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML file; default: the shipped recipe.")] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "auto",
    atlas: Annotated[
        int | None,
        typer.Option(min=2, help="At most so many lesions of each base class; all others stay unseen, for measuring."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Your own timm checkpoint (safetensors) as the base; trained here only with --encoders. Figures on the recipe's meta-test classes "
            "mean something only when the checkpoint never saw these."
        ),
    ] = None,
    architecture: Annotated[str, typer.Option(help="Of --weights: one of timm's tf_efficientnetv2_*.")] = "",
    size: Annotated[int | None, typer.Option(help="Pixels that --weights takes; default: as timm says.")] = None,
    mean: Annotated[str, typer.Option(help="Per channel, for example .485,.456,.406; default: as timm says.")] = "",
    std: Annotated[str, typer.Option(help="Per channel, for example .229,.224,.225; default: as timm says.")] = "",
    encoders: Annotated[
        str | None,
        typer.Option(
            help="Your own network for pictures, open_clip:DIR, timm:DIR or transformers:DIR, as the teacher in place of Lite0.",
            metavar="KIND:DIR",
        ),
    ] = None,
    weights_source: Annotated[str, typer.Option(help="Where --weights comes from; every release names it.")] = "",
    weights_licence: Annotated[str, typer.Option(help="Licence of --weights; every release names it.")] = "",
    encoders_source: Annotated[str, typer.Option(help="Where --encoders comes from; every release names it.")] = "",
    encoders_licence: Annotated[str, typer.Option(help="Licence of --encoders; every release names it.")] = "",
    as_json: AsJson = False,
) -> None:
    """The base network: Lite0 transplanted into an EfficientNet-V2, distilled, fine-tuned, averaged; or your own --weights, --encoders."""
    from sgps.pretrain.process import prepare_process

    prepare_process(threads)
    from sgps.errors import ConfigError
    from sgps.open_encoders import Spec
    from sgps.pretrain.base import run
    from sgps.pretrain.own import Own, numbers
    from sgps.pretrain.progress import console
    from sgps.pretrain.teach import Teacher

    teacher = None
    if encoders is not None:
        teacher = Teacher(Spec.parse(encoders), encoders_source, encoders_licence)
    elif encoders_source or encoders_licence:
        where = "--encoders-source or --encoders-licence"
        raise ConfigError("belongs to --encoders", where=where, do="give --encoders KIND:DIR too")
    own = None
    if weights is not None:
        own = Own(
            weights,
            weights_source,
            weights_licence,
            architecture or "tf_efficientnetv2_b0",
            size,
            numbers(mean, "--mean"),
            numbers(std, "--std"),
        )
    elif any((architecture, size, mean, std, weights_source, weights_licence)):
        where = "--architecture, --size, --mean, --std, --weights-source or -licence"
        raise ConfigError("belongs to --weights", where=where, do="give --weights FILE too")
    with console() as report:
        run(data, out, recipe, seed, threads, report, own, atlas, teacher, _told(device))
    _tell(as_json, {"out": str(out)}, f"{out}: the base network")


@pretrain.command()
def generator(
    data: Data,
    base: Annotated[Path, typer.Option(help="Folder that `sgps pretrain base` made.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; a stopped run continues there.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML file; default: the shipped recipe.")] = None,
    encoders: Encoders = None,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The generator: meta-trained on public and drawn episodes; parts that do not pass stay at zero."""
    from sgps.pretrain.process import prepare_process

    prepare_process(threads)
    from sgps.open_encoders import Spec
    from sgps.pretrain.meta import run
    from sgps.pretrain.progress import console

    with console() as report:
        spec = Spec.parse(encoders) if encoders else None
        run(data, base, out, recipe, seed, threads, report, spec, _told(device))
    _tell(as_json, {"out": str(out)}, f"{out}: the generator")


@pretrain.command()
def release(
    base: Annotated[Path, typer.Option(help="Folder that `sgps pretrain base` made.")],
    out: Annotated[Path, typer.Option(help="The release folder to make.")],
    generator: Annotated[
        Path | None,
        typer.Option(help="generator.safetensors of `sgps pretrain generator`; without it the head is untrained."),
    ] = None,
    encoders: Encoders = None,
    as_json: AsJson = False,
) -> None:
    """An unsigned release with an empty class memory: `sgps-server init --release OUT` signs it for a federation."""
    from sgps.open_encoders import Spec
    from sgps.pretrain.assemble import assemble

    spec = Spec.parse(encoders) if encoders else None
    sha256 = assemble(base, generator, out, encoders=spec)
    _tell(as_json, {"out": str(out), "sha256": sha256}, f"{out}: sha256 {sha256}")


@memory.command("map")
def carry(
    before: Annotated[Path, typer.Option("--from", help="A release of the base network that has the rows.")],
    after: Annotated[Path, typer.Option("--to", help="A release of the new base network.")],
    data: Annotated[list[Path], typer.Option(help="Zip or folder of class folders, public; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The file to make, for `sgps-server releases carry`.")],
    leave_out: Annotated[
        str,
        typer.Option(
            help="More classes that are not looked at, as akiec,df,vasc; those that a release leaves out never are."
        ),
    ] = "",
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of pictures that the data show, as the catalogue names it, where folders are not named by its classes; may be repeated."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=10, help="Patients of a class.")] = 200,
    threads: Threads = 2,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """A map that carries rows from one base network to another, fitted on public pictures, and what it loses on classes it never saw."""
    from sgps.pretrain.process import prepare_process

    prepare_process(threads)
    from sgps.errors import InputError
    from sgps.pretrain.carry import make
    from sgps.pretrain.progress import console
    from sgps.release import vouched

    if out.exists():
        raise InputError("exists already", where=out, do="choose another --out")
    with console() as report:
        left = [c for c in leave_out.split(",") if c]
        found = make(vouched(before), vouched(after), data, left, most, report, domain or (), _told(device))
    sha256, f = found.write(out), found.about.figures
    lines = [f"{name:32} {c['patients']:5} patients  cosine {c['cosine']:.3f}" for name, c in f["classes"].items()]
    text = "\n".join(
        [
            *lines,
            f"a carried row of a class that the map never saw: cosine {f['cosine']['mean']:.3f} (least {f['cosine']['least']:.3f}) to one made in the new base",
            f"AUROC of one exemplar {100 * f['auroc']['exemplar']:.1f}, with a carried row {100 * f['auroc']['carried']:.1f}, with one made in the new base {100 * f['auroc']['own']:.1f}",
            f"kinds of pictures: {', '.join(found.about.domains) or 'none that the catalogue knows'}; rows of others stay behind",
            f"a carried row counts as {f['patients_at_most']:g} exemplars at most",
            f"{out}: sha256 {sha256}",
        ]
    )
    _tell(as_json, {"out": str(out), "sha256": sha256, **found.about.model_dump(mode="json")}, text)


@bank.command("build")
def build_bank(
    data: Annotated[Path, typer.Option(help="Zip or folder of class folders, named by classes of the catalogue.")],
    release: Annotated[Path, typer.Option(help="A release of the base network that the bank is for.")],
    licence: Annotated[str, typer.Option(help="Under which others may have the pictures; every release names it.")],
    out: Annotated[Path, typer.Option(help="The file to make, for `sgps bank put`.")],
    source: Annotated[str, typer.Option(help="Where the pictures come from; every release names it.")] = "",
    beside: Annotated[
        bool, typer.Option("--beside", help="Keep the classes of the release's own bank beside these.")
    ] = False,
    encoders: Encoders = None,
    threads: Threads = 2,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Features of public pictures, one sample a patient. The file holds no pictures and belongs to one base network."""
    from sgps.pretrain.process import prepare_process

    prepare_process(threads)
    from sgps.errors import InputError
    from sgps.open_encoders import Spec
    from sgps.pretrain.bank import make
    from sgps.pretrain.progress import console
    from sgps.release import vouched

    if out.exists():
        raise InputError("exists already", where=out, do="choose another --out")
    with console() as report:
        spec = Spec.parse(encoders) if encoders else None
        made = make(vouched(release), data, licence, source, beside, spec, report, _told(device))
    sha256 = made.write(out)
    facts = {"out": str(out), "sha256": sha256, "classes": len(made.bank.classes), **made.about.model_dump(mode="json")}
    given = ", ".join(f"{c} {n}" for c, n in made.about.patients.items())
    lines = [f"patients: {given}", *made.left_out, f"{out}: {len(made.bank.classes)} classes, sha256 {sha256}"]
    _tell(as_json, facts, "\n".join(lines))


@bank.command("put")
def put_bank(
    bank: Annotated[Path, typer.Option(help="What `sgps bank build` made.")],
    release: Annotated[Path, typer.Option(help="A release of the same base network, without rows.")],
    out: Annotated[Path, typer.Option(help="The release folder to make.")],
    as_json: AsJson = False,
) -> None:
    """An unsigned release with this bank in place of its own: `sgps-server init --release OUT` signs it for a federation."""
    from sgps.pretrain.bank import put
    from sgps.release import vouched

    sha256 = put(vouched(release), bank, out)
    _tell(as_json, {"out": str(out), "sha256": sha256}, f"{out}: sha256 {sha256}")


def _told(name: str) -> "torch.device":
    """The device of that name; which it is, is said at once, for the work is long."""
    from sgps.device import choose, described

    device = choose(name)
    typer.echo(f"device: {described(device)}", err=True)
    return device


def _tell(as_json: bool, facts: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else text)


def main() -> None:
    """Errors are one line on standard error, with the exit codes of docs/reference/exit-codes.md."""
    # read when torch loads: idle threads of a busy machine must not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command.run("sgps", app)


if __name__ == "__main__":
    main()
