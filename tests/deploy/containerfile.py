"""A reader of Containerfiles, as far as ours goes: instructions in order, stages by name."""
import json

KNOWN = {"FROM", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


def instructions(text):
    """Pairs (instruction, arguments); fails for what an engine would not take."""
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, arguments = line.partition(" ")
        assert name in KNOWN and arguments and not line.endswith("\\"), line
        found.append((name, arguments))
    assert found[0][0] == "FROM"
    return found


def stages(text):
    """The stages, each as a list of instructions, of which the first is its FROM."""
    found = []
    for name, arguments in instructions(text):
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments))
    return found


def words(arguments):
    """Of the form with a list, which no shell reads."""
    return json.loads(arguments)
