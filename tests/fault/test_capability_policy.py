"""`capability.policy = common`: who is moved from one store to another shall miss nothing that was on offer before."""
import pytest

from stage import PASSWORD, Store, shard

STORE = b"IMAP4rev1 IDLE X-SHARED X-OLD"
OTHER = b"IMAP4rev1 IDLE X-SHARED X-NEW"


def store_with(capabilities):
    def script(peer):
        peer.log_in(b"AUTH=PLAIN SASL-IR " + capabilities)
        while True:
            tag = peer.line().split()[0]
            peer.send(b"* CAPABILITY " + capabilities + b"\r\n" + tag + b" OK done\r\n")
    return script


@pytest.mark.parametrize("policy,first,second,later", [
    ("backend", STORE, OTHER, STORE),
    # The second store is met when its first user logs in; from then on it counts for all.
    ("common", STORE, b"IMAP4rev1 IDLE X-SHARED", b"IMAP4rev1 IDLE X-SHARED")])
def test_policy(start, policy, first, second, later):
    with Store(store_with(STORE)) as store, Store(store_with(OTHER)) as other:
        proxy = start(shard("store", store.port) + shard("other", other.port), routes={"bob": "other"},
                      more=f"capability {{ policy = {policy} }}\n")
        alice, bob = proxy.wire(), proxy.wire()
        assert b"OK [CAPABILITY " + first + b"] " in alice.login("alice", PASSWORD)
        assert b"OK [CAPABILITY " + second + b"] " in bob.login("bob", PASSWORD)
        assert alice.command(b"CAPABILITY", tag=b"x") == b"* CAPABILITY " + later + b"\r\nx OK done\r\n"
        alice.close()
        bob.close()
