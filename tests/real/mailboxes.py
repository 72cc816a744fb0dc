"""Mailboxes that tell whose they are: each has a folder that is named after its user."""
import re

import servers
from conftest import PASSWORD
from imapwire import Wire


def mark(store, users):
    for user in users:
        with Wire(servers.HOST, store.port) as wire:
            wire.login(user, PASSWORD)
            assert b" OK " in wire.command(b"CREATE mine-of-" + user.encode())


def whose(wire):
    """Of which users the mailbox is that the session sees."""
    return re.findall(rb'"?mine-of-(\w+)', wire.command(b'LIST "" mine-of-*'))
