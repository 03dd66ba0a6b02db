"""Phrases that state an attribute: group, value, regular expression over plain text (`sgps.attributes.plain`).

Several values are joined by `|`: "red to purple lacunae" states both. An empty value is the structure as such: "pigment network"
says that there is one, "no pigment network" that there is none of any kind.
"""

from typing import Final

_NET = r"(?:(?:pigment(?:ed)? )?network|reticular pattern)"
_GLOB = (
    r"(?:(?:brown |pigmented )?(?:dots (?:and|or) globules|globules (?:and|or) dots|globules|dots)|globular pattern)"
)
_STREAK = r"(?:(?:radial )?(?:streaks|streaming|pseudopods)(?: at the edge)?|radial lines)"
_VESSEL = r"(?:(?:blood )?vessels|vascular (?:structures|pattern))"
_ODD = r"(?:irregular(?:ly)?(?: distributed| spaced| sized)?|uneven(?:ly (?:distributed|spread))?)"
_EVEN = r"(?:regular(?:ly)?(?: distributed| spaced)?|evenly (?:spaced|distributed|spread)|uniform)"
_EDGE = r"(?:borders?|margins?|edges?|outlines?)"
_SHARP = r"(?:sharp(?:ly)?|abrupt|well (?:defined|demarcated|circumscribed))"
_BLUR = r"(?:blurred|ill defined|indistinct|fading|fuzzy|poorly (?:defined|demarcated))"
_IS = r"(?:(?:,|:)| (?:is|are)| that is)?"  # between a structure and its kind: "reticular pattern, typical"
_LACUNA = r"(?:lacun(?:ae|as|a|es)|lagoons?)"
_CLEAR = rf"(?:{_SHARP} )?"  # a sharp lacuna is no sharp lesion
_JOIN = r"(?:,|,? and|,? or|,? to)"

PHRASES: Final[tuple[tuple[str, str, str], ...]] = (
    # dermoscopy and drawn lesions
    ("symmetry", "symmetric", r"(?:largely |bilaterally |almost )?symmetric(?:al)?|symmetrical in (?:shape|both axes)"),
    (
        "symmetry",
        "asymmetric in one axis",
        r"asymmetr(?:ic|ical|y) (?:in|along|about|of) one axis|one axis of asymmetry",
    ),
    (
        "symmetry",
        "asymmetric in two axes",
        r"asymmetr(?:ic|ical|y) (?:in|along|about|of) (?:two|both) axes|two axes of asymmetry",
    ),
    ("border", "sharp", rf"{_SHARP}(?: (?:cut|lesion) )?(?: {_EDGE})?|{_EDGE} (?:is |are )?{_SHARP}|sharply bordered"),
    ("border", "blurred", rf"{_BLUR}(?: {_EDGE})?|{_EDGE} (?:is |are )?{_BLUR}"),
    (
        "border",
        "moth-eaten",
        rf"moth eaten(?: {_EDGE})?|{_EDGE} (?:is |are )?(?:moth eaten|scalloped)|scalloped {_EDGE}",
    ),
    (
        "border",
        "irregular",
        rf"(?:irregular|uneven|ragged|notched|jagged) {_EDGE}|{_EDGE}{_IS} (?:irregular|uneven|ragged|notched|jagged)",
    ),
    (
        "colours",
        "light brown|dark brown",
        r"(?:two|several|different) (?:shades of )?browns?|(?:light|pale)(?: brown)? (?:and|to) dark brown",
    ),
    ("colours", "light brown", r"(?:light|pale|yellowish) brown|tan"),
    ("colours", "dark brown", r"(?:dark|deep|chocolate) brown"),
    ("colours", "black", r"black|jet black|blackish"),
    ("colours", "blue-grey", r"blue grey|grey blue|bluish grey|slate(?: blue| grey)?|steel blue|bluish|blue|grey"),
    ("colours", "red", r"red|reddish|bright red|crimson|erythematous|erythema"),
    ("colours", "pink", r"pink|pinkish|rose(?: coloured)?|milky red"),
    ("colours", "white", r"white|whitish"),
    ("colours", "yellow", r"yellow|yellowish|orange yellow|yellow orange"),
    ("colours", "purple", r"purple|purplish|violet|violaceous"),
    ("colours", "skin", r"skin coloured|skin colour|flesh coloured|colour of skin"),
    ("network", "", _NET),
    ("network", "typical", rf"(?:typical|regular|{_EVEN}) {_NET}|{_NET}{_IS} (?:typical|regular)"),
    ("network", "atypical", rf"(?:atypical|irregular|thickened|broadened) {_NET}|{_NET}{_IS} (?:atypical|irregular)"),
    (
        "network",
        "delicate at the edge",
        rf"(?:delicate|fine|thin|faint) (?:(?:peripheral|at the edge) {_NET}|{_NET}(?: (?:only )?(?:at|around|along|towards) the (?:edge|periphery|border|margin|rim))?)|peripheral (?:delicate |fine )?{_NET}|{_NET}{_IS} (?:delicate at the edge|(?:fine|delicate) peripheral)",
    ),
    (
        "network",
        "negative",
        rf"(?:negative|inverse|inverted|reticular white) {_NET}|white network|reticular depigmentation|{_NET}{_IS} (?:negative|inverse)",
    ),
    ("globules", "", _GLOB),
    (
        "globules",
        "regular",
        rf"{_EVEN} {_GLOB}|{_GLOB} (?:of |in )?(?:regular|even) (?:size|spacing|distribution)|{_GLOB}{_IS} {_EVEN}",
    ),
    (
        "globules",
        "irregular",
        rf"{_ODD} {_GLOB}|{_GLOB} (?:of |in )?(?:irregular|uneven|varying) (?:size|spacing|distribution)(?: and (?:size|spacing))?|{_GLOB}{_IS} {_ODD}",
    ),
    (
        "globules",
        "peripheral ring",
        rf"(?:(?:peripheral |complete )?(?:ring|rim)(?: of)? {_GLOB}|peripheral {_GLOB}|{_GLOB}{_IS} (?:in a )?peripheral ring|{_GLOB} in a ring)",
    ),
    ("streaks", "", _STREAK),
    ("streaks", "regular", rf"(?:{_EVEN}|symmetric) {_STREAK}|{_STREAK}{_IS} {_EVEN}|starburst(?: pattern)?"),
    ("streaks", "irregular", rf"{_ODD} {_STREAK}|{_STREAK}{_IS} {_ODD}"),
    ("structureless", "", r"structureless (?:areas?|zones?)"),
    ("structureless", "homogeneous", r"homogeneous(?:ly)?(?: areas?)?|structureless pigment"),
    ("structureless", "white regression|blue regression", r"regression(?: structures| areas?)?"),
    ("structureless", "blue-white veil", r"(?:blue white|bluish white|whitish blue)(?: (?:veil|haze|structures?))?"),
    (
        "structureless",
        "white regression",
        r"white regression(?: areas?)?|(?:white )?scar like (?:depigmentation|regression)",
    ),
    (
        "structureless",
        "blue regression",
        r"(?:blue|bluish|blue grey|grey blue) (?:regression(?: areas?)?|peppering|granules|granularity)|peppering",
    ),
    ("vessels", "", _VESSEL),
    (
        "vessels",
        "arborizing",
        rf"(?:arbori[sz]ing|branching|tree like)(?: {_VESSEL}| telangiectas(?:ia|iae|ias))?|{_VESSEL}{_IS} (?:arbori[sz]ing|branching)",
    ),
    (
        "vessels",
        "dotted",
        rf"(?:dotted|dot like|point like|pinpoint|punctate) {_VESSEL}|{_VESSEL}{_IS} (?:dotted|point like|as dots)",
    ),
    ("vessels", "glomerular", rf"(?:glomerular|coiled|convoluted) {_VESSEL}|{_VESSEL}{_IS} (?:glomerular|coiled)"),
    ("vessels", "hairpin", rf"(?:hairpin|looped)(?: {_VESSEL})?|{_VESSEL}{_IS} (?:hairpin|looped)"),
    (
        "vessels",
        "linear irregular",
        rf"(?:linear irregular|irregular linear|polymorphous|polymorphic|serpentine) {_VESSEL}|{_VESSEL}{_IS} linear irregular",
    ),
    ("vessels", "comma", rf"comma(?: shaped| like)? {_VESSEL}|{_VESSEL}{_IS} comma(?: shaped)?"),
    ("keratin", "milia-like cysts", r"(?:white )?milia(?:(?: like)? cysts)?"),
    ("keratin", "comedo-like openings", r"comedo(?:nes| like (?:openings|plugs))?|crypts|follicular plugs"),
    (
        "keratin",
        "ridges and fissures",
        r"(?:ridges|gyri) and (?:fissures|furrows|sulci)|fissures and ridges|cerebriform surface",
    ),
    (
        "keratin",
        "surface scale",
        r"(?:surface |white |yellow |adherent |fine )*scales?|scaling|scaly(?: surface)?|crusts? of keratin|hyperkeratosis|keratin (?:mass|plug)",
    ),
    ("bcc signs", "blue-grey ovoid nests", r"(?:large )?(?:blue grey |bluish )?(?:ovoid|oval) nests"),
    ("bcc signs", "leaf-like areas", r"(?:leaf like|maple leaf like|leaf shaped) (?:areas|structures)"),
    ("bcc signs", "spoke-wheel areas", r"spoke wheel(?: like)? (?:areas|structures)|spoke wheels"),
    ("bcc signs", "ulceration", r"ulcers?|ulcerations?|ulcerated|erosions?|eroded"),
    (
        "vascular",
        "red lacunae|purple lacunae",
        rf"(?:red|reddish){_JOIN} (?:purple|purplish|violet) {_LACUNA}|red {_LACUNA}{_JOIN} purple {_LACUNA}",
    ),
    ("vascular", "purple lacunae|black lacunae", rf"(?:purple|violet|violaceous){_JOIN} black {_LACUNA}"),
    ("vascular", "red lacunae|black lacunae", rf"red{_JOIN} black {_LACUNA}"),
    ("vascular", "red lacunae|purple lacunae|black lacunae", rf"red, purple{_JOIN} black {_LACUNA}"),
    ("vascular", "red lacunae", rf"{_CLEAR}(?:bright |dark )?(?:red|reddish) {_LACUNA}"),
    ("vascular", "purple lacunae", rf"{_CLEAR}(?:purple|purplish|violet|violaceous|blue red) {_LACUNA}"),
    ("vascular", "black lacunae", rf"{_CLEAR}(?:black|dark|thrombosed) {_LACUNA}"),
    ("vascular", "", _LACUNA),
    (
        "centre",
        "white scar-like patch",
        r"(?:central )?(?:(?:white|whitish|scar like|shiny) )+(?:scar|patch|centre)(?: in the (?:centre|middle))?",
    ),
    # chest x-ray
    (
        "lung fields",
        "clear",
        r"(?:clear|normal|unremarkable|transparent) (?:lungs?|lung fields)|lungs? (?:fields )?(?:is |are )?(?:clear|normal)",
    ),
    ("lung fields", "lobar consolidation", r"(?:lobar |segmental |dense |homogeneous )*consolidations?"),
    ("lung fields", "patchy opacity", r"patchy (?:\w+ )?(?:opacit(?:y|ies)|infiltrates?)"),
    (
        "lung fields",
        "interstitial opacity",
        r"(?:interstitial|reticular|ground glass|hazy) (?:opacit(?:y|ies)|infiltrates?|markings|pattern)",
    ),
    ("extent", "focal", r"focal|unilateral|one lobe|single lobe"),
    ("extent", "multifocal", r"multifocal|several lobes"),
    ("extent", "bilateral diffuse", r"bilateral(?: and)? diffuse|diffuse(?: and)? bilateral|diffuse|bilateral"),
    ("chest signs", "air bronchogram", r"air bronchograms?"),
    ("chest signs", "perihilar thickening", r"(?:perihilar|peribronchial) (?:thickening|cuffing|streaking|markings)"),
    ("chest signs", "hyperinflation", r"hyperinflat(?:ion|ed)|flattened diaphragms?"),
    ("chest signs", "pleural effusion", r"(?:pleural )?effusions?"),
    # breast ultrasound
    ("mass", "", r"(?:mass|masses|lesion|focal lesion)"),
    ("mass", "oval", r"(?:oval|ovoid|ellipsoid|gently lobulated)(?: (?:shape|mass|lesion))?"),
    ("mass", "round", r"round(?: (?:shape|mass|lesion))?"),
    ("mass", "irregular shape", r"irregular(?:ly)? (?:shape|shaped|mass|lesion)(?: mass| lesion)?"),
    ("orientation", "parallel", r"parallel(?: (?:to the skin|orientation))?|wider than tall"),
    (
        "orientation",
        "not parallel",
        r"(?:not |non)parallel(?: (?:to the skin|orientation))?|taller than wide|vertical orientation",
    ),
    (
        "margin",
        "circumscribed",
        rf"(?:circumscribed|smooth|well (?:defined|circumscribed)|sharp)(?: {_EDGE})?|{_EDGE} (?:is |are )?(?:circumscribed|smooth|well defined)",
    ),
    ("margin", "indistinct", rf"(?:indistinct|ill defined|blurred)(?: {_EDGE})?"),
    ("margin", "angular", rf"(?:angular|angulated)(?: {_EDGE})?"),
    ("margin", "microlobulated", rf"microlobulated(?: {_EDGE})?"),
    ("margin", "spiculated", rf"(?:spiculated|spiculate)(?: {_EDGE})?|spiculations?"),
    ("echoes", "anechoic", r"anechoic|echo free"),
    ("echoes", "hypoechoic", r"(?:markedly )?hypoechoic"),
    ("echoes", "isoechoic", r"isoechoic"),
    ("echoes", "hyperechoic", r"hyperechoic|echogenic"),
    ("echoes", "heterogeneous", r"heterogeneous(?: echo(?:es|texture| pattern))?"),
    ("posterior", "enhancement", r"posterior (?:acoustic )?enhancement"),
    ("posterior", "shadowing", r"(?:posterior )?(?:acoustic )?shadow(?:ing|s)?"),
    ("posterior", "", r"posterior (?:acoustic )?(?:features|phenomena)"),
    # lung histology
    (
        "architecture",
        "thin alveolar septa",
        r"(?:thin |delicate )?alveolar (?:septa|walls|spaces|architecture)|open alveoli",
    ),
    ("architecture", "glandular", r"gland(?:s|ular(?: (?:structures|pattern))?)|acinar|papillary|lepidic"),
    (
        "architecture",
        "solid nests",
        r"solid (?:nests|sheets|islands)|nests (?:and sheets )?of (?:tumour )?cells|sheets of (?:tumour )?cells",
    ),
    ("nuclei", "small regular", r"(?:small|bland|regular|uniform)(?: (?:small|bland|regular|uniform))? nuclei"),
    (
        "nuclei",
        "pleomorphic",
        r"(?:pleomorphic|enlarged|atypical|large irregular|hyperchromatic)(?:,? (?:and )?(?:pleomorphic|enlarged|atypical|hyperchromatic))* nuclei|nuclear (?:pleomorphism|atypia)",
    ),
    ("tissue signs", "mucin", r"mucin|mucus"),
    ("tissue signs", "keratin pearls", r"keratin pearls|keratini[sz]ation"),
    ("tissue signs", "intercellular bridges", r"intercellular bridges"),
    ("tissue signs", "mitoses", r"mitoses|mitotic figures"),
)
