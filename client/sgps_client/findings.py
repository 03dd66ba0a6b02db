"""One line of `check`: what was looked at, how it is, and the fix."""

from dataclasses import dataclass
from typing import Any

from sgps.command import of_disk
from sgps.errors import SgpsError
from sgps_privacy.errors import Refused

GOOD, NOTE, BAD = "ok", "note", "problem"
_FIX = {"keys": "install the kit again", "cohort": "correct the cohort in the settings"}  # where the fault names none
_MARK = {GOOD: "  ok      ", NOTE: "  note    ", BAD: "  PROBLEM "}


@dataclass(frozen=True)
class Finding:
    """area: what was looked at. do: the fix, for a problem. exit_code: of the kind of problem."""

    area: str
    state: str
    what: str
    do: str = ""
    exit_code: int = 1

    @property
    def bad(self) -> bool:
        return self.state == BAD

    def facts(self) -> dict[str, Any]:
        return {"area": self.area, "state": self.state, "what": self.what, "do": self.do}

    def line(self) -> str:
        return f"{_MARK[self.state]}{self.area:<9} {self.what}{f' - {self.do}' if self.do else ''}"


def good(area: str, what: str) -> Finding:
    return Finding(area, GOOD, what)


def raised(area: str, error: Exception) -> Finding:
    """A problem from a fault that was raised."""
    if isinstance(error, SgpsError):
        where = f"{error.where}: " if error.where else ""
        return Finding(area, BAD, f"{where}{error.what}", error.do or _FIX.get(area, ""), error.exit_code)
    if isinstance(error, Refused):
        return Finding(area, BAD, error.detail or error.code, exit_code=7)
    if isinstance(error, OSError):
        return Finding("disk", BAD, *of_disk(error), exit_code=7)
    return Finding(area, BAD, str(error) or type(error).__name__)
