"""An image set of drawn lesions in three class folders with a table, and a recipe of a few steps for it."""

from pathlib import Path

from PIL import Image

from sgps.draw import draw_patient, draw_profile

RECIPE = """
base_classes: [nv, mel]
meta_test: [df]
held_out: 0.2
size: 32
measure: true
sets:
  - {name: skin, file: skin, role: skin, frame: [40, 40], turn: true, leave_out: [df],
     table: {file: t.csv, image: i, label: c, lesion: l, site: s}, licence: CC0-1.0, source: drawn for this test}
  - {name: drawn, draw: {first: 5, profiles: 2, patients: 4}, role: other, frame: [40, 40], turn: true, leave_out: [],
     licence: Apache-2.0, source: drawn}
distil: {steps: 4, horizon: 8, batch: 8, rate: 2.0e-3, decay_share: 0.4, colour: 1.0, mixed: 0.3, hint: 1.0, mse: 1.0,
  cross_entropy: 0.1, skin: 0.7}
finetune:
  - {name: a, steps: 2, batch: 6, rate: 3.0e-4, colour: 2.0, contrast: 0.0, site: 0.0, skin: 0.7, keep: [2]}
"""


def make(folder: Path) -> Path:
    rows = ["i,c,l,s"]
    for place, label in enumerate(("nv", "mel", "df")):
        (folder / "skin" / label).mkdir(parents=True)
        profile = draw_profile(place)
        for patient in range(12):
            pixels = draw_patient(profile, patient, views=1, size=40)[0]
            Image.fromarray(pixels).save(folder / "skin" / label / f"{label}{patient}.png")
            rows.append(f"{label}{patient},{label},{label}-{patient},back")
    (folder / "skin" / "t.csv").write_text("\n".join(rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder
