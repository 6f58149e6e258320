"""The command `ferid`: small functions, each importing its heavy parts itself, so that --help is instant.

ferid draw pictures
ferid build ferid --folder pictures --faces dlib
ferid evaluate --model adapter --data ferid --output results
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.commands import compare, evaluate, metrics, quality

app = typer.Typer(
    name="ferid",
    help="FERID: instruction data for facial expressions, from your own labelled pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _root(dataset: str) -> Any:
    return typer.Option(help=f"The folder of {dataset}.", metavar="ROOT")


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to write; its name is what load_dataset is given.")],
    ferplus: Annotated[Path | None, _root("FERPlus")] = None,
    raf_db: Annotated[Path | None, _root("RAF-DB")] = None,
    affectnet: Annotated[Path | None, _root("AffectNet")] = None,
    dfew: Annotated[Path | None, _root("DFEW")] = None,
    ferv39k: Annotated[Path | None, _root("FERV39k")] = None,
    mafw: Annotated[Path | None, _root("MAFW")] = None,
    crema_d: Annotated[Path | None, _root("CREMA-D")] = None,
    folder: Annotated[Path | None, _root("your own pictures, ROOT/{train,test}/<emotion>/*.jpg")] = None,
    config: Annotated[list[str] | None, typer.Option(help="category or conversation; both by default.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Conversations: DIR/<source>/<split>.jsonl", metavar="DIR")
    ] = None,
    fold: Annotated[int, typer.Option(help="Fold of DFEW, MAFW and CREMA-D.", min=1, max=5)] = 1,
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=1)] = 8,
    affectnet_classes: Annotated[int, typer.Option(help="8, or 7 without contempt.")] = 8,
    ferplus_label_rule: Annotated[str, typer.Option(help="argmax8, argmax10 or majority.")] = "argmax8",
    mafw_labels: Annotated[str, typer.Option(help="single, or compound.")] = "single",
    mafw_male: Annotated[
        str | None, typer.Option(help="The code in MAFW's gender.txt that means male, 0 or 1; unknown by default.")
    ] = None,
    faces: Annotated[str | None, typer.Option(help="Look for faces: dlib, insightface or insightface:PACK.")] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write the pictures into the dataset, for a private one.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every picture and clip.")] = False,
    max_rejected: Annotated[float, typer.Option(help="Share of samples that may be rejected.", min=0, max=1)] = 0.05,
    num_proc: Annotated[int | None, typer.Option(help="Processes; all cores by default.", min=1)] = None,
) -> None:
    """Build the folder that load_dataset("ferid", "category") reads, from any of the source datasets."""
    from ferid_dataset.build import CONFIGS, build_ferid
    from ferid_dataset.sources.base import Choices

    summary = build_ferid(
        out,
        choices=Choices(
            fold=fold,
            frames=frames,
            affectnet_classes=affectnet_classes,
            ferplus_label_rule=ferplus_label_rule,
            mafw_labels=mafw_labels,
            mafw_male=mafw_male,
        ),
        configs=tuple(config or CONFIGS),
        annotations=annotations,
        faces=faces,
        embed=embed,
        verify=verify,
        max_rejected=max_rejected,
        num_proc=num_proc,
        ferplus=ferplus,
        raf_db=raf_db,
        affectnet=affectnet,
        dfew=dfew,
        ferv39k=ferv39k,
        mafw=mafw,
        crema_d=crema_d,
        folder=folder,
    )
    typer.echo(summary)


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="The folder of one dataset.", metavar="ROOT")],
    fold: Annotated[int, typer.Option(help="Fold of DFEW, MAFW and CREMA-D.", min=1, max=5)] = 1,
    no_decode: Annotated[
        bool, typer.Option("--no-decode", help="Files must exist, but are not opened: seconds, not minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    num_proc: Annotated[int | None, typer.Option(help="Threads that decode; all cores by default.", min=1)] = None,
) -> None:
    """Say which dataset lies in a folder, and what is missing or broken. Exit code 0: nothing; 1: something is."""
    from ferid_dataset.check import check
    from ferid_dataset.sources.base import Choices

    found = check(root, Choices(fold=fold), decode=not no_decode, num_proc=num_proc)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show_check(found)
    raise typer.Exit(0 if found.is_whole else 1)


def _show_check(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    splits = [key for key in next(iter(found.classes.values()), {}) if key != "rejected"]
    table = Table("", *splits, "rejected", title=f"{found.title}: {found.layout}")
    for label, counts in found.classes.items():
        cells = [
            f"{usable:,}" if official in (None, usable) else f"{usable:,} of {official:,}"
            for usable, official in (counts[split] for split in splits)
        ]
        table.add_row(label, *cells, f"{counts['rejected']:,}" if counts["rejected"] else "")
    console = Console()
    console.print(table)
    for reason, count in found.left_out.items():
        console.print(f"left out by the protocol: {count:,} ({reason})", highlight=False)
    for kind, samples in found.problems.items():
        console.print(f"{kind}: {len(samples):,}, such as {samples[0]}", highlight=False, markup=False)
    if found.truncated:
        console.print(f"truncated clips: {len(found.truncated):,}, such as {found.truncated[0]}", highlight=False)
    if found.copies:
        examples = " = ".join(found.copies[0][:2])
        console.print(f"copies, byte for byte: {len(found.copies):,} groups, such as {examples}", highlight=False)
    unopened = "" if found.decoded else " (files exist; none was opened)"
    console.print(("nothing is missing or broken" if found.is_whole else "something is missing or broken") + unopened)


@app.command()
def faces(
    out: Annotated[Path, typer.Argument(help="The folder that ferid build wrote.")],
    backend: Annotated[str, typer.Option(help="dlib, insightface or insightface:PACK.")] = "dlib",
    cropped: Annotated[
        list[str] | None,
        typer.Option(help="Source whose pictures are face crops, such as raf_db; can be repeated.", metavar="SOURCE"),
    ] = None,
    num_proc: Annotated[int | None, typer.Option(help="Processes; all cores by default.", min=1)] = None,
) -> None:
    """Look for faces in a built FERID and join them to its rows; what was looked at before is not looked at again."""
    from ferid_dataset.add_faces import add_faces

    typer.echo(add_faces(out, backend, num_proc, cropped or ()))


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="The folder that ferid build wrote.")],
    annotations: Annotated[
        Path,
        typer.Option(help="Folder of the journal, and of <source>/<split>.jsonl that is made from it.", metavar="DIR"),
    ],
    model: Annotated[str, typer.Option(help="Vision model that writes the conversations, as its server calls it.")],
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server; OPENAI_BASE_URL, else OpenAI's. OPENAI_API_KEY has the key."),
    ] = None,
    describer_model: Annotated[str | None, typer.Option(help="Model that describes clips from all frames.")] = None,
    describer_base_url: Annotated[
        str | None, typer.Option(help="Its server, if it is another one. DESCRIBER_API_KEY has the key.")
    ] = None,
    descriptions: Annotated[
        Path | None, typer.Option(help='Descriptions of clips: lines of {"id", "description"}.', metavar="FILE")
    ] = None,
    mafw: Annotated[Path | None, _root("MAFW, whose captions describe its clips")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests on the way at a time.", min=1)] = 64,
    requests_per_minute: Annotated[float | None, typer.Option(help="What the account allows.", min=0.01)] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="What the account allows.", min=1)] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop before all replies together cost more.", min=0)] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens sent.", min=0)] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million tokens received.", min=0)] = None,
    picture_side: Annotated[int, typer.Option(help="Pictures are scaled down to this many pixels.", min=16)] = 512,
    per_class: Annotated[int | None, typer.Option(help="At most so many of each label of a source.", min=1)] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many, evenly over sources and their labels.", min=1)
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only this source; can be repeated. All but ferplus by default.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split; can be repeated. train by default.")] = None,
    shard: Annotated[str | None, typer.Option(help="Only this part, such as 2/8, on one of 8 machines.")] = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Ask again for rejected ones, each at most twice.")
    ] = False,
    json_mode: Annotated[bool, typer.Option("--json-mode", help="For servers without structured outputs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing: requests, tokens, cost and time, and three requests.")
    ] = False,
    batch: Annotated[bool, typer.Option("--batch", help="Submit batches instead, which take up to a day.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Fetch the batches that are ready.")] = False,
) -> None:
    """Have a vision model write the conversations of a built FERID. Stop at any moment; the same command goes on."""
    from ferid_dataset.generate.work import Order, parse_shard

    order = Order(
        out,
        annotations,
        model,
        base_url,
        describer_model=describer_model,
        describer_base_url=describer_base_url,
        descriptions=descriptions,
        mafw=mafw,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_cost=max_cost,
        price_in=price_in,
        price_out=price_out,
        picture_side=picture_side,
        splits=split or ("train",),
        sources=source or (),
        per_class=per_class,
        limit=limit,
        shard=parse_shard(shard) if shard else None,
        retry_rejected=retry_rejected,
        json_mode=json_mode,
    )
    if dry_run:
        from ferid_dataset.generate.estimate import dry_run

        typer.echo(dry_run(order))
        return
    if batch or collect:
        from ferid_dataset.generate import batch as batches

        # Collected first: what is missing from batches that have ended is submitted again.
        summaries = [run(order) for run, wanted in ((batches.collect, collect), (batches.submit, batch)) if wanted]
        typer.echo(summaries[-1])
        return

    from ferid_dataset.generate.pipeline import generate

    typer.echo(generate(order))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Conversations in LLaVA's form: JSON or JSON lines.")],
    out: Annotated[Path, typer.Argument(help="The folder that ferid build wrote.")],
    annotations: Annotated[
        Path, typer.Option(help="Folder of DIR/<source>/<split>.jsonl, which is added to.", metavar="DIR")
    ],
    source: Annotated[
        str | None, typer.Option(help="Source of all records, such as mafw, where file names do not tell.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Report which rules of generated conversations these break.")
    ] = False,
) -> None:
    """Read released conversations into the annotations that ferid build takes; what is left out is reported."""
    from ferid_dataset.import_conversations import import_conversations

    imported = import_conversations(file, out, annotations, source=source, check=check)
    _show_kinds("left out", "records", [row.reason.partition(": ")[::2] for row in imported.left_out])
    _show_kinds("rule", "break it", [(rule, name) for rule, ids in imported.broken.items() for name in ids])
    typer.echo(imported)


def _show_kinds(kind: str, count: str, rows: list[tuple[str, str]]) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(kind, count, "such as")
    examples = dict(reversed(rows))  # the first of each kind
    for name, number in Counter(name for name, _ in rows).most_common():
        table.add_row(name, f"{number:,}", Text(examples[name]))
    Console().print(table)


@app.command()
def stats(
    out: Annotated[Path, typer.Argument(help="The folder that ferid build wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for statistics.json, statistics.png and contact_sheet.png.", metavar="DIR"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, class by class, instead of a table.")] = False,
    per_class: Annotated[int, typer.Option(help="Samples of a label on the contact sheet.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="The same seed draws the same samples.", min=0)] = 0,
) -> None:
    """Count a built FERID: samples, instructions and long tail by source; pictures of both with --output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ferid_dataset.stats import count_ferid, table_rows

    counts = count_ferid(out)
    text = json.dumps(counts, indent=2)
    if as_json:
        typer.echo(text)
    else:
        whose = " (drawn faces, no photographs)" if counts["drawn"] else ""
        table = Table(title=f"FERID{whose}", caption="Instructions and long-tail ratio are of the train split.")
        table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)  # it fits a terminal of 80 characters
        table.add_column("Dataset")
        table.add_column("Annotation", no_wrap=True)
        for name in ("Train", "Valid.", "Test", "Category\ninstr.", "Conver-\nsation\ninstr.", "Long-\ntail\nratio"):
            table.add_column(name, justify="right")
        *sources, total = table_rows(counts)
        for row in sources:
            table.add_row(*row, end_section=row is sources[-1])
        table.add_row(*total)
        Console().print(table)
    if output is None:
        return

    from ferid_dataset.stats_pictures import save_contact_sheet, save_statistics

    output.mkdir(parents=True, exist_ok=True)
    (output / "statistics.json").write_text(text + "\n", encoding="utf-8")
    save_statistics(counts, output / "statistics.png")
    shown, grey = save_contact_sheet(out, output / "contact_sheet.png", per_class=per_class, seed=seed)
    typer.echo(f"{output} holds statistics.json, statistics.png and contact_sheet.png.", err=as_json)
    if grey:
        typer.echo(f"{grey} of {shown} pictures of the contact sheet do not open: they are grey.", err=as_json)
    if not counts["drawn"]:
        typer.echo("The contact sheet shows people's faces: it must not be published.", err=as_json)


@app.command()
def draw(
    out: Annotated[Path, typer.Argument(help="Folder to write: OUT/{train,test}/<emotion>/drawn_*.png")],
    count: Annotated[int, typer.Option(help="Pictures to draw, 35 or more.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
) -> None:
    """Draw a sample of labelled faces, to try everything without photographs."""
    from functools import partial

    from datasets.utils import tqdm

    from ferid_dataset.drawn_faces import draw_faces

    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise FeridError(f"{out} is not an empty folder: name a new one for the drawn faces")
    unfinished = out.with_name(f"{out.name}.unfinished")  # of a run that was stopped, perhaps with another seed
    shutil.rmtree(unfinished, ignore_errors=True)
    draw_faces(unfinished, count=count, seed=seed, progress=partial(tqdm, desc="draw", unit=" pictures"))
    if out.exists():
        out.rmdir()
    unfinished.rename(out)
    typer.echo(f"{out} holds {count} drawn faces: build FERID from them with `ferid build ferid --folder {out}`.")


@app.command()
def push(
    out: Annotated[Path, typer.Argument(help="The folder that ferid build wrote.")],
    repo: Annotated[str, typer.Argument(help="Dataset repository on the Hub, such as user/ferid.")],
    private: Annotated[bool, typer.Option("--private", help="To a private repository.")] = False,
    media: Annotated[
        list[str] | None, typer.Option("--with", help="Publish pictures, faces or embeddings too; can be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but call the Hub.")] = False,
) -> None:
    """Publish the rows on the Hub: without pictures, faces and embeddings, unless each is asked for by name."""
    from ferid_dataset.publish import push_ferid

    typer.echo(push_ferid(out, repo, private=private, media=media or (), dry_run=dry_run))


@app.command("push-model")
def push_model(
    folder: Annotated[Path, typer.Argument(help="The adapter or checkpoint that train_sft.py wrote.")],
    repo: Annotated[
        str, typer.Argument(help="Model repository on the Hub, such as user/emo-llama.", metavar="REPO_ID")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A metrics.json of this model, for its card; can be repeated.", metavar="FILE"),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model, with the adapter merged into its base.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="To a private repository.")] = False,
    base_id: Annotated[
        str | None,
        typer.Option(help="Where on the Hub the adapter's base stands, if it is a folder here.", metavar="ID"),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="As the Hub spells it; the base's if it can be known, else other.", metavar="ID")
    ] = None,
) -> None:
    """Publish a trained model on the Hub: weights, processor, code, and a card with what was measured."""
    from ferid_dataset.push_model import push_model, read_results

    url = push_model(
        folder,
        repo,
        recipe=None,
        metrics=read_results(results or (), folder, repo),
        merged=merged,
        private=private,
        base_id=base_id,
        license=license,
    )
    name = "/".join(url.rsplit("/", 2)[1:])  # with the user, who need not have been given
    typer.echo(f'{url}\nAutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)')


for command in (evaluate, metrics, compare, quality):
    app.command()(command)


def main() -> None:
    """Runs `ferid`: a user's mistake is one sentence and exit code 2, Ctrl-C is one sentence and 130."""
    try:
        app(prog_name="ferid")
    except (FeridError, OSError) as error:
        sys.exit(_say(f"ferid: {error}", 2))
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            _say("ferid: stopped; the same command takes up where it can", 130)
        raise


def _say(sentence: str, code: int) -> int:
    typer.echo(sentence, err=True)
    return code


if __name__ == "__main__":
    main()
