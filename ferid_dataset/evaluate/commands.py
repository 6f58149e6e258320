"""The commands `ferid evaluate`, `metrics`, `compare` and `quality`; `ferid_dataset/cli.py` takes them in.

ferid evaluate --model runs/quickstart/adapter --data runs/quickstart/ferid --output results
ferid evaluate --model llava-hf/llava-1.5-7b-hf --data ferid --source raf_db --method score
ferid evaluate --model gpt-5-mini --base-url https://api.openai.com/v1 --data ferid
ferid evaluate --model "runs/fold-{fold}/adapter" --data "ferid-{fold}" --fold all
accelerate launch --multi_gpu --num_processes 8 -m ferid_dataset.cli evaluate --model ... --data ferid
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ferid_dataset.errors import FeridError


def evaluate(
    model: Annotated[str, typer.Option(help="Checkpoint or adapter, folder or Hub id; or what the server calls it.")],
    data: Annotated[str, typer.Option(help="The folder that ferid build wrote, or a Hub id.", metavar="FERID")],
    output: Annotated[Path, typer.Option(help="Folder of the results.", metavar="DIR")] = Path("runs/evaluation"),
    split: Annotated[str, typer.Option(help="Rows to predict.")] = "test",
    source: Annotated[str | None, typer.Option(help="Only rows of this source, such as folder.")] = None,
    config: Annotated[str, typer.Option(help="category, or conversation for free answers.")] = "category",
    fold: Annotated[
        str | None,
        typer.Option(help="Put for {fold} in --data and --model: 1 to 5, or all for their mean and spread."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="generate, as in the paper; or score, faster, which takes the likeliest option.")
    ] = "generate",
    batch_size: Annotated[int, typer.Option(help="Rows that run together.", min=1)] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer; 16 tokens, or 256 for free answers.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:1, ...; a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16, float32 or auto; bfloat16 on a GPU, else as it was saved.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that lies beside the weights of other models.")
    ] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible server instead. OPENAI_API_KEY has the key.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests on the way to it at a time.", min=1)] = 16,
    requests_per_minute: Annotated[float | None, typer.Option(help="What the account allows.", min=0.01)] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="What the account allows.", min=1)] = None,
    picture_side: Annotated[int, typer.Option(help="Pictures are sent with at most so many pixels.", min=16)] = 512,
    temperature: Annotated[float | None, typer.Option(help="The server's own by default.", min=0)] = None,
) -> None:
    """Measure a model: WAR, UAR, recalls, and the confusion matrix. Stop at any moment; the same command goes on."""
    from transformers.utils import logging

    from ferid_dataset.evaluate.endpoint import Server
    from ferid_dataset.evaluate.report_table import print_folds, print_metrics
    from ferid_dataset.evaluate.run import evaluate

    logging.disable_progress_bar()  # one bar, ours
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    limits |= {"concurrency": concurrency, "picture_side": picture_side, "temperature": temperature}
    asking = {"method": method, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    asking |= {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    asking["server"] = Server(model, base_url, **limits) if base_url else None
    figures = evaluate(model, data, output, split=split, source=source, config=config, fold=fold, **asking)
    if figures is None:
        return  # the first of several processes prints
    if config != "category":
        typer.echo(f"{output} holds answers.jsonl: measure them with `ferid quality {output}`.")
        return
    if fold == "all":
        print_folds(figures, figures["measured_on"])
        typer.echo(f"{output} holds metrics.json, and a folder for each fold.")
    else:
        print_metrics(figures)
        typer.echo(f"{output} holds metrics.json, predictions.jsonl and confusion_matrix.png.")


def metrics(
    predictions: Annotated[Path, typer.Argument(help="predictions.jsonl, or the folder of an evaluation.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json and the confusion matrix (CSV, PNG).", metavar="DIR")
    ] = None,
) -> None:
    """Compute the figures of an evaluation again, from its predictions alone."""
    from ferid_dataset.evaluate.recompute import recompute
    from ferid_dataset.evaluate.report_table import print_folds, print_metrics

    figures = recompute(predictions, output)
    if "folds" in figures:
        print_folds(figures, figures["measured_on"])
    else:
        print_metrics(figures)
    if output:
        files = "a folder for each fold" if "folds" in figures else "confusion_matrix.csv and confusion_matrix.png"
        typer.echo(f"{output} holds metrics.json, and {files}.")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more: a predictions.jsonl, or the folder of an evaluation.", metavar="RUN..."),
    ],
    common: Annotated[
        bool, typer.Option("--common", help="Only rows that all runs have, with the same label.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures, too.", metavar="FILE")] = None,
) -> None:
    """Say whether runs differ from the first one on the same rows: paired bootstrap and McNemar's test."""
    from ferid_dataset.evaluate.compare import compare, read_runs
    from ferid_dataset.evaluate.report_table import print_comparison

    comparison = compare(read_runs(runs), common=common)
    print_comparison(comparison)
    if output:
        output.write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def quality(
    answers: Annotated[Path, typer.Argument(help="answers.jsonl, or the folder of an evaluation.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for quality.json, quality.jsonl and the judge's replies.", metavar="DIR"),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Language model that judges, as its server calls it.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server; OPENAI_BASE_URL, else OpenAI's. OPENAI_API_KEY has the key."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests on the way at a time.", min=1)] = 8,
    json_mode: Annotated[bool, typer.Option("--json-mode", help="For servers without structured outputs.")] = False,
) -> None:
    """Measure free answers: label support, ROUGE-L, and a judge if one is named."""
    from ferid_dataset.evaluate.conversation_quality import measure_quality, read_answers, write_quality
    from ferid_dataset.evaluate.report_table import print_quality

    rows, verdicts = read_answers(answers), None
    if judge:
        from ferid_dataset.evaluate import judge as judging

        if output is None:
            raise FeridError("a judge's replies are kept, so that none is paid for twice: give a folder to --output")
        verdicts = judging.judge(rows, judging.Order(judge, output / "judge.sqlite", base_url, concurrency, json_mode))
    figures, lines = measure_quality(rows, verdicts.judgements if verdicts else None)
    figures["judge"] = verdicts.as_facts() if verdicts else None
    print_quality(figures)
    if output:
        write_quality(figures, lines, output)
        typer.echo(f"{output} holds quality.json and quality.jsonl.")
