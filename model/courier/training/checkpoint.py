"""Where a run was stopped: its tensors and numbers in one safetensors file, replaced whole; nothing is unpickled."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model import artifact, strict_json
from model.courier.training.array_cache import digest
from model.errors import CourierError

STATE = "state.safetensors"
FORMAT = 2


class CheckpointMismatch(CourierError):
    """The checkpoint is of another run; the message says how to go on."""


@dataclass(frozen=True, slots=True)
class State:
    """What a run needs to go on as if it had never stopped: tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The working folder of a run: its state after every so many steps, and its ArrayCache.

    identity: what the run depends on; a state is only read by a run of the same.
    """

    folder: Path
    identity: str
    every: int  # steps

    def write(self, state: State) -> None:
        """Replace the state: whoever is killed meanwhile leaves the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"format": FORMAT, "identity": self.identity, "facts": state.facts}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        artifact.write_whole(self.folder / STATE, save(tensors, {"state": strict_json.dumps(facts)}))

    def read(self) -> State | None:
        """The state that was written last; None where there is none.

        Raises CheckpointMismatch where it is damaged, or of another config, other data, another number of processes.
        """
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as opened:
                said = json.loads(opened.metadata()["state"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:  # as after a power cut: what a killed run leaves is whole
            raise CheckpointMismatch(f"{path} is damaged ({error}): remove {self.folder.name} to begin anew") from None
        if (said["format"], said["identity"]) != (FORMAT, self.identity):
            raise CheckpointMismatch(
                f"{self.folder} holds an unfinished run of another config, other data or another number of processes: "
                "repeat that run's command to finish it, or remove the folder"
            )
        return State(tensors, said["facts"])

    def sweep(self) -> None:
        """Remove what a killed writer left half done. For one process, before the others write."""
        sweep(self.folder)

    def remove(self) -> None:
        """The run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def checkpoint_folder(out: Path) -> Path:
    """Where lies the unfinished run that an artifact will come of."""
    return out.with_name(f"{out.name}.checkpoint")


def sweep(folder: Path) -> None:
    """Remove what killed writers of a folder left half done."""
    for part in folder.glob(f".*{artifact.PARTIAL}"):
        part.unlink()


def identity_of(config: Mapping[str, Any], inputs: Mapping[str, str], processes: int, device: str) -> str:
    """The hex digest of all that the course of a run depends on."""
    return digest(config=dict(config), inputs=dict(inputs), processes=processes, device=device)
