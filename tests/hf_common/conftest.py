"""The tests that every model and processor of transformers passes, run on ours (`make test-hf`).

They are in transformers' source distribution and not in what is installed, so the first run has pip download the one
of the installed version into the folder for temporary files. Nothing of it is kept in this repository.
"""

import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

# What those tests import and the distribution leaves out. Here the names are enough, and a picture of noise instead of
# those of the Hub.
LEFT_OUT = {
    "hf_tests/__init__.py": "",
    "hf_tests/exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "hf_tests/generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "hf_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return __file__.replace('.py', '.png')\n",
}
MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Importing this folder needs the download, so pytest looks into it only when `-m` asks for `hf_common`."""
    asked = "hf_common" in config.getoption("markexpr").replace("not hf_common", "")
    return None if asked else True


def pytest_pycollect_makemodule(parent: pytest.Collector) -> None:
    """A module of this folder is about to be imported."""
    for mark in MARKS:
        parent.config.addinivalue_line("markers", f"{mark}: transformers' own")
    make_hf_tests_importable()


@cache
def make_hf_tests_importable() -> None:
    """Make transformers' `tests/*.py` the package `hf_tests`."""
    release = f"transformers=={version('transformers')}"
    folder = Path(tempfile.gettempdir(), f"emo_llama_hf_common-{version('transformers')}")
    if not folder.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix="emo_llama_hf_common_"))
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", unfinished]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, release], check=True)
        distribution = next(unfinished.glob("*.tar.gz"))
        with tarfile.open(distribution) as archive:
            for member in archive:
                path = Path(member.name)
                if path.parts[1:2] == ("tests",) and path.suffix == ".py" and len(path.parts) == 3:
                    member.name = f"hf_tests/{path.name}"
                    archive.extract(member, unfinished, filter="data")
        distribution.unlink()
        for name, text in LEFT_OUT.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)
        Image.effect_noise((64, 48), 50).convert("RGB").save(unfinished / "fetch_hub_objects_for_ci.png")
        unfinished.rename(folder)
    sys.path.insert(0, str(folder))
