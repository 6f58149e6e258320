"""`ferid push-model`: publishes a trained model so that one `from_pretrained` loads it, with a card of its figures.

    push_model("runs/adapter", "user/emo-llama", recipe=None, metrics=[metrics], merged=True)
    -> "https://huggingface.co/user/emo-llama"

What is sent, in one commit, and nothing else of the folder:

    README.md                        the card (`model_card.py`)
    model*.safetensors, config.json  a whole model; or adapter_model.safetensors, adapter_config.json
    processor_config.json, tokenizer.json, qformer_tokenizer/, ...
    *.py                             the code of model and processor, for trust_remote_code=True

An adapter names its base, and is loaded with it. Where the base is a folder of this machine, nobody else can load the
adapter: then the whole model is sent, with the adapter merged into it (`merged`), or the id is given under which the
same base stands on the Hub (`base_id`).
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils.sha import sha_fileobj

from ferid_dataset.errors import FeridError
from ferid_dataset.hub_errors import check_login, check_name, hub_errors
from ferid_dataset.model_card import MARK, Form, base_of, is_hub_id, licence_of, model_card, read_record
from ferid_dataset.model_card import write_model_card as write_model_card  # it is asked for here

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
ADAPTER = "adapter_model.safetensors"
ALWAYS_THERE = {".gitattributes", "README.md"}
PLACES = {"_name_or_path", "name_or_path", "is_local", "local_files_only"}  # in configurations of any depth


def push_model(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    recipe: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
    merged: bool = False,
    private: bool = False,
    token: str | None = None,
    base_id: str | None = None,
    license: str | None = None,
) -> str:
    """
    Publish a checkpoint or an adapter.

    Args:
        folder (`str` or `os.PathLike`): of a checkpoint or of an adapter.
        repo_id (`str`):
            Model repository, made when it does not exist; a name without a user is one of the token's own.
        recipe (`dict`, *optional*):
            How it was trained; by default what [`write_model_card`] left in the folder.
        metrics (`list[dict]`):
            What was measured, as `metrics.json` has it, besides what [`write_model_card`] left in the folder.
        merged (`bool`, *optional*, defaults to `False`):
            Sends the whole model, with the adapter merged into its base.
        private (`bool`, *optional*, defaults to `False`):
            Makes the repository a private one; one that is public already is refused.
        token (`str`, *optional*): by default that of `hf auth login`, or of HF_TOKEN.
        base_id (`str`, *optional*):
            Where on the Hub the base of the adapter stands. Its weights must be those of the base on this machine.
        license (`str`, *optional*):
            As the Hub spells it; by default that of the base as far as it can be known, or "other".

    Returns:
        `str`: the address of the model.

    Raises:
        [`FeridError`]: the folder holds no model, others could not load it, or the Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    api = HfApi(token=token)
    adapter = _check_folder(folder) and not merged
    check_push(folder, repo_id, merged=merged, base_id=base_id, token=token)
    stored_recipe, stored_metrics = read_record(folder)
    recipe, metrics = dict(recipe or stored_recipe), _joined(stored_metrics, metrics)
    base = base_of(folder, recipe)
    with hub_errors(api, repo_id):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        on_hub = _base_on_hub(api, folder, base_id or base, base, needed=adapter)
        info = _open_repository(api, repo_id, private)
    base_card = on_hub.card_data.to_dict() if on_hub and on_hub.card_data else None
    form = Form(adapter, on_hub and on_hub.id, licence_of(license, folder, base, base_card))
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.absolute().parent) as work:
        (Path(work) / "README.md").write_text(model_card(repo_id, recipe, metrics, form), encoding="utf-8")
        files = _stage(folder, Path(work), merged=merged, base_id=on_hub.id if adapter else None)
        with hub_errors(api, repo_id):
            _commit(api, info, files)
    return f"{api.endpoint}/{repo_id}"


def check_push(
    folder: str | os.PathLike | None,
    repo_id: str,
    *,
    base: str | None = None,
    merged: bool = False,
    base_id: str | None = None,
    token: str | None = None,
) -> None:
    """
    Refuse, without a call to the Hub, what cannot become a repository; worth a call before a long training.

    Args:
        folder (`str` or `os.PathLike`, *optional*):
            Of the model; `None` before there is one.
        repo_id, merged, base_id, token:
            As [`push_model`] takes them.
        base (`str`, *optional*):
            What an adapter that is not there yet will be trained from.

    Raises:
        [`FeridError`]: there is no token, the name is none, or others could not load the adapter.
    """
    check_name(repo_id if "/" in repo_id else f"user/{repo_id}")
    check_login(HfApi(token=token))
    if folder is not None and (Path(folder) / "adapter_config.json").is_file():
        base = base_of(Path(folder), {})
    if base is None or merged or base_id:
        return
    if os.path.exists(base) or not is_hub_id(base):
        raise FeridError(
            f"{folder or 'this'} is an adapter on the folder {base}, which nobody else has: add --merged to push the "
            "whole model, or --base-id user/base if that same base is on the Hub"
        )


def read_results(places: Sequence[str | os.PathLike], folder: str | os.PathLike, repo_id: str) -> list[dict[str, Any]]:
    """
    What `ferid evaluate` measured of a model.

    Args:
        places (`Sequence[str]`):
            `metrics.json` files, or the folders that hold them.
        folder, repo_id:
            The model that they must be of, as [`push_model`] takes it.

    Raises:
        [`FeridError`]: a file holds no metrics, or those of another model.
    """
    found = []
    for place in map(Path, places):
        file = place / "metrics.json" if place.is_dir() else place
        try:
            figures = json.loads(file.read_text(encoding="utf-8"))
            whole = all(figures[key] is not None for key in ("n", "war", "uar"))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise FeridError(f"{file} holds no metrics: give the metrics.json that `ferid evaluate` wrote")
        if not _is_of(str(figures.get("model")), Path(folder), repo_id):
            raise FeridError(
                f"{file} was measured on {figures.get('model')}, which is not {folder}: evaluate that one"
            )
        found.append(figures)
    return found


def _is_of(measured: str, folder: Path, repo_id: str) -> bool:
    """Whether a model that was measured is this one. `runs/fold-{fold}/adapter` stands for one model a fold."""
    if measured == repo_id:
        return True
    if os.path.exists(measured):
        return os.path.samefile(measured, folder)
    path = re.escape(Path(measured).as_posix()).replace(r"\{fold\}", "[1-9]")
    anywhere = "" if Path(measured).is_absolute() else "(.*/)?"  # it may have been measured from another folder
    return re.fullmatch(anywhere + path, folder.resolve().as_posix()) is not None


def _check_folder(folder: Path) -> bool:
    """Whether it holds an adapter.

    Raises:
        FeridError: it holds neither an adapter nor an EMO-LLaMA, or not all of it.
    """
    made = "give the folder that train_sft.py or `emo-llama create` wrote"
    if not folder.is_dir():
        raise FeridError(f"there is no folder {folder}: {made}")
    adapter = (folder / "adapter_config.json").is_file()
    config = folder / ("adapter_config.json" if adapter else "config.json")
    if not config.is_file():
        raise FeridError(f"{folder} is no checkpoint, it holds neither config.json nor adapter_config.json: {made}")
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
        kind = None if adapter else known["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise FeridError(f"{config} is not whole: copy or make the model again") from error
    if kind not in (None, "emo_llama"):
        raise FeridError(f"{folder} is a {kind!r} and no EMO-LLaMA: {made}")
    weights = [folder / ADAPTER] if adapter else [file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name)]
    if not any(file.is_file() for file in weights):
        raise FeridError(f"{folder} holds no weights in safetensors: copy or make the model again")
    return adapter


def _joined(stored: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All metrics; of two on the same rows, those that were given."""

    def rows(figures: Mapping[str, Any]) -> tuple:
        return tuple(str(figures.get(key)) for key in ("measured_on", "data", "split", "source", "method"))

    newer = {rows(figures) for figures in given}
    return [*(figures for figures in stored if rows(figures) not in newer), *given]


def _base_on_hub(api: HfApi, folder: Path, name: str | None, base: str | None, needed: bool) -> ModelInfo | None:
    """The base as the Hub has it; None where it is not there and need not be.

    Raises:
        FeridError: an adapter needs it and it is not there, is no EMO-LLaMA with its code, or has other weights than
            the base on this machine.
    """
    if name is None or os.path.exists(name) or not is_hub_id(name):
        return None  # an adapter on it has been refused
    try:
        info = api.model_info(name, files_metadata=True)
    except RepositoryNotFoundError as error:
        if not needed:
            return None
        raise FeridError(f"the base of {folder}, {name}, is neither a folder here nor a model on the Hub") from error
    there = {file.rfilename: file for file in info.siblings}
    if needed and not {"config.json", "modeling_emo_llama.py"} <= set(there):
        raise FeridError(
            f"{name} holds no EMO-LLaMA with its code: push the base first, `ferid push-model BASE {name}`"
        )
    if needed and base and os.path.isdir(base):
        for file in sorted(Path(base).glob("model*.safetensors")):
            twin = there.get(file.name)
            if twin is None or twin.lfs is None or twin.lfs.sha256 != _sha256(file):
                raise FeridError(f"{name} has other weights than {base}, on which {folder} was trained: {file.name}")
    return info


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return sha_fileobj(content).hex()


def _open_repository(api: HfApi, repo_id: str, private: bool) -> ModelInfo:
    """The repository as it stands, made if it does not exist.

    Raises:
        FeridError: it is public and must not be, or it holds something else.
    """
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private or None)  # None: as its organization has it
        return api.model_info(repo_id)
    if private and not info.private:
        raise FeridError(
            f"{repo_id} exists and is public: make it private in its settings, or name another repository"
        )
    there = {file.rfilename for file in info.siblings}
    if there <= ALWAYS_THERE:
        return info
    try:
        card = Path(api.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    except HfHubHTTPError:
        card = ""
    if MARK not in card:
        raise FeridError(f"{repo_id} holds something else: name another repository, nothing was touched")
    return info


def _stage(folder: Path, work: Path, *, merged: bool, base_id: str | None) -> dict[str, Path]:
    """What is to be sent, by its name in the repository; what is made for it lies in `work`."""
    from transformers import AutoProcessor
    from transformers.dynamic_module_utils import custom_object_save

    from modeling_emo_llama import EmoLlamaForConditionalGeneration

    try:
        processor = AutoProcessor.from_pretrained(folder)
        kind, colon, pack = processor.face_backend.partition(":")
        processor.face_backend = kind + colon + Path(pack).name  # a pack may be a folder of this machine
        processor.save_pretrained(work)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise FeridError(f"{folder} has no processor that can be read: copy or make it again ({reason})") from error
    custom_object_save(EmoLlamaForConditionalGeneration, work)  # the code, with all that it imports
    files = {}
    if base_id:
        known = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        known["base_model_name_or_path"] = base_id
        (work / "adapter_config.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        files[ADAPTER] = folder / ADAPTER
    elif merged and (folder / "adapter_config.json").is_file():
        _merge(folder, work)
    else:
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                (work / name).write_bytes((folder / name).read_bytes())
        files |= {file.name: file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name)}
    _forget_places(work)
    made = [file for file in work.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return files | {file.relative_to(work).as_posix(): file for file in made}


def _merge(folder: Path, work: Path) -> None:
    """Saves the whole model: base + adapter in float32, then every weight in the type that the base has it in."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = base_of(folder, {})
    try:
        model = AutoModelForImageTextToText.from_pretrained(base)
        types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        merged = PeftModel.from_pretrained(model.float(), folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise FeridError(f"{folder} cannot be merged into its base {base} ({reason})") from error
    for name, tensor in [*merged.named_parameters(), *merged.named_buffers()]:
        tensor.data = tensor.data.to(types.get(name, tensor.dtype))
    merged.save_pretrained(work)


def _forget_places(work: Path) -> None:
    """Takes out of the configurations what was true of this machine alone, such as where a part was loaded from."""

    def public(known: Any) -> Any:
        if isinstance(known, list):
            return [public(item) for item in known]
        if not isinstance(known, dict):
            return known
        return {key: public(value) for key, value in known.items() if key not in PLACES}

    for file in work.rglob("*config.json"):
        known = public(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit(api: HfApi, info: ModelInfo, files: Mapping[str, Path]) -> None:
    """Sends the files and removes what an earlier push left and this one has not, all in one commit."""
    old = {file.rfilename for file in info.siblings} - ALWAYS_THERE - set(files)
    try:
        api.create_commit(
            info.id,
            [
                *(CommitOperationAdd(name, file) for name, file in sorted(files.items())),
                *(CommitOperationDelete(name) for name in sorted(old)),  # a left adapter_config.json would be obeyed
            ],
            commit_message="EMO-LLaMA, by ferid push-model",
            parent_commit=info.sha,  # refused if somebody else has committed since
        )
    except ValueError as error:  # the Hub does not like the card
        raise FeridError(f"the Hub refuses the card of {info.id}: {' '.join(str(error).split())}") from error
