"""What holds for every test: no network, few threads, a cache of its own; set before torch and transformers load."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_cache = tempfile.TemporaryDirectory(prefix="emo_llama_tests_")  # removed when pytest ends
os.environ["HF_HOME"] = _cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# A shell's background job ignores Ctrl-C, and the processes that tests start to interrupt them would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that share few cores with others only wait


SHARED = Path(os.environ.get("FERID_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_faces() -> Path:
    """`{train,test}/<emotion>/*.jpg`, real photos: beside the checkout, or where FERID_SHARED says."""
    folder = SHARED / "faces"
    if not (folder / "train").is_dir():
        pytest.skip(f"no real photos in {folder}; FERID_SHARED may name the folder that holds faces/")
    return folder


@pytest.fixture(scope="session")
def skeleton() -> Path:
    """RAF-DB, AffectNet, FERPlus, DFEW, FERV39k and MAFW: real annotation lists, stand-in media; not to be changed.

    It stays in the folder for temporary files: 450,000 links take longer to remove than to make.
    """
    tool = SHARED / "tools" / "make_skeleton.py"
    if not tool.is_file():
        pytest.skip(f"no {tool}; FERID_SHARED may name the folder that holds tools/")
    root = Path(tempfile.gettempdir(), f"ferid_skeleton_{hashlib.sha256(tool.read_bytes()).hexdigest()[:16]}")
    if not root.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix="ferid_skeleton_"))
        subprocess.run([sys.executable, tool, unfinished, "--frames", "1"], check=True, capture_output=True)
        unfinished.rename(root)
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The folder that `emo-llama create --preset tiny-random` writes; not to be changed by a test."""
    from modeling_emo_llama.create_checkpoint import create_checkpoint  # brings torch, which most tests do without

    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    create_checkpoint(out, preset="tiny-random")
    return out
