"""Who asks: an administrator whose session is alive, whatever the operations before have done to it.

Logging out, ending sessions, changing the password, demoting and disabling are among what is tried, so the cookie is looked
at before it is used, and a new administrator is made when the old one is no more. BASE is the server's URL, PROGRAM the
program, which makes administrators in the folder that it runs in.
"""

import itertools
import os
import subprocess

import requests
import schemathesis

BASE = os.environ["BASE"]
NAMES = itertools.count()
PASSWORD = "correct horse battery"


class Administrator:
    def __init__(self):
        self.cookie = None

    def get(self, case, context):
        if self.cookie is None or not self.works():
            self.sign_in_anew()
        return self.cookie

    def set(self, case, cookie, context):
        case.cookies = {**(case.cookies or {}), "holdfast": cookie}

    def works(self):
        answer = requests.get(f"{BASE}/admin/users?limit=1", cookies={"holdfast": self.cookie}, timeout=30)
        return answer.status_code == 200

    def sign_in_anew(self):
        email = f"admin{next(NAMES)}@example.com"
        subprocess.run(
            [os.environ["PROGRAM"], "user", "create", "--email", email, "--role", "admin", "--password-stdin"],
            input=PASSWORD, text=True, check=True, stdout=subprocess.DEVNULL,
        )
        answer = requests.post(f"{BASE}/login", json={"email": email, "password": PASSWORD}, timeout=30)
        answer.raise_for_status()
        self.cookie = answer.cookies["holdfast"]


# Looked at anew for every request.
schemathesis.auth(refresh_interval=None)(Administrator)
