"""Errors that a person reads: one line that says what is wrong, where, and what to do.

SgpsError                 exit code 1
├── InputError            2   a file, image, table or argument cannot be used
├── ConfigError           3   a setting is missing, unknown or not allowed
├── SignatureError        4   a signature, hash or key does not fit: nothing was used
├── RefusedError          5   the site's own rules or budget say no
├── NetworkError          6   the coordinator cannot be reached
├── StateError            7   files on disk contradict each other, or another process holds them
└── StoppedError        130   Ctrl-C or SIGTERM, where a word is due about what was begun
"""

from collections.abc import Sequence


class SgpsError(Exception):
    """Something a person can mend. `str()` is one line; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", do: str = "") -> None:
        """what: the fault; where: file, row or field; do: the next step."""
        self.what, self.where, self.do = what, str(where), do
        parts = [f"{self.where}: {what}" if self.where else what, do]
        super().__init__(" - ".join(" ".join(p.split()) for p in parts if p))


class InputError(SgpsError):
    exit_code = 2


class ConfigError(SgpsError):
    """each: one error for each fault, where a file has several."""

    exit_code = 3
    each: "tuple[ConfigError, ...]" = ()

    @classmethod
    def of(cls, faults: "Sequence[ConfigError]") -> "ConfigError":
        """The only fault, or one error that names them all."""
        if len(faults) == 1:
            return faults[0]
        error = cls("; ".join(map(str, faults)))
        error.each = tuple(faults)
        return error


class SignatureError(SgpsError):
    exit_code = 4


class RefusedError(SgpsError):
    exit_code = 5


class NetworkError(SgpsError):
    exit_code = 6


class StateError(SgpsError):
    exit_code = 7


class StoppedError(SgpsError):
    exit_code = 130
