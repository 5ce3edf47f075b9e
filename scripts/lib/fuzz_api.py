"""Runs schemathesis for scripts/fuzz-api: as two users at once, with what one of them has as the other's targets, and compares what
that one has before and after."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

# Test cases of each kind for one operation. Cases are counted and not seconds: with a limit in time, schemathesis goes on making
# them until it is over, and a busy machine would see others than an idle one.
EXAMPLES = 8

# Rules that a schema cannot express are told by these: what is refused for them is no contradiction of the description.
REFUSALS = ["2xx", 401, 402, 403, 404, 409, 422, 304]

CONFIG = """
headers = { }
request-timeout = 120
# More would compile Python in several threads, which CPython 3.11 sometimes fails at.
workers = 1
[auth.wfc]
path = "%(users)s"
user = "owner"
peers = ["owner", "stranger"]
[generation]
max-examples = %(examples)d
[checks]
enabled = true
positive_data_acceptance.expected-statuses = %(refusals)s
[[operations]]
# It answers for each order by itself, also where one is malformed: what that has to be, a check of ours looks after.
include-path = "/lit-compute/jobs/submit/bulk"
checks.negative_data_rejection.enabled = false
"""


def get(url, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as answer:
        return json.load(answer)


def belongings(told):
    """What the owner has, as it is told to everyone and to the owner."""
    url, owner = told["url"] + "/lit-compute", told["owner"]
    jobs = {name: get(f"{url}/jobs/{job}") for name, job in told["jobs"].items()}
    for job in jobs.values():
        # These move by themselves.
        job.pop("leaseExpiresAt")
        job.pop("confirmation")
    return {
        "jobs": jobs,
        "session": get(f"{url}/auth/session", owner["token"])["walletAddress"],
        "vouchers": get(f"{url}/vouchers", owner["token"]),
        "payments": get(f"{url}/nodes/{owner['nodeId']}/payments"),
    }


def run(scratch, told, user, more):
    names = ["owner", "stranger"] if user == "both" else [user]
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {told[name]['token']}"}]}
        for name in ("owner", "stranger")
    ]
    (scratch / "users.json").write_text(json.dumps({"auth": users}))
    config = CONFIG % {
        "users": scratch / "users.json",
        "examples": EXAMPLES,
        "refusals": json.dumps(REFUSALS),
    }
    if user == "stranger":
        config = config.replace('user = "owner"\npeers = ["owner", "stranger"]', 'user = "stranger"')
    (scratch / "schemathesis.toml").write_text(config.replace("headers = { }\n", ""))
    program = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", scratch / "schemathesis.toml", "run", told["url"] + "/openapi.json"]
    # Not `--checks all`: that would turn on what the file turns off for an operation.
    command += ["--continue-on-failure", "--exclude-path", "/lit-compute/auth/logout"]
    # The same seed each time, unless another is asked for; a machine that makes them slowly is no failure.
    command += ["--generation-database", "none", "--suppress-health-check", "all"]
    command += [*([] if "--seed" in more else ["--seed", "1"]), *more]
    hooks = pathlib.Path(__file__).with_name("fuzz_hooks.py")
    env = {**os.environ, "SCHEMATHESIS_HOOKS": str(hooks), "FUZZ_TOLD": str(scratch / "told"), "FUZZ_USER": user}
    print(f"As {' and '.join(names)}", flush=True)
    return subprocess.run(command, env=env, cwd=scratch).returncode


def main():
    scratch, more = pathlib.Path(sys.argv[1]), sys.argv[2:]
    told = json.loads((scratch / "told").read_text())
    before = belongings(told)
    failed = run(scratch, told, "stranger", more)
    after = belongings(told)
    if before != after:
        print("What the owner has was changed by another:", json.dumps([before, after], indent=1))
        failed = 1
    failed |= run(scratch, told, "both", more)
    log = (scratch / "log").read_text(errors="replace")
    for told_of in ("panicked", "request failed"):
        if told_of in log:
            print(f"The server's log has {told_of!r}:", *[line for line in log.splitlines() if told_of in line][:5], sep="\n")
            failed = 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
