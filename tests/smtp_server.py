"""A real SMTP server for the tests: smtp_server.py good|login|watch|refuse|silent|patient|die-once|tls|starttls [CERTIFICATE KEY]

Says its port on the first line, then each message as one line of JSON. It ends with its standard input. The patient one
acknowledges a message when a line comes in there.
"""
import asyncio, email, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult

mode = sys.argv[1]


def say(what):
    print(json.dumps(what), flush=True)


class Handler:
    def __init__(self):
        self.died = False
        self.nods = asyncio.Semaphore(0)

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        if mode == "watch":
            say({"ehlo": hostname})
        return responses

    async def handle_RCPT(self, server, session, envelope, address, options):
        if mode == "refuse":
            return "451 4.7.1 Come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content)
        parts = {part.get_content_type(): part.get_payload(decode=True).decode() for part in message.walk() if not part.is_multipart()}
        told = {"from": envelope.mail_from, "to": envelope.rcpt_tos, "headers": [(name, str(value)) for name, value in message.items()], "parts": parts}
        if mode == "die-once" and not self.died:
            self.died = True
            say(dict(told, died=True))
            # All was read, nothing is acknowledged: the sender cannot know.
            server.transport.abort()
            await asyncio.sleep(3600)
        say(told)
        if mode == "patient":
            await self.nods.acquire()
        return "250 OK"


def judge(server, session, envelope, mechanism, data):
    if mode == "watch":
        say({"login": data.login.decode()})
    good = (data.login, data.password) == (b"post", b"p@ss word")
    return AuthResult(success=good, handled=False)


async def silent(reader, writer):
    await asyncio.sleep(3600)


async def main():
    loop, handler = asyncio.get_running_loop(), Handler()
    auth = dict(authenticator=judge, auth_required=True, auth_require_tls=False) if mode in ("login", "watch") else {}
    context = None
    if mode in ("tls", "starttls"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[2], sys.argv[3])
    if mode == "starttls":
        auth = dict(tls_context=context, require_starttls=True)
    if mode == "silent":
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
    else:
        server = await loop.create_server(lambda: SMTP(handler, enable_SMTPUTF8=True, **auth), "127.0.0.1", 0, ssl=context if mode == "tls" else None)
    say(server.sockets[0].getsockname()[1])
    while await loop.run_in_executor(None, sys.stdin.readline):
        handler.nods.release()


try:
    asyncio.run(main())
except (KeyboardInterrupt, asyncio.CancelledError):
    pass
