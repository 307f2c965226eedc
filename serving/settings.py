"""What the environment may say to a serving process; the only module of serving that reads it."""

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.errors import CourierError


class SettingsRefused(CourierError):
    """A setting has a value that it cannot have; the message names the variable."""


class Settings(BaseSettings):
    """Each field is read from COURIER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="COURIER_", extra="ignore", frozen=True)

    workspace: Path = Path("workspace")
    releases: str | None = None  # the database of releases, an SQLAlchemy URL; None: SQLite in the workspace
    artifacts: str | None = None  # a folder or a URL from where artifacts are fetched that the workspace lacks
    max_upload_bytes: int = Field(default=10_000_000, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    request_log: Path | None = None  # the folder of logged requests; None: `request_log` in the workspace
    request_log_rate: float = Field(default=0.0, ge=0, le=1)  # the share of ranking requests that is logged
    request_log_bytes: int = Field(default=1_000_000_000, ge=1)  # of all its files; the oldest are removed
    request_log_seconds: float = Field(default=60.0, gt=0)  # after which what was gathered is written
    request_log_key: SecretStr | None = Field(default=None, min_length=16)  # users' ids are hashed with it


def database_url(settings: Settings) -> str:
    """The SQLAlchemy URL of the database of releases."""
    from model.release_database import url_in  # SQLAlchemy takes half a second

    return settings.releases or url_in(settings.workspace)


def read_settings(**given: Any) -> Settings:
    """The settings: what is given and not None, then the environment, then the defaults. Raises SettingsRefused."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "COURIER_" + str(first["loc"][0]).upper()
        raise SettingsRefused(f"{name}={first['input']!r} will not do: {first['msg']}") from None
