"""What every Python test can ask for: the library, real data if it is there, small models."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.environ.get("LMI_LIBRARY", ROOT / "build" / "native" / "liblmi.so"))
DATA = Path(os.environ.get("LMI_DATA", ROOT.parent / "shared" / "data"))

# Programs that tests start find the package of this checkout and the library that was built from it.
os.environ["LMI_LIBRARY"] = str(LIBRARY)
_PATHS = [str(ROOT / "runtime"), str(ROOT / "convert"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))


def pytest_report_header() -> list[str]:
    data = f"real data: {DATA}" if DATA.is_dir() else f"real data: none ({DATA}); the tests that need it are skipped"
    return [f"library: {LIBRARY}{'' if LIBRARY.is_file() else ' (missing: make build)'}", data]


@pytest.fixture(scope="session")
def native():
    """(ffi, lib) of the library under test."""
    if not LIBRARY.is_file():
        pytest.fail(f"no library at {LIBRARY}: make build")
    from lmi import _native

    return _native.native()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data beside the checkout."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA} (LMI_DATA names another folder)")
    return DATA


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    path = ROOT / "models" / "lmi-tiny" / "lmi-tiny.gguf"
    if not path.is_file():
        pytest.skip("the shipped model is not in this checkout")
    return path


@pytest.fixture(scope="module", params=["emulated", "gpu"])
def cuda(request, native):
    """Opens a file on a device: the SIMT emulator (tests/native/simt), and a GPU where there is one."""
    import lmi

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated":
            path = Path(os.environ["LMI_LIBRARY"]).parent / "tests" / "simt" / "liblmi_cuda_simt.so"
            if not path.is_file():
                pytest.skip(f"no library at {path}: it takes a C++ compiler")
            patch.setenv("LMI_CUDA_LIBRARY", str(path))
        else:
            try:
                lmi.find_device()
            except lmi.DeviceError as error:
                pytest.skip(str(error))
        yield lambda path, **options: lmi.Model(path, device="cuda", **options)


@pytest.fixture(scope="session")
def stories(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """stories260K as a float32 file."""
    from oracle import tiny_models

    return tiny_models.make_from_stories(tmp_path_factory.mktemp("stories") / "stories260K.gguf", data / "stories260K")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """(transformers model, GGUF file in F32) of a case of oracle.tiny_hf, made once."""
    from lmi_convert.convert import convert
    from oracle import tiny_hf

    found = {}

    def make(name: str):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            model = tiny_hf.make_model(tiny_hf.BY_NAME[name])
            tiny_hf.save(model, folder)
            convert(folder, folder / "model.gguf", quant="F32")
            found[name] = model, folder / "model.gguf"
        return found[name]

    return make
