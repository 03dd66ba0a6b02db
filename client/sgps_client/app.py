"""The ClientApps: ordinary Flower objects, installed at the site.

`app` is a hospital's: the worker calls it in-process. `public` is for stock Flower federations and Flower's simulation engine and takes
sites of public pictures only (`sgps_client.public`). `node_config["site"]` is the path of site.yaml. Exceptions carry one constant
text: Flower would send it to the server.
"""

import logging
from pathlib import Path

from sgps_client.offline import switch_off

switch_off()  # before flwr is imported

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sgps.errors import SgpsError
from sgps_client import log
from sgps_client.config import Site
from sgps_client.enrolment import load_key
from sgps_client.public import NotPublic, open_public, recall, site_file
from sgps_client.round import RoundFailed, answer
from sgps_client.store import Store
from sgps_privacy.egress import Reply
from sgps_privacy.errors import PrivacyError

FAILED = "this site cannot answer; the reason is in its own log"

app = ClientApp()
public = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """An order in, a reply out, at the plan's `answer_at`. Raises RoundFailed with a constant text for silence."""
    try:
        site = Site.load(Path(str(context.node_config["site"])))
        return _answered(site, message)
    except Exception as error:  # noqa: BLE001  whatever it is, its text stays here
        _tell(error)
        raise RoundFailed(FAILED) from None


@public.train()
def train_public(message: Message, context: Context) -> Message:
    """The same at once, of a site of public pictures. Raises NotPublic for any other site, else RoundFailed as `train`."""
    try:
        site = open_public(site_file(context.node_config, context.run_config))
    except NotPublic:
        raise
    except SgpsError as error:
        logging.getLogger(__name__).error(
            "%s", error
        )  # on the node's own terminal: no site is known whose log it could go to
        raise RoundFailed(FAILED) from None
    with log.reporting(log.Report(site.log, site=site.name)):
        try:
            if (release := Store(site).newest()) is not None:
                recall(site, release)
            return _answered(site, message, wait=False)
        except Exception as error:  # noqa: BLE001
            _tell(error)
            raise RoundFailed(FAILED) from None


def _answered(site: Site, message: Message, *, wait: bool = True) -> Message:
    plan, start = message.content.config_records.get("plan"), message.content.array_records.get("arrays")
    text, signature = ("", "") if plan is None else (str(plan.get("text", "")), str(plan.get("signature", "")))
    reply = answer(site, text, signature, {n: a.numpy() for n, a in (start or {}).items()}, wait=wait)
    return Message(content(reply, site), reply_to=message)


def _tell(error: Exception) -> None:
    detail = str(error) if isinstance(error, SgpsError | PrivacyError) else f"{type(error).__name__}: {error}"
    log.current()("failed", f"no answer: {detail}", bad=True, seldom=True)


def content(reply: Reply, site: Site) -> RecordDict:
    """A reply as Flower carries it. The statement is signed with the site's TLS key (ECDSA, SHA-256, RFC 6979).

    The signature is deterministic, so that a resend is the same message to the last bit.
    """
    arrays, fields = reply.parts()
    if fields["statement"]:
        signed = load_key(site.tls_key).sign(
            str(fields["statement"]).encode(), ECDSA(hashes.SHA256(), deterministic_signing=True)
        )
        arrays, fields = reply.parts(signed.hex())
    records = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})
    return RecordDict({"arrays": records, "reply": ConfigRecord({**fields})})
