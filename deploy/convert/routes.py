"""What the converters share: options, the list of routes, complaints with line numbers."""
import argparse
import sys

UNFIT = set(' \t,"')  # what a name in the list cannot have


class Routes:
    """The lines for `imapmuxctl import`. They are printed if there is nothing to complain of, and all or none."""

    def __init__(self, path, shards):
        self.path, self.shards = path, shards
        self.lines, self.complaints = {}, []  # by user: (route, number of the line)

    def complain(self, number, text):
        self.complaints.append(f"{self.path}:{number}: {text}")

    def add(self, number, user, server, backend_user=None):
        """A user whose mail is on a server, HOST or HOST:PORT, under another name there if one is given."""
        shard = self.shards.get(server) or self.shards.get(server.partition(":")[0])
        if not user or UNFIT & set(user + (backend_user or "")):
            self.complain(number, f'"{user}" cannot be a name of a user')
        elif shard is None:
            self.complain(number, f'no shard for the server "{server}": add --shard {server}=SHARD')
        else:
            route = ",".join([user, shard] + ([backend_user] if backend_user and backend_user != user else []))
            known, known_number = self.lines.setdefault(user, (route, number))
            if known != route:
                self.complain(number, f'"{user}" is elsewhere by line {known_number}')

    def finish(self):
        """Prints all of it; returns the exit status."""
        if self.complaints:
            print("\n".join(self.complaints), file=sys.stderr)
            return 1
        for route, _ in self.lines.values():
            print(route)
        return 0


def shard_option(text):
    server, _, shard = text.rpartition("=")
    if not server or not shard or UNFIT & set(shard):
        raise argparse.ArgumentTypeError(f'"{text}" is not SERVER=SHARD')
    return server, shard


def parser(description, file_help):
    found = argparse.ArgumentParser(description=description,
                                    epilog="Errors name the line, and then nothing is printed.")
    found.add_argument("--shard", metavar="SERVER=SHARD", type=shard_option, action="append", required=True,
                       help="the mail of this server, HOST or HOST:PORT, is the shard's in proxy.conf; once for each")
    found.add_argument("file", help=file_help)
    return found


def numbered_lines(path):
    try:
        with sys.stdin if path == "-" else open(path, encoding="utf-8") as lines:
            yield from enumerate((line.rstrip("\n") for line in lines), 1)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path}: {error}")
