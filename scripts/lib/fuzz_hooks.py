"""What schemathesis cannot know: ids that lead somewhere, and what one user must not do to another's."""

import json
import os
import random

import schemathesis

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


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Half of the ids are those of something."""
    chance = picked(path_parameters)
    for name, known in OWNED.items():
        if path_parameters and name in path_parameters and chance.random() < 0.5:
            path_parameters[name] = chance.choice(known)
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    """Half of the fences are the lease's own, and no one waits for work."""
    if isinstance(body, dict):
        # Fields that fit together, and their signature, cannot be made up.
        if context.operation.path == "/lit-compute/jobs/submit" and picked(body).random() < 0.5:
            order = picked(body).choice(TOLD["orders"])
            return order if picked(body).random() < 0.7 else {**order, **{k: v for k, v in body.items() if k == "priority"}}
        # What is no fence, or no time to wait, stays what it is.
        if isinstance(body.get("waitSecs"), int) and 0 <= body["waitSecs"] <= 30:
            body["waitSecs"] = 0
        if isinstance(body.get("fence"), int) and 0 < body["fence"] < 2**63 and picked(body).random() < 0.5:
            body["fence"] = 1
    return body


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
