"""`python -m kvcore`: check, salvage and dump a data directory. The `kvstore` command has the first two as well."""

import argparse
import base64
import json
import os
import sys

from kvcore.check import check, damage_lines, report_dict, report_lines
from kvcore.errors import KVError
from kvcore.salvage import is_whole, salvage, salvaged_dict, salvaged_lines
from kvcore.survey import Survey

INTERRUPTED = 130


def _show(lines, as_dict, json_wanted):
    print(json.dumps(as_dict) if json_wanted else "\n".join(lines))


def _check(options):
    report = check(options.directory)
    _show(report_lines(report), report_dict(report), options.json)
    return 1 if report.damage else 0


def _salvage(options):
    done = salvage(options.directory, options.target)
    _show(salvaged_lines(done), salvaged_dict(done), options.json)
    return 0 if is_whole(done) else 1


def _dump(options):
    survey = Survey(options.directory)
    survey.read()
    for key, value, deadline in survey.items():
        line = {"key": _text(key), "value": _text(value)}
        print(json.dumps({**line, "expires_at": deadline} if deadline else line))
    for line in damage_lines(survey.damage):
        print(f"kvcore: {line}", file=sys.stderr)
    return 1 if any(item.lost for item in survey.damage) else 0


def _text(data):
    return base64.b64encode(data).decode("ascii")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m kvcore",
        description="Work on the data directory of a store that is not running; it is never changed.",
        epilog="The exit status is 1 when there is damage, 2 when the command line is wrong or a directory cannot be read.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("check", _check, "read all of it and tell what is damaged"),
        ("salvage", _salvage, "write all that can be read of it into a new store"),
        ("dump", _dump, "print a JSON object a line for each live key, with key and value in base64, in no order"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        command.add_argument("directory", metavar="DIR", help="the data directory")
        if name == "salvage":
            command.add_argument("target", metavar="NEWDIR", help="where the new store goes: empty, or not there yet")
        if name != "dump":
            command.add_argument("--json", action="store_true", help="print a JSON object")
    return parser


def main(arguments=None):
    """Run the command and return its exit status (int)."""
    options = _parser().parse_args(arguments)
    try:
        return options.function(options)
    except KVError as error:
        print(f"kvcore: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing more may be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("kvcore: interrupted; nothing is left of what was being made", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
