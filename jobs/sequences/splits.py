"""Where the periods of a log begin and end."""

from dataclasses import asdict, dataclass

from jobs.rules.events import EPOCH, MICROSECOND


@dataclass(frozen=True, slots=True)
class Splits:
    """Where the periods begin and end, in microseconds since 1970; each is half open."""

    start: int
    valid_start: int
    test_start: int
    end: int

    def facts(self) -> dict[str, str]:
        """The same as ISO moments."""
        return {name: (EPOCH + us * MICROSECOND).isoformat() for name, us in asdict(self).items()}
