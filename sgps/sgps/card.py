"""MODEL_CARD.md of a classifier: what it is, what it saw, how far to trust it, in plain words."""

from sgps.record import Record


def card(r: Record) -> str:
    """Markdown. Figures come from the record; nothing is said that it does not hold."""
    o, c = r.origin, r.calibration
    one = c.named == 1
    total = c.measured[0]
    level = f"{c.false_alarms:.0%}"
    lines = [
        f"# Classifier for {', '.join(d.label for d in o.diseases)}",
        "",
        "**This folder is patient data.** Its weights are made from the exemplar, and the exemplar's features can be read back from",
        "them. Keep it at the site, do not upload it, delete it as you would delete the picture.",
        "",
        "It is for research. It is not a medical device and decides nothing about a patient.",
        "",
        "## What it was made from",
        "",
        *(_disease(d.label, d.id, d.exemplars, d.own, d.worth) for d in o.diseases),
        *(f'  Text of {d.label}: "{d.text}"' for d in o.diseases),
        f"* Rivals from the public reference bank: {', '.join(r.labels[c.named :]) or 'none'}.",
        f"* Release `{o.release}` ({o.release_sha256[:16]}), reference bank {o.bank_sha256[:16]}; judged beside public pictures of the kind: {o.domain}.",
        (
            f"* Network: timm `{r.architecture}`, {r.size} x {r.size} pixels, {len(r.labels)} outputs, synthesized in"
            f" {o.seconds['weights']:.1f} s without training."
        ),
        (
            f"* Learned parts of the generator that were on: {', '.join(o.learned) or 'none (base network and prototypes)'}."
            f" Centred features of the exemplars before and after: cosine {o.cosine:.3f}."
        ),
        "",
        "## How far to trust it",
        "",
        (
            f"* Stated false-alarm level {level}: a claim is accepted where at most that share of {len(c.negatives)} public negatives"
            " scores as high (split conformal). This bounds false alarms only for patients like those of the bank:"
            f" {', '.join(o.negatives)}."
        ),
        (
            f"* Measured on {total.n} public negatives that were kept apart: {total.rate:.1%} false alarms"
            f" (95 % interval {total.low:.1%} to {total.high:.1%})."
        ),
        *(f"  * {s.name}: {s.hits} of {s.n}" for s in c.measured[1:]),
        (
            "* **Sensitivity: unknown.** Nobody has measured how many patients with the disease it finds. Measure it with"
            " `sgps-client evaluate` before you rely on it."
        ),
        (
            f"* Probability: {_probability(one)} It was calibrated on {len(o.rehearsed)} public classes that played the "
            f"{'disease' if one else 'diseases'} in turn; the base network has seen lesions of some of them, so it is rather too sure than"
            " not sure enough."
        ),
        (
            '* "None of these" is an answer: a picture of another kind, one like none of the outputs, or a disease that leads without'
            " passing the threshold. **Do not rely on it to notice a disease that is no output**: most pictures of one, often nearly all,"
            " get the name of an output."
        ),
        *_kinds(r),
        "",
        "## How to use it without this software",
        "",
        "```python",
        "import timm, safetensors.torch",
        f'net = timm.create_model("{r.architecture}", num_classes={len(r.labels)}).eval()',
        'net.load_state_dict(safetensors.torch.load_file("classifier.safetensors"), strict=True)',
        "```",
        "",
        (
            f"Input: the middle square of the picture, resized to {r.size} x {r.size} (bicubic, antialiased), (x - mean) / std with mean"
            f" {list(r.mean)} and std {list(r.std)}, x in 0..1."
        ),
        f"Logits l are averaged over the {r.views} flips and quarter turns. Outputs: {', '.join(r.labels)}.",
        f"Score of output c: `{c.formula}`.",
        (
            f"A claim is accepted when the score is above {c.threshold:.4f}, the largest logit is at least {c.least:.4f}, and the picture"
            " is of no other kind."
        ),
        *_other_kind(r),
        "",
        "## Limits",
        "",
        "* Made from very few pictures; another camera, skin colour or body site may change everything.",
        "* Scores compare the disease with its rivals only. A disease that is not among them can look like any of the outputs.",
        *(f"* {note}" for note in r.notes),
        "",
        "## Licence and provenance",
        "",
        f"Licence of the release: {o.licence}. Public image sets behind it:",
        "",
        *(f"* {p['name']} ({p['licence']}; {p['source']}): {p['used_for']}" for p in o.provenance),
        "",
    ]
    return "\n".join(lines)


def _disease(label: str, known: str | None, exemplars: int, own: int, worth: float) -> str:
    parts = [f"{exemplars} exemplar{'s' if exemplars > 1 else ''}"]
    if own:
        parts.append(f"{own} of the site's own patients")
    parts.append(f"class memory worth {worth:.1f} patients" if worth else "no row of the class memory")
    return f"* {label} ({f'catalogue: {known}' if known else 'not in the catalogue'}): {', '.join(parts)}."


def _kinds(r: Record) -> list[str]:
    """What was measured of other kinds of pictures."""
    if r.foreign is None:
        return ["* **A picture of another kind is not noticed**: nothing here knows any."]
    own, *others = r.foreign.measured
    seen = ", ".join(f"{s.name} {s.hits} of {s.n}" for s in others)
    text = (
        f"* Pictures of another kind are refused: of public pictures that were kept apart {seen}; of the kind itself ({own.name}) {own.hits}"
        f" of {own.n}. A kind that is not among these may pass."
    )
    return [text]


def _other_kind(r: Record) -> list[str]:
    if r.foreign is None:
        return []
    text = (
        "It is of another kind when the largest logit of `foreign` in `calibration.json` (weight and bias on the network's pooled features,"
        " which `net.forward_head(net.forward_features(x), pre_logits=True)` gives) is more than"
        f" {r.foreign.limit:.4f} above the largest logit."
    )
    return [text]


def _probability(one: bool) -> str:
    if one:
        return "of the disease, if half of the pictures showed it. At a lower prevalence the true one is lower."
    return "of the named output among the named ones, if they were equally frequent."
