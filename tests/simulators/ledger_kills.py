"""Kills a ledger with SIGKILL, at random moments or at a named point, and compares it with a diary kept elsewhere.

    python ledger_kills.py random WORK LEDGER KILLS SECONDS SEED     -> JSON: broken promises and figures
    python ledger_kills.py point WORK POINT                          -> JSON: what the ledger holds, what a retry gets

A child answers rounds one after the other, asks for old rounds again, and notes what it did in a file outside the ledger's
folder (TRAIN before the training yields anything, SENT after the answer). The parent kills it, restarts it and compares:
  P1 every TRAIN has a CHARGE: never less is recorded than was trained.   P2 no round is trained twice.
  P3 all answers for one round are the same bytes and receipt.            P4 every SENT has a COMMIT with that hash.
  P5 the chain verifies at every start.                                   P6 at most one charge is lost for each kill.
  P7 the charges never pass the budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sgps_privacy import durable
from sgps_privacy.accountant import epsilon
from sgps_privacy.chain import Chain
from sgps_privacy.errors import Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order

CAP, DELTA = 8.0, 1e-5
SIGMA = 8.5  # epsilon 8 is reached after 200 rounds of one step


def order(number: int, echo: str | None = None) -> Order:
    return Order("federation", number, f"plan {number}", "episodes", Event(SIGMA, 1.0, 1), 1.0, "cohort", echo)


class Diary:
    """Append-only file. One write() is in the kernel before it returns and outlives a kill."""

    handle = -1

    def open(self, path: Path) -> None:
        self.handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)

    def note(self, word: str, number: int, payload: bytes, receipt: str = "-") -> None:
        os.write(self.handle, f"{word} {number} {hashlib.sha256(payload).hexdigest()} {receipt}\n".encode())


diary = Diary()


class ChargesLate(Ledger):
    """Broken: trains first."""

    def answer(self, order: Order, train: Callable[[], bytes]) -> tuple[bytes, str]:
        early = train() if self._find(order.federation, order.round, "CHARGE") is None else b""
        return super().answer(order, lambda: early)


class ChargesAfterSending(Ledger):
    """Broken: gives the bytes away, and charges for them afterwards."""

    def answer(self, order: Order, train: Callable[[], bytes]) -> tuple[bytes, str]:
        if self._find(order.federation, order.round, "CHARGE") is None:
            payload = train()
            diary.note("SENT", order.round, payload, "early")
            return super().answer(order, lambda: payload)
        return super().answer(order, train)


class TrainsAgain(Ledger):
    """Broken: a round that was charged and lost is trained again under the old charge."""

    def answer(self, order: Order, train: Callable[[], bytes]) -> tuple[bytes, str]:
        charge = self._find(order.federation, order.round, "CHARGE")
        if charge is not None and self.outbox.read(charge.hash) is None:
            self.write_outbox(charge.hash, train())
        return super().answer(order, train)


class SendsEarly(Ledger):
    """Broken: gives the bytes away before the outbox has them, and takes the loss for a new start."""

    def answer(self, order: Order, train: Callable[[], bytes]) -> tuple[bytes, str]:
        found = self._find(order.federation, order.round, "CHARGE")
        charge = self.charge(order) if found is None else found.hash
        if self.outbox.read(charge) is None:
            payload = train()
            diary.note("SENT", order.round, payload, "early")
            self.write_outbox(charge, payload)
        return super().answer(order, train)


class OutboxInPlace(Ledger):
    """Broken: writes the outbox file under its final name, in two pieces."""

    def write_outbox(self, charge: str, payload: bytes) -> None:
        with open(self.outbox.path(charge), "wb", buffering=0) as file:
            file.write(hashlib.sha256(payload).digest())
            os.fsync(file.fileno())
            file.write(payload)


KINDS = {
    kind.__name__: kind for kind in (Ledger, ChargesLate, ChargesAfterSending, TrainsAgain, SendsEarly, OutboxInPlace)
}


def open_ledger(kind: type[Ledger], folder: Path) -> Ledger:
    ledger = kind(folder)
    ledger.open_cohort("cohort", ["1", "2", "3"], CAP, DELTA)
    return ledger


def child(kind: type[Ledger], folder: Path, first: int, echo: str | None, seed: int) -> NoReturn:
    """Answers rounds from `first` on until it is killed, the budget is gone (exit 3) or something is wrong (exit 4)."""
    chance, number = random.Random(seed), first
    try:
        ledger = open_ledger(kind, folder)
        while True:
            wanted = number if chance.random() < 0.8 else max(1, number - chance.randint(0, 3))

            def train(wanted: int = wanted) -> bytes:
                payload = os.urandom(3000)
                diary.note("TRAIN", wanted, payload)
                return payload

            try:
                payload, receipt = ledger.answer(order(wanted, echo), train)
                diary.note("SENT", wanted, payload, receipt)
                echo = receipt
            except Refused as refusal:
                if refusal.code == "budget":
                    os._exit(3)
                if refusal.code != "round_lost":
                    os._exit(4)
            number = max(number, wanted + 1)
    except BaseException:  # noqa: BLE001  whatever it is, the parent must hear of it
        os._exit(4)


def campaign(kind: type[Ledger], work: Path, kills: int, seconds: float, seed: int) -> tuple[list[str], Counter[str]]:
    """Broken promises (empty if none) and figures of one series of kills."""
    chance, figures, wrong = random.Random(seed), Counter[str](), []
    work.mkdir(parents=True)
    folder, book = work / "ledger", work / "diary.txt"
    diary.open(book)
    end = time.monotonic() + seconds
    while figures["kills"] < kills and time.monotonic() < end and not wrong and not figures["budget reached"]:
        lines = [line.split() for line in book.read_text().splitlines()]
        echo = next((line[3] for line in reversed(lines) if line[0] == "SENT" and line[3] != "early"), None)
        pid = os.fork()
        if pid == 0:
            child(kind, folder, max((int(line[1]) for line in lines), default=1), echo, chance.randrange(2**31))
        time.sleep(chance.uniform(0.002, 0.080))
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        figures["hot journal left"] += (folder / "ledger.sqlite-journal").exists()
        figures["torn outbox left"] += any(folder.rglob("*.tmp"))
        figures["kills"] += status == -signal.SIGKILL
        figures["budget reached"] += status == 3
        if status not in (3, -signal.SIGKILL):
            wrong.append(f"P5 the child stopped by itself ({status})")
        wrong += compare(folder, book, figures)
    os.close(diary.handle)
    return wrong, figures


def compare(folder: Path, book: Path, figures: Counter[str]) -> list[str]:
    """The promises that the ledger on disk breaks, measured against the diary."""
    try:
        with open_ledger(Ledger, folder) as ledger:
            charged = {entry.round for entry in ledger.chain.entries("CHARGE")}
            commits = {e.round: (e.facts["payload"], e.hash) for e in ledger.chain.entries("COMMIT")}
            over = epsilon(ledger.spent("cohort"), DELTA) > CAP
    except Refused as refusal:
        return [f"P5 {refusal.code}"]
    wrong = ["P7 over budget"] if over else []
    trained, sent = Counter[int](), defaultdict(set)
    for line in book.read_text().splitlines():
        word, number, digest, receipt = line.split()
        if word == "TRAIN":
            trained[int(number)] += 1
        else:
            sent[int(number)].add((digest, receipt))
    wrong += [f"P1 round {n} trained, not charged" for n in trained if n not in charged]
    wrong += [f"P2 round {n} trained {k} times" for n, k in trained.items() if k > 1]
    wrong += [f"P3 round {n}: {len(s)} different answers" for n, s in sent.items() if len(s) > 1]
    wrong += [f"P4 round {n} sent, not committed" for n, s in sent.items() if commits.get(n) not in s]
    lost = charged - set(trained)
    if len(lost) > figures["kills"]:
        wrong.append(f"P6 {len(lost)} charges without training after {figures['kills']} kills")
    found = {"charged": charged, "trained": trained, "committed": commits, "charged, not trained": lost}
    for name, rounds in {**found, "trained, never sent": set(trained) - set(sent)}.items():
        figures[name] = len(rounds)
    return wrong


POINTS: dict[str, tuple[object, str, str]] = {
    "before CHARGE": (Ledger, "charge", "before"),
    "inside the CHARGE transaction": (Chain, "append", "after"),
    "after CHARGE": (Ledger, "charge", "after"),
    "before the outbox file": (Ledger, "write_outbox", "before"),
    "temporary file written, not renamed": (durable.os, "replace", "before"),
    "outbox renamed, before COMMIT": (Ledger, "commit", "before"),
    "after COMMIT, before sending": (Ledger, "commit", "after"),
}


def point(work: Path, place: str) -> dict[str, object]:
    """Kills one round at a named point; what the ledger holds then, and what the same plan gets from a new process."""
    owner, method, when = POINTS[place]
    open_ledger(Ledger, work / "ledger").close()
    pid = os.fork()
    if pid == 0:
        ledger, genuine = open_ledger(Ledger, work / "ledger"), getattr(owner, method)

        def dying(*args: object, **kwargs: object) -> None:
            if when == "after":
                genuine(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, method, dying)
        ledger.answer(order(1), lambda: b"first")
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with open_ledger(Ledger, work / "ledger") as ledger:
        held = [entry["kind"] for entry in ledger.history() if entry["kind"] != "COHORT"]
        try:
            again = ledger.answer(order(1), lambda: b"second")[0].decode()
        except Refused as refusal:
            again = refusal.code
        return {"killed": killed, "held": held, "again": again, "charges": len(ledger.spent("cohort"))}


def main() -> None:
    what, work = sys.argv[1], Path(sys.argv[2])
    if what == "point":
        print(json.dumps(point(work, sys.argv[3])))
    else:
        kind, kills, seconds, seed = KINDS[sys.argv[3]], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
        wrong, figures = campaign(kind, work, kills, seconds, seed)
        print(json.dumps({"wrong": wrong, "figures": figures}))


if __name__ == "__main__":
    main()
