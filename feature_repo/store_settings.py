"""What feature_store.yaml says of the online store, read without Feast, whose import takes seconds."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from feature_repo.contract import VIEWS, WORKSPACE
from feature_repo.errors import CourierError
from feature_repo.packed.database import Database, open_database
from feature_repo.packed.reader import PackedView

FILE_VARIABLE: Final = "FEAST_FS_YAML_FILE_PATH"  # Feast's: the file that stands in for the repository's own
REPOSITORY: Final = Path(__file__).parent  # where Feast, too, begins a relative path
PACKED: Final = "feature_repo.online_store.PackedOnlineStore"

_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)


class StoreSettingsUnreadable(CourierError):
    """feature_store.yaml is not what Feast would read."""


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    """The online store that a workspace's feature_store.yaml names.

    section: `online_store` of the file, its variables filled in.
    """

    project: str
    section: Mapping[str, Any]

    @property
    def is_packed(self) -> bool:
        """Whether it is the store of packed rows; else it is one of Feast's own."""
        return bool(self.section.get("type") == PACKED)

    def identity(self, below: Path | None = None) -> str:
        """16 hex digits that are the same for the same store; the section may hold a password.

        below: a folder whose name does not count, so that a store in it is the same after it has moved.
        """
        named = repr((self.project, sorted(self.section.items())))
        named = named.replace(str(below.absolute()), "") if below else named
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def database(self) -> Database:
        """The database of packed rows. Raises ConnectionUnknown."""
        return open_database(str(self.section["connection_string"]), REPOSITORY)

    def packed_views(self) -> dict[str, PackedView]:
        """The contract's views as the database holds them, by their names."""
        return {view.name: PackedView.of(view, self.project) for view in VIEWS}


def read_settings(workspace: Path) -> OnlineSettings:
    """The online store of a workspace, by the file that Feast would read for it.

    Raises StoreSettingsUnreadable, and OSError where there is no such file.
    """
    path = Path(os.environ[FILE_VARIABLE]) if FILE_VARIABLE in os.environ else REPOSITORY / "feature_store.yaml"
    variables = {**os.environ, WORKSPACE: str(workspace.absolute())}
    try:
        said = yaml.safe_load(filled_in(path.read_text("utf-8"), variables))
        section = said.get("online_store", "sqlite")  # Feast's own default
        section = {"type": section} if isinstance(section, str) else section
        settings = OnlineSettings(str(said["project"]), {} if section is None else section)
        if settings.is_packed and "connection_string" not in settings.section:
            raise KeyError("connection_string")
    except (yaml.YAMLError, AttributeError, KeyError) as error:
        lacks = f"names no {error.args[0]}" if isinstance(error, KeyError) else "is no such YAML"
        raise StoreSettingsUnreadable(
            f"{path} {lacks}: write it in the form of {REPOSITORY.name}/feature_store.yaml"
        ) from None
    return settings


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """The text with $NAME and ${NAME} replaced, the unknown left as they stand: os.path.expandvars of these."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2] or "", found[0]), text)
