"""Open the current release: find its artifacts, refuse what does not fit together, and load its parts."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import structlog
from PIL.Image import Image
from upath import UPath

from model import artifact, releases
from model.artifact import ArtifactMismatch, ArtifactMissing
from model.courier.data.images import resize
from model.release_database import NoRelease, url_in
from model.releases import Release

if TYPE_CHECKING:
    from model.courier.network.encoder import LoadedEncoder
    from model.ctr.export.saved import CtrModel


log = structlog.get_logger()

ANSWERING = ("pretrain", "index", "ctr")  # the stages whose artifacts answer requests


@dataclass(frozen=True, slots=True)
class OpenRelease:
    """A release whose artifacts were found, whole and of one space. folders: stage -> its artifact's folder."""

    release: Release
    folders: Mapping[str, Path]
    workspace: Path

    @property
    def release_id(self) -> str:
        """Its name in the catalogue."""
        return self.release.release_id

    @property
    def space_id(self) -> str:
        """The space that its encoder, index and features share."""
        return self.release.space_id

    @property
    def codebook_id(self) -> str:
        """The codebook of its codes; empty, under which no code is stored, where it was recorded without."""
        return self.release.codebook_id or ""


def open_release(workspace: Path, database: str | None = None, artifacts: str | None = None) -> OpenRelease:
    """The release that answers, its artifacts found in the workspace.

    database: the URL of the database of releases; None for SQLite in the workspace.  artifacts: a folder or the URL of
    an object store that holds them under the same paths; those that the workspace lacks are fetched from there.
    Raises NoRelease where nothing was released, ArtifactMissing or ArtifactMismatch where an artifact is gone, was
    damaged or rebuilt since, or is of another space; SchemaMismatch, CatalogueUnreadable.
    """
    release = releases.current(database or url_in(workspace))
    if release is None:
        raise NoRelease(f"{workspace} has no current release: `courier run RAW --workspace {workspace}` makes one")
    folders = {stage: workspace / where["path"] for stage, where in release.artifacts.items()}
    for stage, folder in folders.items():
        if artifacts is not None and not (folder / artifact.MANIFEST).is_file():
            _fetch(release, stage, artifacts, folder)
        _check(release, stage, folder)
    return OpenRelease(release, folders, workspace)


def _fetch(release: Release, stage: str, artifacts: str, folder: Path) -> None:
    where = release.artifacts[stage]
    try:
        source = (Path(artifacts) if "://" not in artifacts else UPath(artifacts)) / where["path"]
        if artifact.digest(source) != where["digest"]:
            raise ArtifactMismatch(
                f"{source} is another artifact than {release.release_id} names: send the release again"
            )
        artifact.copy(source, folder, kind=stage)
    except (ImportError, OSError) as error:
        raise ArtifactMissing(
            f"{stage} cannot be fetched from {artifacts} ({error}): look whether it can be read"
        ) from None
    log.info("artifact_fetched", release=release.release_id, stage=stage, source=str(source))


def _check(release: Release, stage: str, folder: Path) -> None:
    # What answers is read to its last byte: a file of the right size may be another one's.
    manifest = (artifact.verify if stage in ANSWERING else artifact.read)(folder, kind=stage)
    if artifact.identity(manifest) != release.artifacts[stage]["digest"]:
        raise ArtifactMismatch(f"{folder} was rebuilt after {release.release_id} named it: `courier run` releases it")
    for key, named in (("space_id", release.space_id), ("codebook_id", release.codebook_id)):
        found = manifest.facts.get(key, named)
        if named is not None and found != named:
            what = key.removesuffix("_id")
            raise ArtifactMismatch(f"{folder} is of {what} {found}, {release.release_id} of {named}: rebuild it")


@dataclass(slots=True)
class ReleasedEncoder:
    """The release's image encoder, loaded when first asked: a search by item needs neither it nor torch."""

    opened: OpenRelease
    _loaded: "LoadedEncoder | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self) -> "LoadedEncoder":
        """The encoder. Raises ArtifactMismatch if it is of another space than the release."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _load_encoder(self.opened)
            return self._loaded

    def embed(self, image: Image) -> npt.NDArray[np.float32]:
        """The unit vector (256,) of an RGB image of any size."""
        from model.courier.network.encoder import embed_images

        encoder = self.load()
        vectors = embed_images(encoder, resize(image, encoder.preprocessing.size)[None])
        return vectors.reshape(-1)


def _load_encoder(opened: OpenRelease) -> "LoadedEncoder":
    from model.courier.network.encoder import load_encoder

    encoder = load_encoder(opened.folders["pretrain"])
    if encoder.space_id != opened.space_id:
        raise ArtifactMismatch(
            f"{opened.folders['pretrain']} embeds into space {encoder.space_id}, the release is of {opened.space_id}"
        )
    return encoder


def load_ctr_model(opened: OpenRelease) -> "CtrModel":
    """The release's CTR model. Raises ArtifactMissing or ArtifactMismatch."""
    from model.ctr.export.saved import load_model

    return load_model(opened.folders["ctr"] / opened.release.ctr_model.replace("/", "-"))
