"""The two settings files as they are born: every key with its reason. The plan in them: `sgps.default_plan`."""

FEDERATION = """\
# The federation {name}. Read when `sgps-server` starts; a round that is open keeps the terms it was issued with.
name: {name}
url: {url}          # where sites find the coordinator; stands in every kit
listen:
  host: {host}
  port: {port}
releases:                 # a second port, over gRPC: state, releases, health
  port: {releases_port}
  url: {releases_url}     # where sites find it; stands in every kit

rounds: {rounds}                 # one `rows` round for each cohort that sites hold ready; two with `centre_sites`
kind: {kind}                # sites send noised sums of their patients, once per cohort; or `episodes`, with a part of that name
centre_sites: {centre_sites}       # true where cameras differ: before each `rows` round one for the means of the sites; epsilon pays for both
epsilon: {epsilon}              # what one round costs a patient; the noise follows from it. A site's own budget may be smaller: it refuses.
delta: {delta}

quorum: 2                 # least number of contributions that make a round
wait_for: 2               # sites to be online before a round starts; after `patience` a quorum is enough
patience: 60              # seconds; a site lost within a round is waited for as long
answer_after: 60          # seconds after its start at which all sites answer, so that time tells nothing of them
deadline_after: 600       # seconds after its start at which an attempt ends
attempts: 5               # of one round, then the program ends with an error; started again it tries again
most_patients: 10000      # a reply that is larger than so many patients could make it is refused
# code:                   # hashes of other site code to accept, beside that of this installation
#   - 0000000000000000000000000000000000000000000000000000000000000000
"""

SITE = """\
# Site {site} of the federation {name}. `sgps-client check` says what is missing.
site: {site}
role: {role}
federation:
  name: {name}
  url: {url}
  releases_url: {releases_url}
  fingerprint: {fingerprint}
keys: keys
state: state
releases: releases

slots: 200                # public: number of patients for which there is room; the promise does not depend on how many are used
images_per_patient: 20    # public: more images of one patient are left out
seconds_per_patient: 30   # public: a patient who takes longer is left out
limits:                   # the site's own: a plan beyond them is refused before a record is read
  least_sigma: 0.6
  most_clip: 1.0
  most_steps: 1
  most_q: 1.0
  denominator: 1
  kinds: [{kinds}]

# classes:                # the site's own label: catalogue id (`sgps-client classes` lists them), or `none` to leave it out.
#   dermatofibroma: df    # a label that is a catalogue id needs no line

# A cohort is a closed list of patients with one budget, for ever and over all federations. The coordinator plans epsilon {epsilon}
# at delta {delta} for a round; the budget is the site's decision and has no default.
# cohorts:
#   - name: first
#     images: images      # a folder or zip of pictures, with `table`; or one of class folders
#     table: table.csv
#     unit_column: patient_id      # the column that names the patient: the unit that is protected
#     image_column: image_id
#     label_column: dx
#     budget:
#       epsilon: ?
#       delta: ?
"""
