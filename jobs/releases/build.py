"""Bind one space, its codebook, index and CTR model into a release, and record it: the release stage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from infra.migrations.migrate import migrate
from jobs.stages import STAGES
from jobs.workspace import releases_url
from model import artifact, release_database, releases, strict_json
from model.artifact import ArtifactMismatch, Manifest
from model.releases import Release

log = structlog.get_logger()

KIND: Final = "release"
RELEASE_FILE: Final = "release.json"
IN_A_SPACE: Final = ("pretrain", "embed", "codebook", "cluster", "index", "ctr")  # these always name their space
OF_A_CODEBOOK: Final = ("codebook", "cluster", "materialize")  # ... and these their codebook
PINNED: Final = {stage.name for stage in STAGES if stage.pinned}  # an earlier release's, of earlier pictures
MEASURES: Final = ("auc", "gauc", "ndcg", "logloss", "auc_gain", "ci_low", "ci_high", "p_value", "n")


def build(
    *,
    images: Path,
    pretrain: Path,
    embed: Path,
    codebook: Path,
    cluster: Path,
    index: Path,
    materialize: Path,
    ctr: Path,
    evaluate: Path,
    workspace: Path,
    out: Path,
) -> Manifest:
    """Record the release that these artifacts make in the database of releases, and write `release.json`.

    Its id is the hash of the artifacts' digests, so a second run records nothing new. It is recorded before the
    artifact is finished: whoever was killed in between runs the stage again and comes to the same end. The database's
    tables are brought to the newest migration. Whether the release answers is decided elsewhere: promotion.py.
    Raises ArtifactMissing for an absent artifact, ArtifactMismatch for one of another space or made from another input.
    """
    stages = {
        "images": images,
        "pretrain": pretrain,
        "embed": embed,
        "codebook": codebook,
        "cluster": cluster,
        "index": index,
        "materialize": materialize,
        "ctr": ctr,
        "evaluate": evaluate,
    }
    manifests = {stage: artifact.read(path, kind=stage) for stage, path in stages.items()}
    digests = artifact.digests(stages)
    check_made_of_each_other(manifests)
    release = Release(
        release_id=name_release(digests),
        created_at=datetime.now(UTC),
        space_id=the_one_space(manifests),
        codebook_id=the_one_codebook(manifests),
        ctr_model=manifests["ctr"].facts["best"],
        artifacts={
            stage: {"path": path.resolve().relative_to(workspace.resolve()).as_posix(), "digest": digests[stage]}
            for stage, path in stages.items()
        },
        metrics=_metrics(manifests, evaluate),
    )
    with artifact.write(out, kind=KIND, inputs=digests, config={}) as draft:
        url = releases_url(workspace)
        migrate(url)
        with release_database.writing(url) as session:
            recorded = releases.record(session, release, by=releases.user_name())
        (draft.path / RELEASE_FILE).write_text(strict_json.dumps(document(recorded), indent=1, sort_keys=True), "utf-8")
        draft.facts |= {
            "release_id": recorded.release_id,
            "space_id": recorded.space_id,
            "codebook_id": recorded.codebook_id,
            "ctr_model": recorded.ctr_model,
        }
    log.info("release_recorded", **draft.facts)
    return artifact.read(out, kind=KIND)


def name_release(digests: Mapping[str, str]) -> str:
    """'r' and 12 hex digits of the hash of the artifacts' digests."""
    return "r" + hashlib.sha256(strict_json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()[:12]


def document(release: Release) -> dict[str, Any]:
    """A release as JSON values."""
    return {
        "release_id": release.release_id,
        "created_at": release.created_at.isoformat(),
        "space_id": release.space_id,
        "codebook_id": release.codebook_id,
        "ctr_model": release.ctr_model,
        "artifacts": {stage: dict(where) for stage, where in release.artifacts.items()},
        "metrics": dict(release.metrics),
    }


def the_one_space(manifests: Mapping[str, Manifest]) -> str:
    """The space that all stages of a release name. Raises ArtifactMismatch where they name several, or one none."""
    return _the_one(manifests, "space", IN_A_SPACE)


def the_one_codebook(manifests: Mapping[str, Manifest]) -> str:
    """The codebook that a release's codes are of. Raises ArtifactMismatch as `the_one_space`."""
    return _the_one(manifests, "codebook", OF_A_CODEBOOK)


def _the_one(manifests: Mapping[str, Manifest], what: str, always: Sequence[str]) -> str:
    found = {stage: manifest.facts.get(f"{what}_id") for stage, manifest in manifests.items()}
    named = {stage: one for stage, one in found.items() if stage in always or one is not None}
    if len(set(named.values())) != 1 or None in named.values():
        listed = ", ".join(f"{stage} {one or 'none'}" for stage, one in named.items())
        raise ArtifactMismatch(f"a release is of one {what}, but these are of several ({listed}): run the road again")
    return str(named[always[0]])


def check_made_of_each_other(manifests: Mapping[str, Manifest]) -> None:
    """Raise ArtifactMismatch where a stage was made from another artifact than the release's."""
    for stage, manifest in manifests.items():
        for name, digest in manifest.inputs.items():
            source, _, part = name.partition("/")
            if stage not in PINNED and source in manifests and digest != artifact.identity(manifests[source], part):
                raise ArtifactMismatch(f"{stage} was made from another {source} than the release's: rebuild {stage}")


def _metrics(manifests: Mapping[str, Manifest], evaluate: Path) -> dict[str, Any]:
    """What was measured of this release: the index's recall, and the released CTR model's row of the evaluation."""
    evaluation = json.loads((evaluate / "evaluation.json").read_text("utf-8"))
    best = manifests["ctr"].facts["best"]
    rows: list[dict[str, Any]] = evaluation["rows"]
    released = next((row for row in rows if f"{row['model']}/{row['images']}" == best), {})
    dataset = evaluation.get("dataset", {})
    return {
        "recall_at_10": manifests["index"].facts["recall_at_10"],
        # What must be alike for two releases' figures to be compared: jobs.releases.gates.
        "protocol": {
            "schema": evaluation.get("schema"),
            "dataset": dataset.get("name"),
            "sampled_negatives": dataset.get("sampled_negatives"),
        },
        **{measure: released[measure] for measure in MEASURES if measure in released},
    }
