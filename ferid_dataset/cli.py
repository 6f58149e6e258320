"""The command `ferid`: small functions, each importing its heavy parts itself, so that --help is instant.

ferid draw pictures
ferid build ferid --folder pictures --faces dlib
ferid evaluate --model adapter --data ferid --output results
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ferid_dataset.errors import FeridError

app = typer.Typer(
    name="ferid",
    help="FERID: instruction data for facial expressions, from your own labelled pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to write; its name is what load_dataset is given.")],
    folder: Annotated[Path, typer.Option(help="Your pictures: ROOT/{train,test}/<emotion>/*.jpg", metavar="ROOT")],
    config: Annotated[list[str] | None, typer.Option(help="category or conversation; both by default.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Conversations: DIR/<source>/<split>.jsonl", metavar="DIR")
    ] = None,
    faces: Annotated[str | None, typer.Option(help="Look for faces with this backend, such as dlib.")] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Write the pictures into the dataset, for a private one.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Open no picture: quicker, finds nothing broken.")
    ] = False,
    max_rejected: Annotated[float, typer.Option(help="Share of pictures that may be left out.", min=0, max=1)] = 0.05,
    num_proc: Annotated[int | None, typer.Option(help="Processes; all cores by default.", min=1)] = None,
) -> None:
    """Build the folder that load_dataset("ferid", "category") reads."""
    from ferid_dataset.build import CONFIGS, build_ferid

    summary = build_ferid(
        out,
        folder=folder,
        configs=tuple(config or CONFIGS),
        annotations=annotations,
        faces=faces,
        embed=embed,
        verify=not no_verify,
        max_rejected=max_rejected,
        num_proc=num_proc,
    )
    typer.echo(summary)


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
def evaluate(
    model: Annotated[str, typer.Option(help="Checkpoint or adapter: folder or Hub id.")],
    data: Annotated[str, typer.Option(help="The folder that ferid build wrote, or a Hub id.", metavar="FERID")],
    output: Annotated[Path, typer.Option(help="Folder of the results.", metavar="DIR")],
    split: Annotated[str, typer.Option(help="Rows to predict.")] = "test",
    source: Annotated[str | None, typer.Option(help="Only rows of this source, such as folder.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that run together.", min=1)] = 16,
) -> None:
    """Measure a model: WAR, UAR, recalls, and the confusion matrix."""
    from rich.console import Console
    from rich.table import Table
    from transformers.utils import logging

    from ferid_dataset.evaluate.run import evaluate

    logging.disable_progress_bar()  # one bar, ours
    metrics = evaluate(model, data, output, split=split, source=source, batch_size=batch_size)
    table = Table("", "rate", "95 % interval", "n", title=metrics["measured_on"])
    for key in ("war", "uar"):
        low, high = metrics[f"{key}_ci95"]
        table.add_row(key.upper(), f"{metrics[key]:.3f}", f"{low:.3f} to {high:.3f}", str(metrics["n"]))
    table.add_row("invalid answers", f"{metrics['invalid_rate']:.3f}", "", str(metrics["n"]), end_section=True)
    for label, row in metrics["recall"].items():
        table.add_row(f"recall of {label}", f"{row['recall']:.3f}", "", str(row["n"]))
    Console().print(table)
    typer.echo(f"{output} holds metrics.json, predictions.jsonl and confusion_matrix.png.")


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
