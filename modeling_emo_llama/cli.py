"""The command `emo-llama`: make a checkpoint, ask it about a picture or a clip, see which faces it sees there.

    emo-llama create checkpoint --preset quickstart
    emo-llama ask face.jpg "How does she feel?" --options happiness,sadness,anger

A user's mistake is one sentence and exit code 2, Ctrl-C is one sentence and 130.
"""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.bar import Bar
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

QUESTION = "What is the facial expression of the person in the {}?"
CLIPS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp")
MAX_NEW_TOKENS = 64

app = typer.Typer(
    name="emo-llama",
    help="EMO-LLaMA: a language model that sees faces and their expressions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def create(
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    preset: Annotated[str | None, typer.Option(help="quickstart or tiny-random, instead of the two parts.")] = None,
    vision: Annotated[str | None, typer.Option(help="Vision tower: Hub id or folder.", metavar="ID")] = None,
    text: Annotated[str | None, typer.Option(help="Causal language model: Hub id or folder.", metavar="ID")] = None,
    compress_type: Annotated[str, typer.Option(help="Content tokens of a picture: mean, or grid:n.")] = "grid:2",
    face_backend: Annotated[
        str, typer.Option(help="Whose face priors: dlib, insightface, or insightface:PACK.")
    ] = "dlib",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave a part out: context, content, clue, global_branch or local_branch.", metavar="PART"),
    ] = None,
    fast_jpeg: Annotated[bool, typer.Option("--fast-jpeg", help="Decode JPEGs on the fast path.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the new weights.")] = 0,
) -> None:
    """Compose a checkpoint from a vision tower and a language model."""
    from .create_checkpoint import create_checkpoint

    start = time.perf_counter()
    silence_transformers()
    with one_sentence(), working(f"Composing {out}"):
        create_checkpoint(
            out,
            preset=preset,
            vision=vision,
            text=text,
            compress_type=compress_type,
            face_backend=face_backend,
            without=without or (),
            fast_jpeg=fast_jpeg,
            seed=seed,
        )
    parameters, size = checkpoint_size(out)
    seconds = time.perf_counter() - start
    typer.echo(
        f"{out} holds an EMO-LLaMA: {parameters / 1e6:,.1f}M parameters, {size / 1e6:,.0f} MB, {seconds:.0f} s."
    )


@app.command()
def convert_llama_vid(
    source: Annotated[Path, typer.Argument(help="Folder of a LLaMA-VID checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    vision: Annotated[Path | None, typer.Option(help="EVA's file, if not SOURCE/eva_vit_g.pth.")] = None,
    qformer: Annotated[Path | None, typer.Option(help="InstructBLIP's file, where SOURCE has no Q-Former.")] = None,
    qformer_tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer of BERT, if not SOURCE/bert-base-uncased.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side, if not as SOURCE says.")] = None,
    face_backend: Annotated[
        str, typer.Option(help="Whose face priors: dlib, insightface, or insightface:PACK.")
    ] = "dlib",
    drop_unknown: Annotated[bool, typer.Option("--drop-unknown", help="Leave out tensors without a place.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the new weights.")] = 0,
) -> None:
    """Convert a LLaMA-VID checkpoint; Face Info Mining is new."""
    from .convert_llama_vid import convert_llama_vid

    silence_transformers()
    with one_sentence():
        report = convert_llama_vid(
            source,
            out,
            vision=vision,
            qformer=qformer,
            qformer_tokenizer=qformer_tokenizer,
            image_size=image_size,
            face_backend=face_backend,
            drop_unknown=drop_unknown,
            seed=seed,
        )
    table = Table("", "part, or why it was dropped", "tensors", "numbers", box=None, header_style="bold")
    sizes = defaultdict(list)
    for line in report:
        what = line.note if line.status == "dropped" else ".".join(line.note.split(".")[:2])
        sizes[line.status, what].append(math.prod(line.shape))
    for (status, what), numbers in sizes.items():
        table.add_row(status, what, f"{len(numbers):,}", f"{sum(numbers):,}")
    Console().print(table)
    typer.echo(f"{out} holds an EMO-LLaMA. What became of each tensor: {out / 'conversion.json'}")


@app.command()
def ask(
    path: Annotated[Path, typer.Argument(help="Picture of a face, or clip: a video file or a folder of frames.")],
    question: Annotated[str | None, typer.Argument(help="What to ask; by default, about the expression.")] = None,
    model: Annotated[str, typer.Option(help="Checkpoint or adapter: folder or Hub id.")] = "runs/quickstart/adapter",
    options: Annotated[
        str | None, typer.Option(help="Answers to weigh against each other, such as anger,fear.", metavar="A,B,...")
    ] = None,
    no_faces: Annotated[bool, typer.Option("--no-faces", help="Ask without looking for a face.")] = False,
) -> None:
    """Ask a model about a picture or a clip."""
    from transformers import TextStreamer

    from .face_analysis import load_face_analyzer
    from .load_checkpoint import load_checkpoint
    from .video_frames import read_frames

    choices = [choice.strip() for choice in (options or "").split(",") if choice.strip()]
    silence_transformers()
    with one_sentence():
        is_clip = path.is_dir() or path.suffix.lower() in CLIPS
        frames = None if is_clip else [open_picture(path)]  # first, since it is quick
        network, processor = load_checkpoint(model)
        if is_clip:
            frames = [Image.fromarray(pixels) for pixels in read_frames(path, processor.num_frames).pixels]
        analyze = None if no_faces else load_face_analyzer(processor.face_backend, **processor.face_settings)
    faces = analyze(frames) if analyze else [[]] * len(frames)
    if analyze and not any(faces):
        fail(f"no face was found in {path}: crop it closer, or give --no-faces to ask without face priors")

    if is_clip:
        shown = {"type": "video", "video": frames, "faces": faces}
    else:
        shown = {"type": "image", "image": frames[0], "faces": faces[0]}
    question = question or QUESTION.format("video" if is_clip else "image")
    content = [shown, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    ).to(network.device)
    typer.echo(f"Question  {question}\nAnswer    ", nl=False)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    network.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, streamer=streamer)
    if choices:
        Console().print(option_table(network, processor.tokenizer, inputs, choices))


@app.command()
def faces(
    picture: Annotated[Path, typer.Argument(help="Picture of one face or several.")],
    draw: Annotated[Path | None, typer.Option(help="Picture to write; PICTURE_faces.png here, by default.")] = None,
    backend: Annotated[str, typer.Option(help="dlib, insightface, or insightface:PACK.")] = "dlib",
    detector_size: Annotated[int, typer.Option(help="Pixels of the longer side that the detector sees.")] = 320,
    assume_cropped: Annotated[bool, typer.Option("--assume-cropped", help="The picture is a face crop.")] = False,
) -> None:
    """Show the faces that a model would see in a picture, and draw them over it."""
    from .face_analysis import load_face_analyzer
    from .face_drawing import draw_faces

    with one_sentence():
        image = open_picture(picture)
        settings = {"detector_size": detector_size, "assume_cropped": assume_cropped}
        analyze = load_face_analyzer(backend, **settings, embeddings=False)  # nobody is to be identified
    found = analyze([image])[0]
    if not found:
        fail(f"no face was found in {picture}: crop it closer")
    table = Table("face", "box (left, top, right, bottom)", "score", "landmarks", "gender", "age")
    for number, face in enumerate(found, start=1):
        box = ", ".join(f"{x:.0f}" for x in face.box)
        age = "" if face.age is None else f"{face.age:.0f}"
        table.add_row(str(number), box, f"{face.score:.2f}", str(len(face.landmarks)), face.gender or "", age)
    Console().print(table)
    draw = draw or Path(f"{picture.stem}_faces.png")
    with one_sentence():  # a folder that is missing, a name that ends in no picture format
        draw_faces(image, found).save(draw)
    typer.echo(f"The picture with its faces is {draw}.")


def open_picture(path: Path) -> Image.Image:
    """The picture upright, in RGB, as the processor sees it.

    Raises:
        ValueError: no file, no picture, or a broken one.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: name a picture")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture, whatever its name says: name a JPEG, PNG or TIFF") from error
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
        raise ValueError(f"{path} cannot be read, save or copy it again ({error})") from error


def option_table(network, tokenizer, inputs, choices: list[str]) -> Table:
    """The probability of each answer, the best first."""
    from .option_scoring import option_probabilities, score_options

    probabilities = option_probabilities(score_options(network, tokenizer, inputs, choices))[0].tolist()
    table = Table("option", "probability", "", box=None, header_style="bold", pad_edge=False)
    for probability, choice in sorted(zip(probabilities, choices, strict=True), reverse=True):
        table.add_row(choice, f"{probability:.1%}", Bar(1, 0, probability, width=30))
    return table


def checkpoint_size(folder: Path) -> tuple[int, int]:
    """(parameters, bytes of the weights), read from the files' headers."""
    from safetensors import safe_open

    files, parameters = list(folder.glob("*.safetensors")), 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return parameters, sum(file.stat().st_size for file in files)


def silence_transformers() -> None:
    """No reports of new weights, no bars of loading: our own words say what is done."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def working(what: str) -> Iterator[None]:
    """A line with the seconds that passed, while the block runs; nothing where the output is no terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


@contextmanager
def one_sentence() -> Iterator[None]:
    """Says a user's mistake without a traceback. Only calls whose own checks raise these errors belong in it."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"the package {error.name} is missing: pip install 'emo-llama[quickstart]'")
    except (ValueError, OSError, ImportError) as error:
        fail(" ".join(str(error).split()))


def fail(sentence: str) -> None:
    typer.echo(f"emo-llama: {sentence}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Runs `emo-llama`."""
    try:
        app(prog_name="emo-llama")
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            typer.echo("emo-llama: stopped", err=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
