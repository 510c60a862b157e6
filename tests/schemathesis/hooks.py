"""Who asks: an administrator whose session is alive, whatever the operations before have done to it.

Logging out, ending sessions, changing the password, demoting and disabling are among what is tried, so the cookie is looked
at before it is used, and a new administrator is made when the old one is no more. BASE is the server's URL, PROGRAM the
program, which makes administrators in the folder that it runs in, where the letters are too.

And what nobody could guess: every other time the password is the right one, and a token is that of the newest letter of its
kind. So what follows upon them is reached as well as what refuses them.
"""

import itertools
import os
import re
import subprocess
import zlib
from pathlib import Path

import requests
import schemathesis

BASE = os.environ["BASE"]
NAMES = itertools.count()
PASSWORD = "correct horse battery"


# Looked at anew for every request.
@schemathesis.auth(refresh_interval=None)
class Administrator:
    email = cookie = None
    browser = requests.Session()

    def get(self, case, context):
        if self.cookie is None or not self.works():
            Administrator.email, Administrator.cookie = new_session()
        return self.cookie

    def set(self, case, cookie, context):
        case.cookies = {**(case.cookies or {}), "holdfast": cookie}

    def works(self):
        # Whoever is demoted or disabled has no session any more.
        return self.browser.get(f"{BASE}/check", cookies={"holdfast": self.cookie}, timeout=30).status_code == 204


def new_session():
    email = f"admin{next(NAMES)}@example.com"
    subprocess.run(
        [os.environ["PROGRAM"], "user", "create", "--email", email, "--role", "admin", "--password-stdin"],
        input=PASSWORD, text=True, check=True, stdout=subprocess.DEVNULL,
    )
    answer = requests.post(f"{BASE}/login", json={"email": email, "password": PASSWORD}, timeout=30)
    answer.raise_for_status()
    return email, answer.cookies["holdfast"]


PAGES = {"/email/verify": "verify", "/password/reset": "reset", "/email/change": "email-change", "/email/undo": "email-undo"}


def newest(page):
    """The token of the newest letter that leads to this page."""
    for letter in sorted(Path("mail").glob("*.eml"), reverse=True):
        found = re.findall(rf"/security/{page}/([A-Za-z0-9_-]{{43}})", letter.read_text(errors="replace"))
        if found:
            return found[-1]
    return None


@schemathesis.hook
def before_call(context, case, kwargs):
    # Drawn from the request itself, so that it is the same when it is repeated.
    if zlib.crc32(str((case.body, case.path_parameters)).encode(errors="replace")) % 2:
        return
    path, body, place = case.operation.path, case.body, case.path_parameters
    if isinstance(body, dict):
        known = {"current_password": PASSWORD, "token": newest(PAGES.get(path, "none"))}
        if path == "/login":
            known |= {"email": Administrator.email, "password": PASSWORD}
        case.body = {name: known.get(name) or value if isinstance(value, str) else value for name, value in body.items()}
    page = re.match(r"/security/([a-z-]+)/", path)
    if page and isinstance(place, dict) and newest(page[1]):
        case.path_parameters = {**place, "token": newest(page[1])}
