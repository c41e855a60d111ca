"""The environment that grades DS-1000: library releases of its time, separate from those that this package runs on.

    pinned    the releases in requirements.txt, in a separate environment created by ``create``. Its directory:
              XFT_DS1000_ENVIRONMENT, or ds1000 in XDG_CACHE_HOME/xft (~/.cache/xft)
    current   the Python and the libraries of this package, whatever they are. Scores then differ: 65 of the 1,000
              reference answers fail under numpy 2.4 and pandas 3.1, which no longer have functions that they call
"""

import logging
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from xft_core.errors import SandboxError
from xft_core.files.digests import digest_of
from xft_core.files.environment import ds1000_directory
from xft_core.sandbox.bubblewrap import python

logger = logging.getLogger(__name__)

Choice = Literal["pinned", "current"]

COMMAND = "python -m xft_core ds1000-environment"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
OWN_PLACES = ("/tmp", "/dev", "/proc")  # programs in the sandbox have their own
WHOLE = "xft-ds1000"
PYTHON = "3.11"  # the version for which the pinned releases have wheels


@dataclass(frozen=True)
class Library:
    """What the problems of one library need. ``packages``: to install; ``modules``: to import before the first sample,
    starting with the library itself."""

    packages: tuple[str, ...]
    modules: tuple[str, ...]


LIBRARIES = {
    "Pandas": Library(("pandas", "pyyaml"), ("pandas", "numpy")),
    "Numpy": Library(("numpy", "pandas", "scipy", "scikit-learn"), ("numpy", "pandas", "scipy.stats")),
    "Matplotlib": Library(
        ("matplotlib", "seaborn", "pandas"), ("matplotlib.pyplot", "pandas", "seaborn", "PIL.Image", "mpl_toolkits.mplot3d")),
    "Sklearn": Library(
        ("scikit-learn", "pandas", "statsmodels", "xgboost"),
        ("sklearn", "pandas", "scipy.sparse", "sklearn.datasets", "sklearn.ensemble", "sklearn.feature_extraction.text",
         "sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline", "sklearn.preprocessing", "sklearn.svm",
         "sklearn.cluster", "sklearn.decomposition")),
    "Scipy": Library(
        ("scipy", "pandas"),
        ("scipy", "pandas", "scipy.integrate", "scipy.interpolate", "scipy.ndimage", "scipy.optimize", "scipy.sparse.linalg",
         "scipy.spatial.distance", "scipy.stats")),
    "Pytorch": Library(("torch", "pandas", "gensim", "scikit-learn"), ("torch", "pandas")),
    "Tensorflow": Library(("tensorflow-cpu", "pandas"), ("tensorflow", "numpy")),
}

# A missing module of these is a missing part of the environment; any other missing module is the program's own fault.
WATCHED = (
    "numpy", "pandas", "scipy", "sklearn", "matplotlib", "seaborn", "PIL", "statsmodels", "xgboost", "gensim", "yaml", "torch",
    "tensorflow")

NAMED = ("numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "torch", "tensorflow-cpu")


@dataclass(frozen=True)
class Environment:
    """An existing environment. ``mounts``: directories that the sandbox must mount; ``packages``: version by name."""

    choice: Choice
    python: Path
    mounts: tuple[Path, ...]
    python_version: str
    packages: dict[str, str]

    def facts(self) -> dict[str, object]:
        """The facts that are recorded with results."""
        return {"environment": self.choice, "python": self.python_version, "packages": self.packages}

    def key(self) -> dict[str, str | None]:
        """What distinguishes this environment from one in which answers may get other verdicts."""
        named = {name: self.packages.get(name) for name in NAMED}
        everything = digest_of(self.packages)[:16]
        return {"environment": self.choice, "python": self.python_version, **named, "all_packages": everything}


def find_environment(choice: Choice) -> Environment:
    """Find the chosen environment. Raises SandboxError, with the command that creates it, if it does not exist or does not
    match requirements.txt."""
    if choice == "current":
        return Environment(
            "current", python(), (), _version(sys.version_info[:3]), _packages(*filter(None, sys.path)))
    return _pinned(ds1000_directory())


def create(place: Path, libraries: list[str]) -> Environment:
    """Create the pinned environment in ``place``, with the packages that problems of ``libraries`` need (all if empty).

    Raises SandboxError if there is no Python for it, or if pip fails.
    """
    _check_place(place)
    if place.exists() and not (place / "pyvenv.cfg").is_file() and any(place.iterdir()):
        raise SandboxError(f"{str(place)!r} is not empty and not a Python environment. Name another directory.")
    packages = sorted({package for name in libraries or LIBRARIES for package in LIBRARIES[name].packages})
    logger.info("Installing into %s (takes some minutes): %s", place, ", ".join(packages))
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([_python_for_pins(), "-m", "venv", str(place)])
    _run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(REQUIREMENTS), *packages])
    # It is created in its final place, since an environment cannot be moved; so the mark of a complete one is written last.
    with (place / "pyvenv.cfg").open("a", encoding="utf-8") as stream:
        stream.write(f"{WHOLE} = true\n")
    return _pinned(place)


def requirements() -> dict[str, str]:
    """The pinned version of each package."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#")]
    return {_normal(name): version.strip() for name, version in pairs}


def _pinned(place: Path) -> Environment:
    settings = _settings(place)
    if settings is None:
        raise SandboxError(
            f"DS-1000 needs library releases of its time, and there is no environment for it in {str(place)!r}. Create it with "
            f"'{COMMAND}' (about 3 GB), or set XFT_DS1000_ENVIRONMENT to the directory of one. evaluate.ds1000_environment: "
            "current grades with the libraries of this package, but scores then differ.")
    _check_place(place)
    version = settings["version"]
    packages = _packages(str(place / "lib" / f"python{version.rpartition('.')[0]}" / "site-packages"))
    pins = requirements()
    wrong = [f"{name} {found} instead of {pins[name]}" for name, found in packages.items()
             if name in pins and found.partition("+")[0] != pins[name]]
    if wrong:
        raise SandboxError(
            f"The environment for DS-1000 in {str(place)!r} is not the pinned one: {', '.join(wrong)}. Delete the directory "
            f"and create it again with '{COMMAND}'.")
    base = Path(settings["home"]).resolve().parent
    return Environment("pinned", place / "bin" / "python", (place, base), version, packages)


def _check_place(place: Path) -> None:
    if any(place.resolve().is_relative_to(own) for own in OWN_PLACES):
        raise SandboxError(
            f"The environment for DS-1000 cannot be in {str(place)!r}: programs in the sandbox have their own "
            f"/{place.parts[1]} and would not find it. Create it elsewhere: '{COMMAND} DIRECTORY'.")


def _settings(place: Path) -> dict[str, str] | None:
    """The settings in pyvenv.cfg of a complete environment; None if there is none."""
    mark = place / "pyvenv.cfg"
    if not mark.is_file():
        return None
    pairs = [line.partition("=")[::2] for line in mark.read_text(encoding="utf-8").splitlines()]
    settings = {name.strip(): value.strip() for name, value in pairs}
    return settings if WHOLE in settings else None


def _packages(*paths: str) -> dict[str, str]:
    found = {_normal(item.metadata["Name"]): item.version for item in distributions(path=list(paths))}
    return dict(sorted(found.items()))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))


def _python_for_pins() -> str:
    if _version(sys.version_info[:2]) == PYTHON:
        return sys.executable
    found = shutil.which(f"python{PYTHON}")
    if found is None:
        raise SandboxError(
            f"The libraries that DS-1000 needs exist for Python {PYTHON}; this is {_version(sys.version_info[:2])}, and there "
            f"is no python{PYTHON} on the PATH. Install it and run '{COMMAND}' again.")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SandboxError(
            f"The environment for DS-1000 could not be created: {' '.join(lines[-3:])} ({' '.join(command[:4])} …)")
