"""What schemathesis cannot know: ids that lead somewhere, and what one user must not do to another's."""

import json
import os
import random

import schemathesis
from schemathesis.core.parameters import ParameterLocation

TOLD = json.load(open(os.environ["FUZZ_TOLD"]))
USER = os.environ["FUZZ_USER"]
JOBS = list(TOLD["jobs"].values())
OWNED = {
    "jobId": JOBS,
    "id": [TOLD["owner"]["nodeId"], TOLD["owner"]["address"]],
    "address": [TOLD["owner"]["address"], TOLD["stranger"]["address"]],
}


def picked(seed):
    """Random, and the same for the same data, so that failures can be repeated."""
    return random.Random(repr(seed))


def path_parameters(given):
    """Half of the ids are those of something."""
    chance = picked(given)
    return {name: chance.choice(OWNED[name]) if name in OWNED and chance.random() < 0.5 else value for name, value in given.items()}


def body(path, given):
    """Half of the fences are the lease's own, and no one waits for work."""
    chance = picked(given)
    # Fields that fit together, and their signature, cannot be made up.
    if path == "/lit-compute/jobs/submit" and chance.random() < 0.5:
        order = chance.choice(TOLD["orders"])
        return order if chance.random() < 0.7 else {**order, **{k: v for k, v in given.items() if k == "priority"}}
    changed = dict(given)
    # What is no fence, or no time to wait, stays what it is.
    if isinstance(given.get("waitSecs"), int) and 0 <= given["waitSecs"] <= 30:
        changed["waitSecs"] = 0
    if isinstance(given.get("fence"), int) and 0 < given["fence"] < 2**63 and chance.random() < 0.5:
        changed["fence"] = 1
    return changed


# Here, and not where data is made: what is changed here is held against the description again, so that a body that was meant to
# violate it is not taken for one that still does.
@schemathesis.hook
def before_call(context, case, **kwargs):
    if case.path_parameters:
        case.path_parameters = path_parameters(case.path_parameters)
    if isinstance(case.body, dict):
        case.body = body(case.operation.path, case.body)


@schemathesis.check
def malformed_orders_of_a_bulk_are_refused(ctx, response, case):
    """A bulk with an order that violates the description is answered for each order, for that one with a problem."""
    meta = case.meta
    if case.operation.path != "/lit-compute/jobs/submit/bulk" or response.status_code != 200 or meta is None:
        return
    body = meta.components.get(ParameterLocation.BODY)
    if body is not None and body.mode.is_negative and not any("problem" in item for item in response.json()["jobs"]):
        raise AssertionError("a bulk that violates the description was taken as it is")


@schemathesis.check
def no_access_to_anothers(ctx, response, case):
    """A stranger changes nothing of the owner's, and sees nothing that is not everyone's."""
    if USER != "stranger" or response.status_code >= 300:
        return
    path, parameters = case.operation.path, case.path_parameters or {}
    changes = case.method.upper() not in ("GET", "HEAD", "OPTIONS")
    if changes and parameters.get("jobId") in JOBS:
        raise AssertionError(f"a stranger may {case.method} {path} of the owner's job {parameters['jobId']}")
    if path.endswith("/vouchers") and parameters.get("id") in OWNED["id"]:
        raise AssertionError("a stranger sees the owner's vouchers")
    if path.endswith("/jobs/claim") and response.status_code == 200:
        raise AssertionError("a stranger who is no node is given a job")
