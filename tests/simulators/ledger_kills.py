"""Kills a ledger with SIGKILL, at random moments or at a named point, and compares it with a diary kept elsewhere.

    python ledger_kills.py random WORK LEDGER KILLS SECONDS SEED [engine]   -> JSON: broken promises and figures
    python ledger_kills.py point WORK POINT                                 -> JSON: what the ledger holds, what a retry gets

A child answers rounds one after the other, asks for old rounds again, and notes what it did in files outside the ledger's folder:
TRAIN before the training yields anything, every byte of an answer on a wire as it goes out, SENT after its last one. With `engine`
the training is that of `sgps_privacy.engine` and the payload a whole reply; else it is random bytes, which needs no torch. The
parent kills it, restarts it and compares:
  P1 every TRAIN has a CHARGE: never less is recorded than was trained.   P2 no round is trained twice.
  P3 all answers for one round are the same bytes and receipt.            P4 every SENT has a COMMIT with that hash.
  P5 the chain verifies at every start.                                   P6 at most one charge is lost for each kill.
  P7 the charges never pass the budget.                                   P8 whatever was on the wire, cut off or not, is committed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
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

Work = Callable[[], bytes]  # makes a payload
CAP, DELTA = 8.0, 1e-5
SIGMA = 8.5  # epsilon 8 is reached after 200 rounds of one step


PIECE = 700  # bytes of an answer that go out at once
STAGES = ("starting", "opening the ledger", "CHARGE", "engine", "outbox", "COMMIT", "sending", "between rounds")
MOST_STAGES, MOST_SECONDS = 25, 5.0  # of one life of the child
seen = mmap.mmap(-1, 9)  # shared with the child: where it is, and how many stages it has begun


def at(name: str) -> None:
    seen[0] = STAGES.index(name)
    seen[1:9] = (int.from_bytes(seen[1:9], "big") + 1).to_bytes(8, "big")


def moment(chance: random.Random) -> None:
    """Waits for a random moment in the life of the child: some stages, however slow the machine is, and some milliseconds."""
    seen[1:9] = bytes(8)
    stages, end = chance.randint(0, MOST_STAGES), time.monotonic() + MOST_SECONDS
    while int.from_bytes(seen[1:9], "big") < stages and time.monotonic() < end:
        time.sleep(0.0003)
    time.sleep(chance.expovariate(1 / 0.003))


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


class Wire(Diary):
    """What left in one life of the child: for each answer its round and length, 16 bytes, and then its bytes, piece by piece."""

    def send(self, number: int, payload: bytes) -> None:
        data = number.to_bytes(8, "big") + len(payload).to_bytes(8, "big") + payload
        for start in range(0, len(data), PIECE):
            os.write(self.handle, data[start : start + PIECE])
            time.sleep(0.0003)

    @staticmethod
    def answers(path: Path) -> list[tuple[int, int, bytes]]:
        """Round, announced length, and the bytes that made it."""
        data, found = path.read_bytes() if path.exists() else b"", []
        while len(data) >= 16:
            number, size = (int.from_bytes(data[i : i + 8], "big") for i in (0, 8))
            found.append((number, size, data[16 : 16 + size]))
            data = data[16 + size :]
        return found


wire = Wire()


def random_payload() -> bytes:
    return os.urandom(3000)


def engine_payload() -> Callable[[], bytes]:
    """A round of the engine on three patients and fifteen numbers, encoded as the reply that would leave."""
    import torch

    from sgps_privacy import egress, statement
    from sgps_privacy.engine import PrivateRound
    from sgps_privacy.terms import Terms

    torch.set_num_threads(1)
    terms = Terms("episodes", SIGMA, 1.0, 1, (1.0,), (("w",),), 3)
    facts = statement.statement(
        terms, [Event(SIGMA, 1.0, 1)], delta=DELTA, cap=CAP, numbers=15, code_hash="c", plan_hash="p"
    )
    records = [{"x": torch.ones(3, 5) * i} for i in range(3)]

    def run() -> bytes:
        private = PrivateRound(terms, lambda theta, record: (theta["w"] * record["x"].to(theta["w"].dtype)).sum())
        found = private.run({"w": torch.zeros(3, 5)}, records, 3)
        return egress.encode(egress.accept(found, plan_id="p", code_hash="c", statement=facts))

    run()  # what torch loads at the first call, no child needs to load
    return run


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


def watched(ledger: Ledger) -> Ledger:
    """Says where the child is."""

    def says(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            at(name)
            return method(*args)

        return call

    for name, method in (("CHARGE", "charge"), ("outbox", "write_outbox"), ("COMMIT", "commit")):
        setattr(ledger, method, says(name, getattr(ledger, method)))
    return ledger


def child(kind: type[Ledger], folder: Path, first: int, echo: str | None, seed: int, work: Work) -> NoReturn:
    """Answers rounds from `first` on until it is killed, the budget is gone (exit 3) or something is wrong (exit 4)."""
    chance, number = random.Random(seed), first
    try:
        at("opening the ledger")
        ledger = watched(open_ledger(kind, folder))
        while True:
            wanted = number if chance.random() < 0.8 else max(1, number - chance.randint(0, 3))

            def train(wanted: int = wanted) -> bytes:
                at("engine")
                payload = work()
                diary.note("TRAIN", wanted, payload)
                return payload

            try:
                at("between rounds")
                payload, receipt = ledger.answer(order(wanted, echo), train)
                at("sending")
                wire.send(wanted, payload)
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


def campaign(
    kind: type[Ledger], place: Path, kills: int, seconds: float, seed: int, work: Work = random_payload
) -> tuple[list[str], Counter[str]]:
    """Broken promises (empty if none) and figures of one series of kills. work: what makes a payload."""
    chance, figures, wrong = random.Random(seed), Counter[str](), []
    place.mkdir(parents=True)
    folder, book, line = place / "ledger", place / "diary.txt", place / "wire"
    diary.open(book)
    end = time.monotonic() + seconds
    while figures["kills"] < kills and time.monotonic() < end and not wrong and not figures["budget reached"]:
        lines = [line.split() for line in book.read_text().splitlines()]
        echo = next((line[3] for line in reversed(lines) if line[0] == "SENT" and line[3] != "early"), None)
        line.unlink(missing_ok=True)
        wire.open(line)
        seen[0] = 0
        pid = os.fork()
        if pid == 0:
            child(kind, folder, max((int(line[1]) for line in lines), default=1), echo, chance.randrange(2**31), work)
        moment(chance)
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(wire.handle)
        figures["hot journal left"] += (folder / "ledger.sqlite-journal").exists()
        figures["torn outbox left"] += any(folder.rglob("*.tmp"))
        figures["kills"] += status == -signal.SIGKILL
        figures[f"killed: {STAGES[seen[0]]}"] += status == -signal.SIGKILL
        figures["budget reached"] += status == 3
        if status not in (3, -signal.SIGKILL):
            wrong.append(f"P5 the child stopped by itself ({status})")
        wrong += compare(folder, book, figures) + on_the_wire(folder, line, figures)
    os.close(diary.handle)
    return wrong, figures


def on_the_wire(folder: Path, line: Path, figures: Counter[str]) -> list[str]:
    """P8 for the last life of the child: each answer, or the part of it that went out, is what the ledger committed."""
    wrong = []
    with open_ledger(Ledger, folder) as ledger:
        commits = {e.round: e.facts for e in ledger.chain.entries("COMMIT")}
        for number, size, data in Wire.answers(line):
            figures["answers whole on the wire" if len(data) == size else "answers cut off on the wire"] += 1
            payload = ledger.outbox.read(commits[number]["charge"]) if number in commits else None
            if payload is None or len(payload) != size or not payload.startswith(data):
                wrong.append(f"P8 round {number}: {len(data)} bytes left that are not committed")
            elif hashlib.sha256(payload).hexdigest() != commits[number]["payload"]:
                wrong.append(f"P8 round {number}: the outbox holds other bytes than were committed")
    return wrong


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
        payload = engine_payload() if "engine" in sys.argv[7:] else random_payload
        wrong, figures = campaign(kind, work, kills, seconds, seed, payload)
        print(json.dumps({"wrong": wrong, "figures": figures}))


if __name__ == "__main__":
    main()
