"""What goes in and out: the same forms for the command line's --json and for HTTP."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

MAX_CANDIDATES = 1_000  # items in one ranking; a page shows tens
ReleaseId = Annotated[str, Field(description="the release that answered")]
Degraded = Annotated[str | None, Field(description="null, or why this answer is poorer than it should be")]


class Found(BaseModel):
    """An item that looks like the query."""

    item_id: str
    score: float = Field(description="cosine of the two images' vectors, in -1..1; 1 is the same image")
    title: str | None
    category: str | None
    image_uri: str | None
    same_image: bool = Field(description="pixel for pixel the query's image")
    duplicate_of: str | None = Field(description="the first item that has this item's image, if another has")


class Ranked(BaseModel):
    """A candidate and its predicted click probability."""

    item_id: str
    score: float | None = Field(description="click probability in 0..1; null where it is not defined")
    known: bool | None = Field(description="whether the feature store knows the item; null where it could not be asked")


class SearchAnswer(BaseModel):
    """Look-alikes, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "results": [
                    {
                        "item_id": "i00042",
                        "score": 0.943127,
                        "title": "striped mug",
                        "category": "mug",
                        "image_uri": "images/i00042.png",
                        "same_image": False,
                        "duplicate_of": None,
                    }
                ],
                "release": "r0123456789ab",
                "degraded": None,
            }
        }
    )
    results: list[Found]
    release: ReleaseId
    degraded: Degraded = None


class RankAnswer(BaseModel):
    """The candidates, likeliest click first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "results": [{"item_id": "i00042", "score": 0.187, "known": True}],
                "release": "r0123456789ab",
                "degraded": None,
            }
        }
    )
    results: list[Ranked]
    release: ReleaseId
    degraded: Degraded = None


class RankRequest(BaseModel):
    """Whose candidates to rank, and as of when."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"user_id": "u00007", "item_ids": ["i00042", "i00007"]}}
    )
    user_id: str = Field(min_length=1)
    item_ids: list[str] = Field(
        min_length=1, max_length=MAX_CANDIDATES, description="of any length; one that nobody knows costs itself alone"
    )
    as_of: AwareDatetime | None = Field(
        default=None, description="the moment that ages are counted to; null is now. Stored features are the newest."
    )


class Refusal(BaseModel):
    """Why a request was refused, in one sentence."""

    detail: str


class Ready(BaseModel):
    """What a ready process answers with."""

    status: str
    release: str
    released_at: datetime
    items: int = Field(description="items that a search can find")
