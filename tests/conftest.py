"""What holds for every test: no network, few threads, a cache of its own; set before torch and transformers load."""

import os
import tempfile
from pathlib import Path

import pytest

_cache = tempfile.TemporaryDirectory(prefix="emo_llama_tests_")  # removed when pytest ends
os.environ["HF_HOME"] = _cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that share few cores with others only wait


@pytest.fixture(scope="session")
def shared_faces() -> Path:
    """`{train,test}/<emotion>/*.jpg`, real photos: beside the checkout, or where FERID_SHARED_FACES says."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "faces"
    folder = Path(os.environ.get("FERID_SHARED_FACES", beside))
    if not (folder / "train").is_dir():
        pytest.skip(f"no real photos in {folder}; FERID_SHARED_FACES may name their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The folder that `emo-llama create --preset tiny-random` writes; not to be changed by a test."""
    from modeling_emo_llama.create_checkpoint import create_checkpoint  # brings torch, which most tests do without

    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    create_checkpoint(out, preset="tiny-random")
    return out
