"""The command `ferid`: small functions, each importing its heavy parts itself, so that --help is instant.

ferid build ferid --folder photos --faces dlib
"""

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


@app.callback()
def ferid() -> None:
    """Without a callback, typer would drop the name of a lone command."""


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
