"""The options of the server: the command line, the environment, the checks, the help."""

import contextlib
import io
import os

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from kvnet import tap


class OptionsTestCase(SynchronousTestCase):
    """Parses without the environment of whoever runs the tests."""

    def setUp(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
        self.patch(tap.os, "environ", environment)
        self.environment = environment

    def parse(self, *words):
        options = tap.Options()
        options.parseOptions(list(words))
        return dict(options)

    def outcome(self, *words):
        """The status, standard output and standard error of a parse that ends the process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            error = self.assertRaises(SystemExit, self.parse, *words)
        return error.code, out.getvalue(), err.getvalue()

    def assertRefused(self, words, *parts):
        status, out, err = self.outcome(*words)
        self.assertEqual((status, out), (2, ""))
        self.assertTrue(err.startswith("kvstore: "), err)
        self.assertTrue(err.endswith("\n"), err)
        self.assertEqual(err.count("\n"), 1, err)
        for part in parts:
            self.assertIn(part, err)


class ValueTests(OptionsTestCase):
    def test_defaults(self):
        self.assertEqual(
            self.parse(),
            {
                "data-dir": "./data",
                "fsync": "everysec",
                "text": 8080,
                "metrics": 9464,
                "segment-size": 64 << 20,
                "max-value-size": 64 << 20,
                "compression": "on",
                "dialect": "challenge",
                "max-connections": 10000,
                "idle-timeout": 0,
                "log-format": "text",
            },
        )

    def test_the_table_names_every_option_once(self):
        self.assertEqual([option.name for option in tap.OPTIONS], list(dict.fromkeys(self.parse())))

    def test_both_ways_to_write_a_value(self):
        self.assertEqual(self.parse("--fsync", "always", "--dialect=lf")["fsync"], "always")

    def test_the_last_of_two_wins(self):
        self.assertEqual(self.parse("--text=1", "--text=2")["text"], 2)

    def test_where_to_listen(self):
        for text, value in (
            ("off", None),
            ("0", 0),
            ("65535", 65535),
            ("tcp:8080:interface=0.0.0.0", "tcp:8080:interface=0.0.0.0"),
            ("unix:/run/kv", "unix:/run/kv"),
        ):
            self.assertEqual(self.parse(f"--text={text}", f"--metrics={text}")["text"], value)
            self.assertEqual(self.parse(f"--metrics={text}")["metrics"], value)

    def test_sizes(self):
        for text, size in (
            ("1048576", 1 << 20),
            ("64KiB", 64 << 10),
            ("64k", 64 << 10),
            ("3M", 3 << 20),
            ("3 MiB", 3 << 20),
            ("1GiB", 1 << 30),
        ):
            self.assertEqual(self.parse(f"--segment-size={text}")["segment-size"], size, text)
        self.assertEqual(self.parse("--max-value-size=1")["max-value-size"], 1)


class MistakeTests(OptionsTestCase):
    def test_unknown_option(self):
        self.assertRefused(["--bogus"], "--bogus")

    def test_value_missing(self):
        self.assertRefused(["--fsync"], "--fsync")

    def test_word_that_belongs_to_no_option(self):
        self.assertRefused(["--fsync=no", "stray"], "'stray'")

    def test_values_out_of_range(self):
        for name, texts in {
            "data-dir": [""],
            "fsync": ["", "sometimes", "ALWAYS"],
            "text": ["", "65536", "-1", "eighty", "\u0661"],
            "metrics": ["65536"],
            "segment-size": ["", "65535", "1025MiB", "64MB", "64iB", "1.5M", "-1", "\u0661M", "1\u212a"],
            "max-value-size": ["0", "1073741825", "much"],
            "compression": ["", "yes"],
            "dialect": ["", "klingon"],
            "max-connections": ["0", "1000001", "many", "-5"],
            "idle-timeout": ["-1", "1.5", "soon"],
            "log-format": ["", "JSON", "xml"],
        }.items():
            for text in texts:
                self.assertRefused([f"--{name}={text}"], f"--{name}: ")

    def test_mistake_below_twistd(self):
        """twistd catches UsageError and shows all of its own usage; none must reach it."""
        parent = usage.Options()
        parent.subCommands = [["kvstore", None, tap.Options, ""]]
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            error = self.assertRaises(SystemExit, parent.parseOptions, ["kvstore", "--bogus"])
        self.assertEqual(error.code, 2)
        self.assertEqual(err.getvalue().count("\n"), 1)


class EnvironmentTests(OptionsTestCase):
    def test_every_option_has_a_variable(self):
        values = {
            "data-dir": ("/d", "/d"),
            "fsync": ("no", "no"),
            "text": ("off", None),
            "metrics": ("0", 0),
            "segment-size": ("1M", 1 << 20),
            "max-value-size": ("7", 7),
            "compression": ("off", "off"),
            "dialect": ("escabelo", "escabelo"),
            "max-connections": ("3", 3),
            "idle-timeout": ("60", 60),
            "log-format": ("json", "json"),
        }
        for option in tap.OPTIONS:
            self.environment[option.variable] = values[option.name][0]
        self.assertEqual(self.parse(), {name: value for name, (_, value) in values.items()})
        self.assertIn("KVSTORE_MAX_VALUE_SIZE", self.environment)

    def test_the_command_line_wins(self):
        self.environment["KVSTORE_FSYNC"] = "nonsense"
        self.assertEqual(self.parse("--fsync=no")["fsync"], "no")

    def test_an_empty_variable_counts_as_not_set(self):
        self.environment["KVSTORE_TEXT"] = ""
        self.assertEqual(self.parse()["text"], 8080)

    def test_a_bad_value_names_the_variable(self):
        self.environment["KVSTORE_MAX_CONNECTIONS"] = "zero"
        self.assertRefused([], "KVSTORE_MAX_CONNECTIONS: ", "'zero'")


class HelpTests(OptionsTestCase):
    def test_version(self):
        import kvcore

        self.assertEqual(self.outcome("--version"), (0, f"kvstore {kvcore.__version__}\n", ""))

    def test_help_tells_each_option_its_default_and_its_variable(self):
        status, out, err = self.outcome("--help")
        self.assertEqual((status, err), (0, ""))
        for option in tap.OPTIONS:
            self.assertIn(f"--{option.name}={option.metavar}\n", out)
            self.assertIn(f"[{option.default}; {option.variable}]\n", out)
        self.assertLess(max(map(len, out.splitlines())), 80)
