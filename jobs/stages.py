"""The table of stages: what builds each, what it is built from, and what else makes it stale."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, from its inputs to an artifact.

    Functions are named "module:function" and imported only when they are called.

    build: called with the folder of each input by its stage's name, with each of `options`, and with `out`.
    inputs: earlier stages; "stage/part" where no more than that part of its artifact is read (model.artifact).
    configs: stages whose configs it goes by, where it has none of its own.
    released: stages whose artifacts in the current release it reads too, by the option of this name; none where there
      is no release, or one of them is not in it.
    released_if: the stage's own setting without which it reads nothing of the release; with it, its artifact in the
      release stands while nothing else that it is made of has changed.
    options: what else `build` takes: "raw" (the raw folder), "raw_digest" (of `reads`), "workspace" (its folder),
      "store" (of examined images), "config", "configs", and where it runs: "engine", "master", "beam_args".
    reads: a function (folder, raw, hasher) -> {name: digest} of what the stage reads that no stage has made.
    stands: a function (folder, artifact, inputs) -> bool: whether what the stage did outside its artifact still stands.
    pinned: of a stage whose artifact stands as the current release has it, whatever its inputs are by now: a function
      (artifact, inputs) -> why it cannot be used with them, or None.  Another config makes it anew, and being asked.
    asked_by: the option of `courier run` that asks for it.
    reports: files of its artifact that are copied to the workspace's `reports`.
    revision: raised when the stage makes something else of the same inputs and config; tests/e2e/test_golden.py holds
      the digests of what each revision makes.
    """

    name: str
    build: str
    inputs: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    released_if: str = ""
    options: tuple[str, ...] = ()
    reads: str | None = None
    stands: str | None = None
    pinned: str | None = None
    asked_by: str = ""
    reports: tuple[str, ...] = ()
    revision: int = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """The stages among its inputs, without the parts."""
        return tuple(name.partition("/")[0] for name in self.inputs)


RELEASED: Final = "jobs.releases.current:released"  # (folder) -> the release that answers, as model.releases has it

STAGES: Final = (
    Stage(
        name="ingest",
        build="jobs.raw.ingest:build",
        options=("raw", "raw_digest", "workspace", "config"),
        reads="jobs.raw.identity:tables_inputs",
        stands="jobs.raw.profile_history:stands",  # what it saw of items is remembered, and was seen last
        revision=3,  # updated_at of items
    ),
    Stage(
        name="check",
        build="jobs.check:build",
        inputs=("ingest/events", "ingest/items"),
        configs=("sequences", "images"),
        options=("raw", "configs", "engine", "master"),
        reports=("check.json",),
        revision=3,  # earlier states of items
    ),
    Stage(
        name="sequences",
        build="jobs.sequences.build:build",
        inputs=("ingest/events",),
        revision=2,  # every row in a count
        options=("raw", "workspace", "config", "engine", "master", "beam_args"),
        reads="jobs.sequences.daily.log:sequences_inputs",
    ),
    Stage(
        name="images",
        build="jobs.images.pipeline:build",
        inputs=("ingest/items",),
        revision=4,  # the last of an item's states by updated_at
        options=("raw", "raw_digest", "store", "config", "beam_args"),
        reads="jobs.raw.identity:images_inputs",
        reports=("coverage.json", "coverage.html"),
    ),
    Stage(
        name="pretrain",
        build="model.courier.training.train:build",
        revision=2,  # counts of what is left out
        inputs=("sequences", "images/pictures"),
        options=("config",),
        pinned="jobs.releases.pinned:trained_too_late",
        asked_by="--encoder train",
    ),
    Stage(name="embed", build="model.courier.inference.embed:build", inputs=("pretrain", "images/pictures")),
    Stage(
        name="codebook",
        build="jobs.embeddings.codebook:build",
        inputs=("embed", "sequences"),
        options=("config",),
        released=("codebook", "cluster"),
        pinned="jobs.releases.pinned:trained_too_late",
        asked_by="--from codebook",
    ),
    Stage(
        name="cluster",
        build="jobs.embeddings.cluster:build",
        revision=4,  # the lookup of a server
        inputs=("embed", "codebook"),
    ),
    Stage(
        name="features",
        build="jobs.features.offline:build",
        revision=4,  # cluster IDs under their codebook
        inputs=("sequences", "images", "embed", "cluster"),
        options=("workspace", "master"),
        reads="jobs.raw.profile_history:history_inputs",
    ),
    Stage(
        name="materialize",
        build="jobs.features.materialize:build",
        revision=3,  # cluster IDs under their codebook, which it names
        inputs=("features",),
        options=("workspace",),
        stands="jobs.features.materialize:stands",
    ),
    Stage(name="index", build="jobs.embeddings.build_index:build", inputs=("embed",), options=("config",)),
    Stage(
        name="rows",
        build="jobs.features.training_rows:build",
        revision=3,  # names the codebook
        inputs=("sequences", "features", "materialize"),
        options=("workspace", "engine", "master"),
    ),
    Stage(
        name="ctr",
        build="model.ctr.train:build",
        revision=3,  # until when it was trained, and what began with the current release's
        inputs=("rows", "embed", "codebook"),
        options=("config",),
        released=("codebook", "ctr"),
        released_if="warm_start",
    ),
    Stage(
        name="evaluate",
        build="jobs.evaluation.evaluate:build",
        revision=2,  # what GAUC and NDCG are means over; NDCG null where pages show no alternatives
        inputs=("ctr", "rows", "embed", "sequences"),
        options=("raw", "raw_digest", "config"),
        reads="jobs.raw.identity:evaluation_inputs",
        reports=("evaluation.json", "evaluation.html"),
    ),
    Stage(
        name="release",
        build="jobs.releases.build:build",
        revision=3,  # names the codebook itself, not its artifact alone
        inputs=("images", "pretrain", "embed", "codebook", "cluster", "index", "materialize", "ctr", "evaluate"),
        options=("workspace",),
        stands="jobs.releases.current:stands",  # made current again by whoever runs its stages again
    ),
)
