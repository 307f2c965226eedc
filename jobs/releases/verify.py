"""Read every byte of a release's artifacts and say, a sentence each, what is not as it was recorded."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feature_repo.contract import EMBEDDING_DIM
from jobs.releases import gates
from jobs.releases.build import check_made_of_each_other, the_one_codebook, the_one_space
from model import artifact
from model.artifact import ArtifactMismatch, ArtifactMissing, Manifest
from model.releases import Release


def faults(workspace: Path, release: Release) -> list[str]:
    """What is wrong with a release; empty where all is as it was recorded.

    Every artifact's bytes are those of its manifest, and its digest the recorded one; all are of the release's space
    and made of each other; the index is as wide as the contract says and holds the vectors of embed.
    """
    found = list(_damaged(workspace, release))
    if found:
        return found  # what does not hold what it says need not be compared
    candidate = gates.open_candidate(workspace, release, None)
    checks: list[Callable[[], str | None]] = [
        lambda: _refusal(check_made_of_each_other, candidate.manifests),
        lambda: _another(the_one_space, candidate.manifests, "space", release.space_id),
        lambda: _another(the_one_codebook, candidate.manifests, "codebook", release.codebook_id),
        lambda: _another_width(candidate.folders["index"]),
        lambda: gates.reconciliation(candidate.folders, candidate.features, release.codebook_id),
    ]
    return [said for check in checks if (said := check()) is not None]


def _damaged(workspace: Path, release: Release) -> Iterator[str]:
    for stage, where in release.artifacts.items():
        folder = workspace / where["path"]
        try:
            manifest = artifact.verify(folder, kind=stage)
        except (ArtifactMissing, ArtifactMismatch) as error:
            yield str(error)
            continue
        if artifact.identity(manifest) != where["digest"]:
            yield f"{folder} was rebuilt after {release.release_id} named it: `courier run` makes a release of it"


def _refusal(check: Callable[[Mapping[str, Manifest]], Any], manifests: Mapping[str, Manifest]) -> str | None:
    try:
        check(manifests)
    except ArtifactMismatch as error:
        return str(error)
    return None


def _another(
    the_one: Callable[[Mapping[str, Manifest]], str], manifests: Mapping[str, Manifest], what: str, named: str | None
) -> str | None:
    if named is None:  # a release that was recorded before they named their codebook
        return None
    if said := _refusal(the_one, manifests):
        return said
    found = the_one(manifests)
    return None if found == named else f"its artifacts are of {what} {found}, it of {named}"


def _another_width(index: Path) -> str | None:
    from model.vector_index import VectorIndex  # FAISS

    width = VectorIndex.load(index).width
    if width == EMBEDDING_DIM:
        return None
    return f"index {index} is {width} wide, contract says {EMBEDDING_DIM}: run `courier run --from embed`"
