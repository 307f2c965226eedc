"""What fetching an image reference gives: its bytes, or the reason why there are none."""

from dataclasses import dataclass

from model.errors import CourierError


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of a reference, and a short text that differs once they may have changed; "" where nothing tells."""

    data: bytes
    fingerprint: str


class NotFetched(CourierError):
    """The reference gives no bytes; `reason` is a code of jobs.rules.items.STATUS_OF, the message one sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
