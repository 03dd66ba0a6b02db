"""Audit of the step that ships: `python -m bench.privacy_audit --out DIR` writes results.json and results.md.

Lower bounds of mu and epsilon from attacks on the bytes that leave, beside what the site's own statement claims; every claim of
the step as a measurement; every planted fault of the tests with the checks that catch it. Exit status 1 when a lower bound exceeds
its claim, a claim does not hold or a fault escapes; 2 when nothing could be run. `--quick` is the short form for CI."""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench._step import AS_PLANNED, DELTA, Rounds, SiteFolder, Step, steps
from bench._step_checks import CHECKS, Caught, World, caught, verdicts
from bench._step_games import Bound, game, one_run
from sgps.code import contributor_code
from sgps.errors import SgpsError
from sgps.files import write_atomic
from sgps.shipped import shipped_release
from sgps_privacy import accountant, audit, egress
from sgps_privacy.audit import Verdict
from sgps_privacy.engine import PrivateRound

ROOT = Path(__file__).resolve().parent.parent
FAULTS = {"test_privacy_audit.py": "PLANTED", "test_bench_privacy_audit.py": "PLANTED_IN_THE_STEP"}
EPSILONS = (1.0, 3.0, 8.0)
CHECKED = 3.0  # the budget at which every check and fault runs under all terms
TRIALS = {
    False: {1.0: 12_000, 3.0: 6_000, 8.0: 4_000},
    True: {1.0: 60, 3.0: 100, 8.0: 100},
}  # in each world; True is quick
CANARIES = {False: 4000, True: 1000}


def faults() -> dict[type, str]:
    """The planted faults of the tests -> the check that names each, in the audit problem of `sgps_privacy.audit` or in the step."""
    found: dict[type, str] = {}
    for file, name in FAULTS.items():
        spec = importlib.util.spec_from_file_location(f"planted_{Path(file).stem}", ROOT / "tests" / "unit" / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= getattr(module, name)
    return found


def rounds_with(fault: type) -> Rounds:
    """A class of rounds with the fault, which is one itself or an optimizer."""
    return fault if issubclass(fault, PrivateRound) else type("Planted", (PrivateRound,), {"optimizer_class": fault})


def charge(folder: SiteFolder, step: Step, epsilon: float) -> Verdict:
    """A whole round through the ledger: what is charged is the sigma of the statement, and epsilon stays within the budget."""
    train, _ = step.trainer(folder.records)
    with folder.ledger(epsilon) as ledger:
        payload, _ = ledger.answer(folder.order(step.plan, step.terms, step.start), train)
        events = ledger.spent("first")
    said = egress.decode(payload).statement
    total = accountant.epsilon(events, DELTA)
    same = [[e.sigma, e.q, e.steps] for e in events] == said["events"] and said["sigma"] == events[0].sigma
    return Verdict(
        same and len(events) == 1 and total <= said["epsilon"] <= epsilon,
        f"sigma {events[0].sigma:g} charged, {said['sigma']:g} stated; epsilon {total:.4f}, stated {said['epsilon']:.4f}",
    )


def fault_row(fault: type, named: str, ways: Sequence[Step], world: World, quick: bool) -> dict[str, Any]:
    """Where one fault is caught. quick: by the check that names it alone, and in one place."""
    rounds, problem = rounds_with(fault), None
    in_problem = fault.__module__ == f"planted_{Path(next(iter(FAULTS))).stem}"
    if in_problem:
        verdict = audit.CHECKS[named](rounds)
        problem = None if verdict.holds else {"check": named, "figures": verdict.figures}
    if quick:
        here = Caught({}, []) if in_problem else caught(rounds, ways[:1], world, [named])
    else:
        here = caught(rounds, ways, world)
    step = [{"check": c, "terms": t, "figures": v.figures} for (c, t), v in here.by.items()]
    return {"fault": fault.__name__, "problem": problem, "step": step, "cannot_run": here.dead}


def measure(folder: SiteFolder, rounds: Rounds, quick: bool) -> dict[str, Any]:
    """Everything, printed as it comes."""
    ways = {e: steps(folder, e) if e == CHECKED else [folder.step(e)] for e in EPSILONS}
    planned = {e: w[0].planted(rounds) for e, w in ways.items()}
    world = World(folder.records, 6 if quick else 100, 0)
    others = [r for r in folder.records if r is not None][:3]
    bounds: list[Bound] = []
    for e, step in planned.items():
        setting = f"epsilon {e:g}"
        bounds += game(step, others, TRIALS[quick][e], setting)
        bounds.append(one_run(step, CANARIES[quick], setting))
        print("\n".join(b.line() for b in bounds[-4:]), flush=True)
    checks: list[dict[str, Any]] = []
    only = [name for name in CHECKS if name != "game"]  # it has just been played
    for e, way in ways.items():
        if quick and e != CHECKED:
            continue
        found: Mapping[tuple[str, str], Verdict] = verdicts([s.planted(rounds) for s in way], world, only)
        found = {**found, ("charge", AS_PLANNED): charge(folder, planned[e], e)}
        checks += [{"epsilon": e, "check": c, "terms": t, **asdict(v)} for (c, t), v in found.items()]
    for c in checks:
        word = "holds" if c["holds"] else "DOES NOT HOLD"
        print(f"epsilon {c['epsilon']:g}, {c['terms']}: {c['check']} {word}: {c['figures']}", flush=True)
    general = {} if quick else audit.run(rounds)
    small = World(folder.records, 5 if quick else 8, 60 if quick else 250)
    rows = []
    for fault, named in faults().items():
        rows.append(fault_row(fault, named, ways[CHECKED], small, quick))
        print(f"{fault.__name__}: {where_caught(rows[-1])}", flush=True)
    return {
        "bounds": [{**asdict(b), "holds": b.holds} for b in bounds],
        "checks": checks,
        "general": [{"check": n, **asdict(v)} for n, v in general.items()],
        "faults": rows,
        "terms": [
            {"terms": s.name, "epsilon": e, "accepted": s.accepted, **s.terms.to_mapping()}
            for e, w in ways.items()
            for s in w
        ],
        "numbers": planned[CHECKED].numbers,
    }


def where_caught(row: Mapping[str, Any]) -> str:
    """One line."""
    names = list(dict.fromkeys(c["check"] for c in row["step"]))
    parts = [f"in the step by {', '.join(names)}"] if names else []
    parts += [f"in the audit problem by {row['problem']['check']}"] if row["problem"] else []
    return "caught " + " and ".join(parts) if parts else "NOT CAUGHT"


def report(found: Mapping[str, Any]) -> str:
    """results.md."""
    size = f"{found['numbers']} numbers ({found['classes']} classes, {found['width']} coordinates)"
    made = (
        f"code {found['code'][:12]}, base network {found['encoder'][:12]}, {found['cpu_seconds']:.0f} processor-seconds"
    )
    lines = [
        f"{size}, delta {DELTA:g}; {made}.",
        "",
        "| setting | attack | | lower bound | claimed | confidence | runs | presumes |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {b['setting']} | {b['attack']} | {b['quantity']} | {b['lower']:.3f}{'' if b['holds'] else ' **above the claim**'} | "
            f"{b['claimed']:.3f} | {100 * b['confidence']:g} % | {b['runs']} | {b['presumes']} |"
            for b in found["bounds"]
        ),
        "",
        "| budget | terms | check | | figures |",
        "|---|---|---|---|---|",
        *(
            f"| {c['epsilon']:g} | {c['terms']} | {c['check']} | {'holds' if c['holds'] else '**fails**'} | {c['figures']} |"
            for c in found["checks"]
        ),
        *(
            f"| | audit problem | {c['check']} | {'holds' if c['holds'] else '**fails**'} | {c['figures']} |"
            for c in found["general"]
        ),
        "",
        "| planted fault | caught in the step by | the first figures | caught in the audit problem by |",
        "|---|---|---|---|",
    ]
    for row in found["faults"]:
        by = list({c["check"]: f"{c['check']} ({c['terms']})" for c in reversed(row["step"])}.values())[::-1]
        none = "cannot run on these records" if row["cannot_run"] else "-"
        figures = row["step"][0]["figures"] if by else ""
        problem = f"{row['problem']['check']}: {row['problem']['figures']}" if row["problem"] else "-"
        lines.append(f"| {row['fault']} | {', '.join(by) or none} | {figures} | {problem} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, rounds: Rounds = PrivateRound) -> int:
    """Exit status. rounds: what is audited."""
    parser = argparse.ArgumentParser(prog="python -m bench.privacy_audit", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and results.md")
    parser.add_argument(
        "--quick", action="store_true", help="the short form: fewer runs, and for each fault the check that names it"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begun = time.process_time()
    try:
        release = shipped_release()
        width = len(release.memory().coordinates.directions)
        with tempfile.TemporaryDirectory() as folder:
            site = SiteFolder(Path(folder), release, 7 if options.quick else 12, EPSILONS)
            found = measure(site, rounds, options.quick)
        options.out.mkdir(parents=True, exist_ok=True)
    except (SgpsError, OSError) as error:
        print(f"the audit cannot run: {error}", file=sys.stderr)
        return 2
    found |= {
        "classes": len(release.manifest.classes),
        "width": width,
        "code": contributor_code(),
        "quick": options.quick,
    }
    found |= {"encoder": release.manifest.encoder_sha256, "delta": DELTA, "cpu_seconds": time.process_time() - begun}
    measured = [*found["bounds"], *found["checks"], *found["general"]]
    found["holds"] = all(x["holds"] for x in measured) and all(f["step"] or f["problem"] for f in found["faults"])
    write_atomic(options.out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(options.out / "results.md", report(found).encode())
    print("every claim holds and every fault is caught" if found["holds"] else "THE AUDIT FAILS: see results.md")
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
